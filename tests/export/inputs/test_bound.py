"""What a network takes besides the image is bound to constants, and the contract says to which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Contract, Task, parse_contract
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.errors import CaptureRefused, SpecError
from equipoise_export.inputs.bound import read_constants
from equipoise_export.options import Options
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

from ...support.exported import noise
from ...support.graphs import contract

DRAFT = contract(task=Task.CLASSIFICATION, classes=3, spatial=(8, 8))


class Conditioned(nn.Module):
    """The constants come first; one is concatenated for each image, one is an index, one switches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.embedding = nn.Conv2d(1, 8, 3), nn.Dropout(0.3), nn.Embedding(10, 8)
        self.head = nn.Linear(8 + 2, 3)

    def forward(self, step: Tensor, image: Tensor, *, dose: Tensor, mode: str = "training") -> Any:
        features = torch.relu(self.conv(image)).mean((2, 3)) + self.embedding(step)
        logits = self.head(torch.cat([self.drop(features), dose], 1))
        return {"loss": logits.mean()} if mode == "training" else logits


def made(bind: dict[str, Any], module: nn.Module | onnx.ModelProto | None = None) -> Compiled:
    torch.manual_seed(0)
    return compile_sampler(module or Conditioned(), DRAFT, noise(2, 1, 8, 8), Options(bind=bind))


def test_a_module_is_exported_with_its_constants() -> None:
    """A number where a tensor is declared, a vector for each image, a word; the proof runs both sides with them."""
    found = made({"step": 3, "dose": [[0.5, 2.0]], "mode": "answer"}).contract
    step, dose, mode = found.constants
    assert (step.name, step.dtype, step.shape, step.values) == ("step", "int64", (), (3,))
    assert (dose.dtype, dose.shape, dose.values) == ("float32", (1, 2), (0.5, 2.0)) and mode.values == ('"answer"',)
    assert parse_contract(found.document()) == found
    other = made({"step": 4, "dose": [[0.5, 2.0]], "mode": "answer"}).contract
    assert other.digest != found.digest and "constants" not in DRAFT.document()


@pytest.mark.parametrize(
    ("bind", "error", "said"),
    [
        ({}, CaptureRefused, r"--bind image=VALUE --bind dose=VALUE"),
        ({"stop": 1}, SpecError, "--bind stop: its forward takes step, image, dose, mode"),
        ({"step": [1], "image": 1, "dose": 1, "mode": 1}, SpecError, "nothing that its forward takes is left"),
        (
            {"step": [1], "dose": [1, 2], "mode": "answer"},
            CaptureRefused,
            r"a first axis of 1: --bind NAME=\[\[1,2,3\]\]",
        ),
        ({"step": [1], "dose": [["a"]]}, SpecError, "expected numbers"),
        ({"step": [1], "dose": [[1.0, float("nan")]], "mode": "answer"}, SpecError, "NaN or infinity"),
    ],
)
def test_what_cannot_be_bound_is_refused_by_its_cause(bind: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        made(bind)


def vendor(batch: int | str = "N", kind: int = TensorProto.FLOAT, ir_version: int = 8) -> onnx.ModelProto:
    """`x [batch, 1, 8, 8]` and `t [batch, 3]`, which is added to the logits `y`; `k` follows from `t` alone."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 3)), "p": np.float32(0.3)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Dropout", ["f", "p"], ["d"], name="drop"),
        helper.make_node("MatMul", ["d", "w"], ["m"]),
        helper.make_node("Cast", ["t"], ["k"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["m", "k"], ["c"], axis=1),
        helper.make_node("Split", ["c"], ["a", "b"], axis=1),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8]),
        helper.make_tensor_value_info("t", kind, [batch, 3]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "k")]
    stored = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "vendor", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def compiled(file: onnx.ModelProto, output: str = "y", **bind: Any) -> Contract:
    return compile_sampler(file, DRAFT, noise(2, 1, 8, 8), Options(bind=bind, output=output)).contract


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("value", [2, [1, 2, 3], [[1, 2, 3]]])
def test_an_input_of_a_file_is_bound_for_each_image(batch: int | str, value: Any) -> None:
    """A number fills it, a vector is that of every image; the type is the file's. Concatenated, it needs N rows."""
    (stated,) = compiled(vendor(batch, TensorProto.INT64), t=value).constants
    assert (stated.dtype, stated.shape) == ("int64", (1, 3))


def test_a_file_of_a_newer_format_is_read() -> None:
    """The version that today's libraries write is ahead of what ONNX Runtime reads; nothing else differs."""
    assert compiled(vendor(ir_version=14), t=1).constants


@pytest.mark.parametrize(
    ("bind", "output", "said"),
    [
        ({}, "y", r"takes x float \[N, 1, 8, 8\]; t float \[N, 3\]; a sampler has one image.*--bind t=VALUE"),
        ({"t": [1, 2]}, "y", r"a value of shape \[1, 2\]; expected t float \[N, 3\]"),
        ({"u": 1}, "y", r"--bind u: the file takes x float"),
        ({"t": 1}, "k", "does not depend on the image.*Choose another output .--output.: y"),
        ({"t": 1}, "m", "there is no output m"),
    ],
)
def test_a_file_is_refused_by_its_cause(bind: dict[str, Any], output: str, said: str) -> None:
    """Never in ONNX Runtime's words."""
    with pytest.raises((CaptureRefused, SpecError), match=said):
        compiled(vendor(), output, **bind)


def test_values_are_numbers_lists_words_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    save_file({"c": np.zeros(3, np.float32), "d": np.ones(1, np.float32)}, tmp_path / "c.safetensors")
    read = read_constants(["n=0.5", "l=[1,2]", "w=infer", f"a={tmp_path / 'a.npy'}", f"c={tmp_path / 'c.safetensors'}"])
    assert (read["n"], read["l"], read["w"], read["a"].shape, read["c"].shape) == (0.5, [1, 2], "infer", (2, 2), (3,))
    for pair, said in (
        ("n", "expected NAME=VALUE"), ("a=none.npy", "no such file"),
        (f"e={tmp_path / 'c.safetensors'}", "it holds c, d; expected e, or one tensor"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            read_constants([pair])
