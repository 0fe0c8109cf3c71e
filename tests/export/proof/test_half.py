"""Half precision, exported and proven: the outputs stay single, the tolerance is its own, overflow is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Activation, Contract, Precision, Task, load_contract
from equipoise_core.loading import load_model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_export.command import app
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.errors import ProofRefused
from equipoise_export.graph.marker import Call
from equipoise_export.graph.session import session
from equipoise_export.proof.parity import prove
from equipoise_export.proof.rounding import REACHED, rounded
from equipoise_export.publish.repository import publish_pair
from equipoise_export.publish.triton_config import aggregator_config, sampler_configs
from onnx import TensorProto, numpy_helper
from torch import nn
from typer.testing import CliRunner

from ...support.graphs import contract
from ...support.networks import Classifier, UNet

pytestmark = pytest.mark.slow  # each export is proven twice

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def in_half(network: nn.Module, draft: Contract) -> Compiled:
    example = torch.randn(2, draft.channels, *draft.nominal, generator=torch.Generator().manual_seed(0))
    return compile_sampler(network, replace(draft, precision=Precision.FP16), example)


@pytest.fixture(scope="module")
def half_unet(unet: UNet) -> Compiled:
    return in_half(unet, contract(spatial=("X", "Y"), nominal=(16, 24), multiple=4))


def volume() -> UNet:
    torch.manual_seed(0)
    network = UNet(3, 1, 3, (4, 8), 0.3)
    with torch.no_grad():
        network.head.weight *= 20
    return network


@pytest.mark.parametrize("dropout", [0.001, 0.3, 0.97])
def test_a_classifier_in_half_is_proven(dropout: float) -> None:
    """However seldom or often it drops: kept units are scaled by up to 33."""
    torch.manual_seed(0)
    network = Classifier(dropout=0.3)
    network.head_dropout.p = dropout
    compiled = in_half(network, contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16)))
    checks = {check.name for check in compiled.proof.checks}
    assert {"largest activation in half", "probabilities: mean change by rounding"} <= checks


@pytest.mark.slow
@pytest.mark.parametrize("activation", Activation)
def test_a_volume_in_half_is_proven(activation: Activation) -> None:
    """3D, several classes, exclusive or not."""
    draft = contract(classes=3, spatial=("X", "Y", "Z"), nominal=(8, 8, 12), multiple=2, activation=activation)
    compiled = in_half(volume(), draft)
    assert compiled.contract.precision is Precision.FP16


def test_inputs_and_outputs_of_a_half_sampler_are_single(half_unet: Compiled, compiled_unet: Compiled) -> None:
    """Inputs and outputs are those of the single-precision model; the weights take half the room."""
    graph = half_unet.model.graph
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in [*graph.input, *graph.output]}
    assert kinds == {"image": FLOAT, "masks": UINT8, **dict.fromkeys(["sum_p", "sum_p2", "sum_entropy", "volumes"], FLOAT)}  # noqa: E501  # fmt: skip
    weights = [entry for entry in graph.initializer if len(entry.dims) == 4]
    assert weights and all(entry.data_type == HALF for entry in weights)
    both = sampler_configs(half_unet.contract), sampler_configs(compiled_unet.contract)
    for configs in both:
        for config in configs.values():
            config.optimization.Clear()  # the GPU's options differ
    assert both[0] == both[1]
    public = aggregator_config(half_unet.contract), aggregator_config(compiled_unet.contract)
    for config in public:
        config.parameters.clear()
    assert public[0] == public[1]


@pytest.mark.parametrize("spatial", [(16, 24), (8, 40), (4, 4)])
def test_half_and_single_agree_at_every_size(
    half_unet: Compiled, compiled_unet: Compiled, spatial: tuple[int, int]
) -> None:
    """With the same masks, images that end before their tensor does included."""
    images = np.random.default_rng(0).standard_normal((2, 1, *spatial)).astype(np.float32)
    images[1, :, -1] = PADDING_VALUE
    layout = mask_layout(half_unet.contract, spatial)
    masks = np.stack([draw_masks(layout, n, half_unet.contract.digest, 0, 5) for n in range(2)])
    feeds = {"image": images, "masks": masks}
    expected = session(compiled_unet.model).run(None, feeds)
    twin = session(rounded(half_unet.model, half_unet.halves))
    for model in (session(half_unet.model), twin):
        got = model.run(["sum_p", "sum_p2", "sum_entropy", "volumes"], feeds)
        for one, other in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_allclose(one / 5, other / 5, atol=5e-3)
        np.testing.assert_allclose(got[3], expected[3], rtol=5e-3)
    assert np.abs(twin.run(["sum_p"], feeds)[0] - expected[0]).max() > 1e-5  # it does round


def test_rounding_is_that_of_half(half_unet: Compiled) -> None:
    """Every half tensor of the twin holds half numbers only."""
    twin = rounded(half_unet.model, half_unet.halves)
    name = next(o.name for o in twin.graph.output if o.name.startswith(REACHED) and "the image" not in o.name)
    tensor = name.removeprefix(REACHED)
    twin.graph.output.append(onnx.helper.make_tensor_value_info(tensor, FLOAT, None))
    layout = mask_layout(half_unet.contract, (16, 24))
    feeds = {
        "image": np.random.default_rng(0).standard_normal((1, 1, 16, 24)).astype(np.float32),
        "masks": draw_masks(layout, 0, half_unet.contract.digest, 0, 2)[None],
    }
    (values,) = session(twin).run([tensor], feeds)
    np.testing.assert_array_equal(values, values.astype(np.float16).astype(np.float32))


def test_activations_beyond_half_are_refused_with_their_layer() -> None:
    """65504 is the end; the layer behind would bring them back, which single precision does not mind."""
    torch.manual_seed(0)
    network = Classifier()
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    with torch.no_grad():
        network.mix.weight *= 1e5
        network.mix.bias *= 1e5
        network.head.weight *= 1e-5
    compile_sampler(network, draft, torch.randn(2, 1, 16, 16))
    with pytest.raises(ProofRefused, match="half precision ends at 65504") as caught:
        in_half(network, draft)
    assert caught.value.site == "mix"
    assert "--precision fp32" in caught.value.remedy


def test_activations_near_the_end_of_half_are_refused_too() -> None:
    """Other images go further than those of the proof: a quarter of half's range is what they may reach."""
    torch.manual_seed(0)
    network = Classifier()
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    with torch.no_grad():
        network.mix.weight.zero_()
        network.mix.bias.fill_(20000.0)
        network.mix.weight += torch.eye(16)[:, :, None, None]
        network.head.weight *= 1e-4
    with pytest.raises(ProofRefused, match="other images may go 4 times as far"):
        in_half(network, draft)


def test_a_site_that_half_lost_is_refused(half_unet: Compiled, unet: UNet) -> None:
    """The proof in half sees what its tolerance can: a site without effect."""
    from equipoise_export.proof.references import TorchNetwork

    mutant = onnx.ModelProto()
    mutant.CopyFrom(half_unet.model)
    for entry in mutant.graph.initializer:
        if list(entry.dims) == [256, 8]:
            entry.CopyFrom(numpy_helper.from_array(np.ones((256, 8), np.float16), entry.name))
    network = TorchNetwork(unet, ("bottleneck_dropout", "decoder_dropout.1"), (Call(0), Call(1)))
    with pytest.raises(ProofRefused):
        prove(network, mutant, half_unet.contract, torch.randn(1, 1, 16, 24).numpy(), half_unet.halves)


class Faint(nn.Module):
    """A classifier whose logits are small differences of large numbers, beside which its dropout hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head, self.aside = nn.Linear(16, 3), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.trunk(image).amax((2, 3)) + 50
        return self.head(features) - 50 * self.head.weight.sum(1) + 1e-5 * self.aside(self.drop(features))


def test_rounding_that_drowns_the_variance_is_refused() -> None:
    """Samples that differ by less than half can tell apart: their variance would be one of rounding."""
    torch.manual_seed(0)
    with pytest.raises(ProofRefused, match="rounded to half precision"):
        in_half(Faint(), contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16)))


def test_weights_beyond_half_stay_single() -> None:
    """A weight of 10⁵ is no half number; its convolution is computed in single, and nothing is lost."""
    torch.manual_seed(0)
    network = Classifier()
    with torch.no_grad():
        network.head.weight *= 1e-5
        network.mix.weight.mul_(1e5)
        network.mix.weight[0, 0] = 1e5
        network.trunk[2][4].weight *= 1e-5  # the BatchNorm that is folded into the convolution before
        network.trunk[2][4].bias *= 1e-5
    compiled = in_half(copy.deepcopy(network), contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16)))
    kinds = {tuple(entry.dims): entry.data_type for entry in compiled.model.graph.initializer if len(entry.dims) == 4}
    assert kinds[16, 16, 1, 1] == FLOAT and kinds[8, 1, 3, 3] == HALF


def test_a_pair_in_half_states_its_precision(half_unet: Compiled, tmp_path: Path) -> None:
    """In its contract, in the ONNX file and in the proof, with the tolerance; it loads like any other."""
    folder = publish_pair(half_unet, tmp_path)
    assert load_contract(folder / "1" / "contract.json").precision is Precision.FP16
    assert load_model(folder / "1").contract.precision is Precision.FP16
    proof = json.loads((tmp_path / "small_sampler" / "1" / "proof.json").read_text())
    assert (proof["precision"], proof["tolerance"]) == ("fp16", 5e-3)
    metadata = {entry.key: entry.value for entry in half_unet.model.metadata_props}
    assert json.loads(metadata["equipoise.contract"])["precision"] == "fp16"


def test_the_command_exports_in_half_precision(tmp_path: Path) -> None:
    """As a user types it."""
    arguments = [
        f"{Path(__file__).parents[2] / 'support' / 'networks.py'}:Classifier",
        "--name", "small", "--task", "classification",
        "--input-shape", "1,16,16", "--classes", "a,b,c", "--sizes", "fixed", "--into", str(tmp_path),
        "--precision", "fp16", "--json",
    ]  # fmt: skip
    torch.manual_seed(0)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert load_contract(tmp_path / "small" / "1" / "contract.json").precision is Precision.FP16
