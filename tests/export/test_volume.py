"""Networks of 2D images that take volumes slice by slice."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equipoise_core.budget import volume_bytes
from equipoise_core.contract import Contract, Precision, parse_contract
from equipoise_core.masks import draw_masks, mask_layout, unpack_masks
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_export.compile import compile_first_pass, compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.draft import Description, example_image
from equipoise_export.errors import ProofRefused, SpecError
from equipoise_export.options import DEFAULTS, Options, Sizes
from equipoise_export.publish.memory import arena_bytes
from equipoise_export.volume import as_volumes
from onnx import helper, numpy_helper
from torch import Tensor, nn


class Net(nn.Module):
    """Channel and element dropout, two resolutions; its head is scaled up so that masks move its answer."""

    def __init__(self, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.channel, self.element = nn.Dropout2d(0.3), nn.Dropout(0.2)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Conv2d(6, classes, 1)
        with torch.no_grad():
            self.head.weight *= 10

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        deep = self.element(torch.relu(self.second(self.channel(first))))
        return self.head(first + self.up(deep))  # type: ignore[no-any-return]


def network(channels: int = 1, classes: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(channels, classes).eval()


def volume(slices: int = 1, classes: int = 2, sizes: Sizes = Sizes.AUTO, **more: Any) -> Contract:
    """A draft for slices of 16 × 24."""
    names = tuple(f"class {index}" for index in range(classes))
    stated = {"name": "small", "task": "segmentation", "shape": (slices, 16, 24), "multiple": 4, "classes": names}
    return Description.read({**stated, "orientation": "SPL", "slices": slices, **more}).contract(sizes)


def compiled(module: nn.Module | onnx.ModelProto, draft: Contract, options: Options = DEFAULTS) -> Compiled:
    return compile_sampler(module, draft, example_image(draft), options)


def run(made: Compiled, image: np.ndarray, samples: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Packed masks `[N, T, B]` and the sampler's outputs."""
    layout = mask_layout(made.contract, image.shape[2:])
    masks = np.stack([draw_masks(layout, seed, made.contract.digest, 0, samples) for seed in range(len(image))])
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return masks, dict(zip(names, session.run(None, {"image": image, "masks": masks}), strict=True))


def by_hand(module: Net, made: Compiled, image: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """p `[K, D, H, W]` of a volume `[D, H, W]` under one sample's masks: slices and neighbours one by one."""
    contract = made.contract
    assert contract.slices is not None
    keeps = unpack_masks(mask_layout(contract, image.shape), packed[None])
    channel, element = (torch.from_numpy(keep.astype(np.float32)) for keep in keeps)
    last, around = len(image) - 1, contract.slices // 2
    answers = []
    with torch.no_grad():
        for d in range(last + 1):
            seen = np.stack([image[min(max(d + offset, 0), last)] for offset in range(-around, around + 1)])
            first = torch.relu(module.first(torch.from_numpy(seen)[None]))
            deep = torch.relu(module.second(first * channel[..., None, None] / 0.7)) * element / 0.8
            answers.append(torch.softmax(module.head(first + module.up(deep)).double(), 1)[0])
    return torch.stack(answers, 1).numpy()


@pytest.mark.parametrize("slices", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_volume_is_answered_slice_by_slice_under_one_set_of_masks(slices: int) -> None:
    """As PyTorch does it by hand: neighbours in order, those at the ends repeated; any number of slices, also one."""
    module = network(slices, 3)
    made = compiled(module, volume(slices, classes=3))
    assert (made.contract.spatial, made.contract.slices, made.contract.channels) == (("D", "H", "W"), slices, 1)
    for depth in (1, 4, 7):
        image = np.random.default_rng(0).standard_normal((2, 1, depth, 20, 16)).astype(np.float32)
        masks, found = run(made, image)
        for n in range(2):
            p = np.stack([by_hand(module, made, image[n, 0], packed) for packed in masks[n]])
            np.testing.assert_allclose(found["sum_p"][n], p.sum(0), atol=2e-5)
            np.testing.assert_allclose(found["sum_p2"][n], (p**2).sum(0), atol=2e-5)
            np.testing.assert_allclose(found["sum_entropy"][n, 0], -(p * np.log(p)).sum((0, 1)), atol=5e-5)
            np.testing.assert_allclose(found["volumes"][n], p.sum((2, 3, 4)), rtol=1e-5)


def test_a_sample_is_one_network_for_the_whole_volume() -> None:
    """A switch that is on or off: each sample's volume is all or nothing, never some of the slices."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout2d(0.5)

        def forward(self, x: Tensor) -> Tensor:
            on = self.drop(x * 0 + 1)
            return torch.cat([torch.full_like(on, 5.0), 40 * on - 35], 1)

    _, found = run(compiled(Switch(), volume()), np.ones((1, 1, 9, 16, 24), np.float32), samples=12)
    share = found["volumes"][0, :, 1] / (9 * 16 * 24)
    assert sorted(set(share.round(6))) == [0.0, 1.0]


def test_the_proof_is_of_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours in the wrong order, which one slice does not show, are refused."""
    compiler_pass = import_module("equipoise_export.passes.take_slices")  # the package has a function of that name
    right = compiler_pass._neighbours
    monkeypatch.setattr(compiler_pass, "_neighbours", lambda *given: right(*given)[::-1])
    with pytest.raises(ProofRefused, match="under the same masks"):
        compiled(network(3), volume(3))


@pytest.mark.slow
def test_padding_of_a_neighbour_is_not_padding_of_the_slice() -> None:
    """The volume counts the slice's own voxels; the network sees `fill` where there is none."""
    module = network(3)
    made = compiled(module, volume(3))
    image = np.random.default_rng(0).standard_normal((1, 1, 3, 16, 24)).astype(np.float32)
    padded, filled = image.copy(), image.copy()
    padded[0, 0, 0], filled[0, 0, 0] = PADDING_VALUE, 0.0
    masks, found = run(made, padded)
    p = np.stack([by_hand(module, made, filled[0, 0], packed) for packed in masks[0]])
    np.testing.assert_allclose(found["volumes"][0], p[:, :, 1:].sum((2, 3, 4)), rtol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_slices_times_samples(tmp_path: Path) -> None:
    """From 4 slices to 64 under 10 samples: the volume and its moments only, as the plan of memory has it."""
    made = compiled(network(), volume())
    file = tmp_path / "model.onnx"
    file.write_bytes(made.model.SerializeToString())

    def taken(depth: int, samples: int) -> int:
        size = (depth, 64, 64)
        masks = [1, samples, mask_layout(made.contract, size).bytes]
        return arena_bytes(file, {"image": [1, 1, *size], "masks": masks})[1]

    growth = taken(64, 10) - taken(4, 10)
    assert growth <= volume_bytes(made.contract, (64, 64, 64))
    assert growth < taken(4, 10)  # 16 × as many slices; folded into the batch they would take 16 × as much


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_one_size_half_precision_and_first_pass(precision: Precision) -> None:
    """Slices of one size, any number of them; in half precision the rounding inside the loop is proven."""
    module, draft = network(3), volume(3, sizes=Sizes.FIXED, precision=precision)
    made = compiled(module, draft, Options(sizes=Sizes.FIXED))
    assert made.contract.spatial == ("D", 16, 24) and made.contract.maximum == (1024, 16, 24)
    checks = {check.name for check in made.proof.checks}
    assert ("largest activation in half" in checks) == (precision is Precision.FP16)
    first = compile_first_pass(module, made, example_image(draft))
    assert first.contract.spatial == made.contract.spatial and not first.contract.sites


def test_an_onnx_file_of_slices() -> None:
    """A vendor's 2D file with its Dropout nodes takes volumes as a module does."""
    weights = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Dropout", ["x", "p"], ["d"], name="drop"),
        helper.make_node("Conv", ["d", "w"], ["y"], pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes, "vendor", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 16, 24])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(0.3), "p")],
    )  # fmt: skip
    made = compiled(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), volume(3))
    assert made.contract.spatial == ("D", 16, 24) and [site.shape for site in made.contract.sites] == [(3, 16, 24)]


@pytest.mark.slow
def test_weights_beyond_a_file_stay_outside_the_loop() -> None:
    """They lie in a file of their own, which a loop's inner graph cannot point into."""
    made = compiled(network(), volume(), Options(largest_file=1000))
    assert made.weights is not None and made.weights.path.stat().st_size > 1000


def test_the_contract_says_it_and_older_ones_do_not_change() -> None:
    """It is part of the digest only where it is stated; slices are not padded, nor cut into windows."""
    draft = volume(3)
    assert parse_contract(draft.document()) == draft and '"slices":3' in draft.graph_metadata()["equipoise.contract"]
    assert "slices" not in draft.of_network.document()
    assert draft.window((30, 17, 25)) == draft.padded((30, 17, 25)) == (30, 20, 28)
    assert not draft.in_windows((1000, 32, 48)) and draft.in_windows((10, 33, 48))
    assert draft.of_network.channels == 3 and draft.of_network.spatial == ("H", "W")


def test_images_of_the_network_become_volumes() -> None:
    """An example in Python is what the network takes: each slice of it comes, none is mixed with another."""
    images = torch.arange(2.0)[:, None, None, None] * 10 + torch.arange(3.0)[:, None, None] + torch.zeros(2, 3, 4, 5)
    made = as_volumes(images, 3, 3)
    assert made.shape == (2, 1, 3, 4, 5)
    assert made[:, 0, :, 0, 0].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert as_volumes(torch.randn(3, 2, 4, 5), 1, 4).shape == (2, 2, 4, 4, 5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"task": "classification"}, "a classification gives one answer for a volume.*--sizes fixed"),
        ({"orientation": None}, "--slices needs --orientation, the slices' own axis first: SPL"),
        ({"orientation": "RA"}, "expected 3 letters"),
        ({"orientation": "RLS"}, "expected 3 letters"),
        ({"slices": 2}, "expected 1 .a slice alone., or 3, 5"),
        ({"slices": 5, "shape": (3, 16, 24)}, "takes 5 slices as its channels; state 5,16,24, or C,D,H,W"),
        ({"slices": 3, "shape": (2, 8, 16, 24)}, "only slices of one channel"),
        ({"spacing": ((1, 1),)}, "describes 1 axes; a volume has 3, and its slices 2"),
        ({"shape": (16, 24)}, "C,H,W of the network, or C,D,H,W of a volume"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(more: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        volume(**{"slices": 3, **more})


def test_spacing_in_the_plane_alone() -> None:
    """Slices may then lie at any distance; all three may be stated as well."""
    assert volume(1, spacing=((0.5, 1), (0.5, 1))).spacing == ((0.001, 1000), (0.5, 1), (0.5, 1))
    assert volume(1, spacing=((3, 5), (0.5, 1), (0.5, 1))).spacing == ((3, 5), (0.5, 1), (0.5, 1))
    assert volume(1, maximum=(64, 32, 48)).maximum == (64, 32, 48) and volume(1, shape=(1, 6, 16, 24)).nominal[0] == 6


@pytest.mark.slow
def test_what_preprocessing_looks_at_is_said() -> None:
    """A z-score is that of the volume: who trained on z-scores of single slices has to know."""
    made = compiled(network(), volume())
    assert any("zscore looks at the whole volume" in note for note in made.notes)
    assert not any("looks at" in note for note in compiled(network(), volume(preprocess="divide:255")).notes)


@pytest.mark.slow
def test_colour_made_of_grey_slices() -> None:
    """Preprocessing makes three channels of a grey slice before the network takes it alone."""
    draft = volume(1, shape=(3, 16, 24), preprocess="rgb divide:255 imagenet")
    made = compiled(network(3), draft)
    assert (made.contract.channels, made.contract.image_channels) == (3, 1)
    assert replace(made.contract, sites=()) == draft
