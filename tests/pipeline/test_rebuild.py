"""The committed pairs are what the committed weights and this exporter make, and are fit to be served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from equipoise_core.contract import load_contract
from equipoise_core.loading import load_model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.publish.triton_config import differences, model_configs, render
from equipoise_lab.reference.build import compile_reference
from equipoise_lab.reference.specs import REFERENCES
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
LARGEST = 3 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_weights_make_the_committed_sampler(name):
    """Compiling the weights again gives the same contract and the same file, or the same function of image and masks.

    Byte for byte on the machines tried. Folding BatchNorm into the convolutions may round otherwise on another
    processor; then every output has to agree to 1e-6, on an image that needs padding too.
    """
    committed = REPOSITORY / f"{name}_sampler" / "1" / "model.onnx"
    compiled = compile_reference(REFERENCES[name])
    contract = load_contract(REPOSITORY / name / "1" / "contract.json")
    assert compiled.contract.graph_document() == contract.graph_document()
    if compiled.model.SerializeToString() == committed.read_bytes():
        return
    sizes = tuple(
        21 if isinstance(extent, str) else size for extent, size in zip(contract.spatial, contract.nominal, strict=True)
    )
    image = np.random.default_rng(0).normal(size=(contract.channels, *sizes)).astype(np.float32)
    padded = contract.preprocessing.pad(image)[None]
    masks = draw_masks(mask_layout(contract, padded.shape[2:]), 1, contract.model_digest, 0, 4)[None]
    rebuilt = OnnxSampler(compiled.model.SerializeToString())(padded, masks)
    for output, expected in OnnxSampler(committed)(padded, masks).items():
        np.testing.assert_allclose(rebuilt[output], expected, rtol=1e-6, atol=1e-6, err_msg=output)


@pytest.mark.parametrize("name", REFERENCES)
def test_committed_files_belong_together(name):
    """The contract names the sampler's digest, the ONNX file repeats the contract, the policy is for this model."""
    model = load_model(REPOSITORY / name / "1")
    assert model.policy is not None, model.why_no_policy
    assert model.policy.model_digest == model.contract.model_digest
    assert model.contract.first_pass is not None
    for each, contract in (("sampler", model.contract), ("first_pass", model.contract.of_first_pass)):
        file = REPOSITORY / f"{name}_{each}" / "1" / "model.onnx"
        assert file.stat().st_size <= LARGEST
        metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert metadata == contract.graph_metadata()
        adapter = file.with_name("model.py")
        assert adapter.resolve() == (REPOSITORY / "hippocampus_sampler" / "1" / "model.py").resolve()


@pytest.mark.parametrize("name", REFERENCES)
def test_committed_configurations_are_generated(name):
    """Nobody edits a config.pbtxt by hand: contract, policy and what was measured make it; it parses as a message."""
    model = load_model(REPOSITORY / name / "1")
    configurations = model_configs(REPOSITORY, model.contract, model.chunk)
    assert len(configurations) == 11
    for path, config in ((REPOSITORY / each, config) for each, config in configurations.items()):
        text = path.read_text(encoding="utf-8")
        file = path.parents[len(path.relative_to(REPOSITORY).parts) - 2] / "1" / "model.onnx"
        assert not file.exists() or not differences(config, onnx.load(file)), path
        assert text_format.Parse(text, ModelConfig()) == config, path
        assert text == render(config), path
