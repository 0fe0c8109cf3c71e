"""Weights beyond what an ONNX file holds lie beside it, and are part of the model all the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.canonical import digest_of_file, digest_of_model
from equipoise_core.contract import ContractError, Precision
from equipoise_core.loading import load_model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.graph.storage import DATA, MODEL
from equipoise_export.options import Options
from equipoise_export.proof.ensemble import EnsembleRefused, check_members
from equipoise_export.publish.repository import publish_pair

from ...support.graphs import contract
from ...support.networks import UNet

pytestmark = pytest.mark.slow  # exports

DRAFT = contract(spatial=("X", "Y"), nominal=(16, 24), multiple=4)


@pytest.fixture(scope="module")
def outside(unet: UNet) -> Compiled:
    images = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    return compile_sampler(unet, DRAFT, images, Options(largest_file=1000))


@pytest.fixture
def published(outside: Compiled, tmp_path: Path) -> Path:
    return publish_pair(outside, tmp_path / "repository") / "1"


def answer(sampler: OnnxSampler, compiled: Compiled) -> np.ndarray:
    masks = draw_masks(mask_layout(compiled.contract, (16, 24)), 0, compiled.contract.digest, 0, 4)[None]
    return sampler(np.random.default_rng(0).standard_normal((1, 1, 16, 24)).astype(np.float32), masks)["sum_p"]


def file_of(version: Path) -> Path:
    return version.parents[1] / "small_sampler" / "1" / MODEL


def test_weights_lie_beside_the_graph_only_where_they_must(outside: Compiled, compiled_unet: Compiled) -> None:
    """Small tensors, which say shapes, stay; a model that fits its file has no second one."""
    assert compiled_unet.weights is None
    assert outside.weights is not None and outside.weights.path.stat().st_size > 10_000
    assert not any(len(entry.raw_data) > 1024 for entry in outside.model.graph.initializer)
    assert {o.name for o in outside.model.graph.output} == {o.name for o in compiled_unet.model.graph.output}


def test_a_pair_with_weights_beside_it_answers_as_one_without(
    outside: Compiled, compiled_unet: Compiled, published: Path, tmp_path: Path
) -> None:
    """Also through links, file by file, as the embedded server is given it; the digest covers both files."""
    expected = answer(OnnxSampler(compiled_unet.model.SerializeToString()), compiled_unet)
    file = file_of(published)
    assert load_model(published).contract.samplers[0].digest == digest_of_model(file) != digest_of_file(file)
    for name in (MODEL, DATA):
        (tmp_path / name).symlink_to(file.with_name(name))
    for path in (file, tmp_path / MODEL):
        np.testing.assert_array_equal(answer(OnnxSampler(path), outside), expected)


def test_publishing_it_again_changes_nothing(outside: Compiled, published: Path) -> None:
    """The file of weights counts when two models are compared."""
    before = file_of(published).with_name(DATA).stat().st_mtime_ns
    assert publish_pair(outside, published.parents[1]) == published.parent
    assert file_of(published).with_name(DATA).stat().st_mtime_ns == before


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda file: flipped(file.with_name(DATA)),
        lambda file: file.with_name(DATA).unlink(),
        flipped,
        lambda file: shutil.copyfile(file, file.with_name(DATA)),
    ],
    ids=["weights changed", "weights missing", "graph changed", "weights replaced"],
)
def test_what_is_not_the_proven_model_is_not_loaded(published: Path, tamper) -> None:  # type: ignore[no-untyped-def]
    """One bit in either file is as good as another model."""
    tamper(file_of(published))
    with pytest.raises(ContractError, match="publish the model again"):
        load_model(published)


def test_a_stray_file_beside_a_whole_model_is_noticed(compiled_unet: Compiled, tmp_path: Path) -> None:
    """Nothing of that name was published with it."""
    version = publish_pair(compiled_unet, tmp_path) / "1"
    file_of(version).with_name(DATA).write_bytes(b"stray")
    with pytest.raises(ContractError, match="publish the model again"):
        load_model(version)


def test_half_precision_weights_lie_outside_as_well(unet: UNet) -> None:
    """Both proofs, the rounding twin's included, find them."""
    draft = replace(DRAFT, precision=Precision.FP16)
    compiled = compile_sampler(unet, draft, torch.randn(2, 1, 16, 24), Options(largest_file=1000))
    assert compiled.weights is not None
    assert any(
        entry.data_type == onnx.TensorProto.FLOAT16 and entry.data_location == onnx.TensorProto.EXTERNAL
        for entry in compiled.model.graph.initializer
    )


def test_members_of_an_ensemble_are_compared_with_their_weights(outside: Compiled) -> None:
    """The same member twice is found out, wherever its weights lie."""
    with pytest.raises(EnsembleRefused, match="answers exactly as member 1"):
        check_members([outside, outside], np.zeros((1, 1, 16, 24), np.float32))


def test_an_onnx_file_becomes_such_a_pair_too(tmp_path: Path) -> None:
    """The ONNX front end takes the same way out."""
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[N, 1, 16, 24] image) => (float[N, 2, 16, 24] y) {
        h = Conv <pads = [1, 1, 1, 1]> (image, k) d = Dropout (h, r) y = Conv (d, l) }"""
    generator = np.random.default_rng(0)
    weights = {
        "k": generator.standard_normal((64, 1, 3, 3)).astype(np.float32),
        "l": generator.standard_normal((2, 64, 1, 1)).astype(np.float32) * 0.1,
        "r": np.float32(0.4),
    }
    graph = onnx.parser.parse_model(text)
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    draft = contract(spatial=(16, 24))
    example = generator.standard_normal((1, 1, 16, 24)).astype(np.float32)
    compiled = compile_sampler(graph, draft, torch.from_numpy(example), Options(largest_file=1000))
    assert compiled.weights is not None
    load_model(publish_pair(compiled, tmp_path) / "1")
