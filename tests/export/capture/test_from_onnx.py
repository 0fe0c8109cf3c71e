"""ONNX files as vendors have them: old opsets, Dropout in any form, one image a batch, names that torch gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Contract, Task, load_contract
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.command import app
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.errors import CaptureRefused, ExportRefused
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.options import Options
from onnx import numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

from ...support.graphs import contract

IMAGE = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))


def file(
    body: str, opset: int = 18, batch: str = "N", weights: dict[str, np.ndarray] | None = None, result: str = "y"
) -> onnx.ModelProto:
    """A classifier of 3 classes in ONNX text: `f` is the image in a row, `w` weights [24, 3]."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    vendor (float[{batch}, 1, 4, 6] x) => (float {result}) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    given = {"w": np.random.default_rng(1).standard_normal((24, 3)).astype(np.float32), **(weights or {})}
    used = {name for node in model.graph.node for name in node.input}
    used |= {name for node in model.graph.node for a in node.attribute for inner in a.g.node for name in inner.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in given.items() if name in used
    )
    return model


def draft(task: Task = Task.CLASSIFICATION, classes: int = 3) -> Contract:
    return contract(task=task, classes=classes, spatial=(4, 6))


def sites(compiled: Compiled) -> list[tuple[str, str, tuple[int | str, ...], float]]:
    return [(site.name, site.kind.value, site.shape, site.p) for site in compiled.contract.sites]


HALF = {"r": np.array(0.25, np.float32), "on": np.array(True), "off": np.array(False)}
FORMS = {
    "opset 7: a ratio": (7, "d = Dropout <ratio = 0.25> (f)"),
    "opset 10: ratio and mask": (10, "d, mask = Dropout <ratio = 0.25> (f)"),
    "opset 11, no ratio": (11, "d = Dropout (f)"),
    "opset 12: an input, training": (12, "d = Dropout (f, r, on)"),
    "opset 13: an input, inference": (13, "d = Dropout (f, r, off)"),
    "opset 18: an input alone": (18, "d = Dropout (f, r)"),
    "opset 22": (22, "d = Dropout (f, r, on)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_dropout_in_every_form_is_a_site(form: str) -> None:
    """Attribute or input, training or inference mode: one site with its ratio."""
    opset, dropout = FORMS[form]
    body = f"f = Flatten <axis = 1> (x) {dropout} m = MatMul(d, w) y = Softmax <axis = 1> (m)"
    compiled = compile_sampler(file(body, opset, weights=HALF), draft(), IMAGE)
    assert sites(compiled) == [("d", "element", (24,), 0.5 if "no ratio" in form else 0.25)]


@pytest.mark.parametrize(
    ("opset", "end", "reason"),
    [
        (18, "y = Softmax <axis = 2> (c)", "differs from the file itself by"),
        (18, "y = Softmax <axis = -1> (c)", "differs from the file itself by"),
        (11, "y = Softmax <axis = 1> (c)", "has shape"),  # before opset 13 over all that follows, pixels too
    ],
)
def test_a_softmax_that_is_not_over_the_classes_is_refused(opset: int, end: str, reason: str) -> None:
    """The sampler's is over the classes: its answer would be another one than the file's."""
    kernel = np.random.default_rng(1).standard_normal((3, 1, 1, 1)).astype(np.float32)
    body = f"d = Dropout(x) c = Conv(d, k) {end}"
    with pytest.raises(ExportRefused, match=reason):
        compile_sampler(file(body, opset, weights={"k": kernel}), draft(Task.SEGMENTATION), IMAGE)
    over_classes = file("d = Dropout(x) c = Conv(d, k) y = Softmax <axis = 1> (c)", 18, weights={"k": kernel})
    proof = compile_sampler(over_classes, draft(Task.SEGMENTATION), IMAGE).proof
    assert "same as what was read" in proof.checks[0].name and proof.checks[0].value < 1e-6


def test_sites_of_a_file_have_distinct_names_and_can_be_chosen() -> None:
    """A node and a tensor may be called alike; --sites chooses among Dropout nodes, --p reaches all that are chosen."""
    body = "f = Flatten <axis = 1> (x) d = Dropout(f) e = Dropout(d) g = Dropout(e) y = MatMul(g, w)"
    model = file(body)
    model.graph.node[2].name = "d"
    compiled = compile_sampler(model, draft(), IMAGE, Options(p=0.3, sites="!g"))
    assert [(name, p) for name, _, _, p in sites(compiled)] == [("d", 0.3), ("d#2", 0.3)]


BRANCH = """c = ReduceSum <keepdims = 0> (x) zero = Constant <value = float {0.0}> () up = Greater(c, zero)
f = Flatten <axis = 1> (x)
d = If (up) <
    then_branch = one () => (float t) { t = Dropout(f) },
    else_branch = two () => (float e) { e = Identity(f) }
> y = MatMul(d, w)"""
LOOP = """f = Flatten <axis = 1> (x) trips = Constant <value = int64 {3}> () go = Constant <value = bool {1}> ()
d = Loop (trips, go, f) <
    body = steps (int64 i, bool c, float a) => (bool b, float z) { b = Identity(c) z = Dropout(a) }
> y = MatMul(d, w)"""


@pytest.mark.parametrize(
    ("body", "site", "reason"),
    [
        (BRANCH, "t", "inside a loop or a branch"),
        (LOOP, "z", "inside a loop or a branch"),
        ("f = Flatten <axis = 1> (x) d, m = Dropout(f) k = Cast <to = 1> (m) e = Mul(d, k) y = MatMul(e, w)",
         "d", "its mask is used elsewhere"),
        ("f = Flatten <axis = 1> (x) n = Size(w) c = Cast <to = 1> (n) r = Reciprocal(c) d = Dropout(f, r) "
         "y = MatMul(d, w)",
         "d", "ratio is not a constant"),
        ("b = BatchNormalization <training_mode = 1> (x, o, o, o, o) f = Flatten <axis = 1> (b) y = MatMul(f, w)",
         "b", "BatchNorm is in training mode"),
        ("f = Flatten <axis = 1> (x) y = MatMul(f, w)", "the whole network", "no Dropout node"),
        ("s = ReduceSum <keepdims = 0> (x, z) f = Flatten <axis = 0> (s) d = Dropout(f) y = MatMul(d, w)",
         "equipoise logits", "for one image at a time"),
        ("r = RandomNormalLike(x) s = Add(x, r) f = Flatten <axis = 1> (s) d = Dropout(f) y = MatMul(d, w)",
         "r", "RandomNormalLike draws random numbers of its own"),
        ("u = RandomUniformLike(x) k = Bernoulli(u) s = Mul(x, k) f = Flatten <axis = 1> (s) y = MatMul(f, w)",
         "u", "RandomUniformLike draws random numbers of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_refused_with_site_and_remedy(body: str, site: str, reason: str) -> None:
    """Control flow around dropout, masks that are used, ratios that are computed, statistics of the batch."""
    weights = {"o": np.ones(1, np.float32), "z": np.zeros(1, np.int64)}
    with pytest.raises(CaptureRefused, match=reason) as caught:
        compile_sampler(file(body, weights=weights), draft(), IMAGE)
    assert caught.value.site == site
    assert caught.value.remedy.endswith(".")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("float16[N, 1, 4, 6]", "its input is float16; images come as float32"),
        ("double[N, 1, 4, 6]", "its input is double"),
        ("uint8[N, 1, 4, 6]", "its input is uint8"),
        ("float[N, 4, 6, 1]", r"its channels come last: x float \[N, 4, 6, 1\]"),
        ("float[1, 4, 6, 1]", "its channels come last"),
    ],
)
def test_an_image_of_another_kind_is_refused_by_its_cause(image: str, reason: str) -> None:
    """Not by what fails later: a type that does not fit, a kernel that finds no channels."""
    model = file("c = Cast <to = 1> (x) f = Flatten <axis = 1> (c) d = Dropout(f) y = MatMul(d, w)")
    model.graph.input[0].CopyFrom(
        onnx.parser.parse_graph(f"g ({image} x) => (float y) {{ y = Cast <to = 1> (x) }}").input[0]
    )
    with pytest.raises(CaptureRefused, match=reason) as caught:
        compile_sampler(model, draft(), IMAGE)
    assert caught.value.site == "x" and caught.value.remedy.endswith(".")


FIXED = {
    "reshape": "f = Reshape(x, row) d = Dropout(f) y = MatMul(d, w)",
    "tokens": """t = Reshape(x, tokens) c = Concat <axis = 1> (token, t) s = Transpose <perm = [1, 0, 2]> (c)
        h = Reshape(s, heads) d = Dropout(h) b = Reshape(d, back) q = Transpose <perm = [1, 0, 2]> (b)
        o = Split <axis = 1> (q, parts) f = Flatten <axis = 1> (o) y = MatMul(f, w)""",
    "resize": """r = Resize <mode = "nearest"> (x, , , sizes) d = Dropout(r) a = AveragePool <kernel_shape = [2, 2],
        strides = [2, 2]> (d) f = Flatten <axis = 1> (a) y = MatMul(f, w)""",
}
NUMBERS = {
    "row": np.array([1, 24]),
    "tokens": np.array([1, 6, 4]),
    "token": np.ones((1, 1, 4), np.float32),
    "heads": np.array([7, 2, 2]),
    "back": np.array([7, 1, 4]),
    "parts": np.array([6, 1]),
    "sizes": np.array([1, 1, 8, 12]),
}


@pytest.mark.parametrize("kind", FIXED)
def test_a_file_made_for_one_image_serves_many(kind: str) -> None:
    """Reshape, class tokens, heads folded into the batch, Resize: each image of a batch is answered as alone."""
    body = FIXED[kind].replace("o = Split", "o, rest = Split")
    compiled = compile_sampler(file(body, batch="1", weights=NUMBERS), draft(), IMAGE)
    layout = mask_layout(compiled.contract, (4, 6))
    pictures = np.random.default_rng(2).standard_normal((3, 1, 4, 6)).astype(np.float32)
    masks = np.stack([draw_masks(layout, seed, compiled.contract.digest, 0, 4) for seed in range(3)])
    sampler = OnnxSampler(compiled.model.SerializeToString())
    together = sampler(pictures, masks)["probabilities"]
    for index in range(3):
        alone = sampler(pictures[index : index + 1], masks[index : index + 1])["probabilities"]
        np.testing.assert_allclose(together[index], alone[0], atol=1e-6)


class Tokens(nn.Module):
    """A small transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer4 = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), tokens], 1)
        return self.head(self.layer4(tokens)[:, 0])


class Residual(nn.Module):
    """A small residual network; its last stage is called layer4, as torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head((x + self.layer4(x)).mean((2, 3)))


def unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=1)


VENDOR: dict[str, tuple[Any, str, str, str]] = {
    "residual": (Residual, "classification", "a,b,c", "layer4*"),
    "tokens": (Tokens, "classification", "a,b,c", "layer4*"),
    "unet": (unet, "segmentation", "background,organ", "model.2*"),
}


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
@pytest.mark.parametrize("name", VENDOR)
@pytest.mark.filterwarnings("ignore")
def test_dropout_is_put_into_a_file_that_torch_wrote(name: str, dynamo: bool, tmp_path: Path) -> None:
    """Exported in inference mode for one image: a pattern of module names puts sites in, the whole command succeeds."""
    make, task, classes, pattern = VENDOR[name]
    torch.manual_seed(0)
    network = make().eval()
    path = tmp_path / "vendor.onnx"
    options: dict[str, Any] = {"external_data": False} if dynamo else {"opset_version": 17}
    torch.onnx.export(network, (torch.randn(1, 1, 16, 24),), str(path), dynamo=dynamo, verbose=False, **options)
    arguments = [str(path), "--name", name, "--task", task, "--input-shape", "1,16,24", "--classes", classes]
    command = [*arguments, "--into", str(tmp_path / "repo"), "--p", "0.1", "--json"]
    result = CliRunner().invoke(app, [*command, "--dropout-at", pattern])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    found = load_contract(tmp_path / "repo" / name / "1" / "contract.json").sites
    assert found
    assert {site.p for site in found} == {0.1}
    assert len(printed["samplers"][0]["proof"]["sites"]) == len(found)
    refused = CliRunner().invoke(app, [*command, "--dropout-at", "nothing*"])
    assert refused.exit_code == 1
    assert "no activation is called nothing*" in refused.output
    assert ("layer4" if name != "unet" else "model.2") in refused.output


def test_dropout_behind_dropout_drops_elements_of_the_same_tensor() -> None:
    """A mask's own output has the rank of what it masks: nothing is guessed, and whole channels are not dropped."""
    body = "r = Relu (x) d = Dropout (r, p) e = Dropout (d, p) f = Flatten (e) y = MatMul (f, w)"
    compiled = compile_sampler(file(body, weights={"p": np.array(0.25, np.float32)}), draft(), IMAGE)
    assert [(kind, shape) for _, kind, shape, _ in sites(compiled)] == [("element", (1, 4, 6))] * 2


@pytest.mark.parametrize("last", ["y = ArgMax <axis = 1> (z)", "k = ArgMax <axis = 1> (z) y = Cast <to = 1> (k)"])
def test_labels_are_refused_by_their_cause(last: str) -> None:
    """There is nothing to take a mean of."""
    body = f"f = Flatten (x) d = Dropout (f) z = MatMul (d, w) {last}"
    with pytest.raises(CaptureRefused, match="labels or decisions"):
        compile_sampler(file(body), draft(), IMAGE)


def test_a_file_for_several_images_is_exported_without_a_measured_gain(tmp_path: Path) -> None:
    """Its pass is not one image's."""
    onnx.save(file("f = Flatten (x) d = Dropout (f) y = MatMul (d, w)", batch="4"), tmp_path / "vendor.onnx")
    arguments = ["--name", "small", "--task", "classification", "--input-shape", "1,4,6", "--classes", "a,b,c"]
    into = ["--into", str(tmp_path / "models"), "--json"]
    result = CliRunner().invoke(app, [str(tmp_path / "vendor.onnx"), *arguments, *into])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cost"]["measured_gain"] is None
