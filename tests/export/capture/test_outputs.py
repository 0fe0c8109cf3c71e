"""One tensor of whatever a network answers with: found by its shape, or chosen by name or index."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation, Task
from equipoise_export.capture.outputs import choose_answer
from equipoise_export.compile import compile_sampler
from equipoise_export.errors import ExportRefused
from equipoise_export.graph.randomness import sampling
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.options import Options
from torch import Tensor, nn
from torch.nn import functional

from ...support.graphs import contract

Named = namedtuple("Named", ["logits", "aux"])  # as torchvision's InceptionOutputs


@dataclass
class Answered:
    """As transformers' outputs: a loss that is not there, logits, hidden states."""

    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Network(nn.Module):
    """Answers with whatever `wrap` makes of logits [N, 2, 8, 8], a coarser head [N, 2, 4, 4] and features."""

    def __init__(self, wrap: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.first, self.drop = nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.3)
        self.fine, self.coarse = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 2, 2)

    def forward(self, image: Tensor) -> Any:
        x = self.drop(torch.relu(self.first(image)))
        return self.wrap(self.fine(x), self.coarse(x), x)


FINE = "fine"
COARSE = "coarse"
CASES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], str | int | None, str]] = {
    "tensor": (lambda fine, coarse, x: fine, None, FINE),
    "tuple": (lambda fine, coarse, x: (x, fine), None, FINE),
    "tuple by index": (lambda fine, coarse, x: (fine, fine * 2), 0, FINE),
    "deep supervision, finest first": (lambda fine, coarse, x: [fine, coarse], None, FINE),
    "deep supervision, finest last": (lambda fine, coarse, x: [coarse, fine], None, FINE),
    "the coarser head": (lambda fine, coarse, x: [fine, coarse], "1", COARSE),
    "dict": (lambda fine, coarse, x: {"features": x, "out": fine}, None, FINE),
    "dict by key": (lambda fine, coarse, x: {"out": fine, "aux": fine * 2}, "out", FINE),
    "dict with numbers for keys": (lambda fine, coarse, x: {0: fine * 2, 1: fine}, "1", FINE),
    "ordered dict": (lambda fine, coarse, x: OrderedDict(out=fine, aux=x), None, FINE),
    "list in a dict": (lambda fine, coarse, x: {"heads": [fine * 2, fine]}, "heads.1", FINE),
    "named tuple by name": (lambda fine, coarse, x: Named(fine, fine * 2), "logits", FINE),
    "named tuple by index": (lambda fine, coarse, x: Named(fine * 2, fine), 1, FINE),
    "dataclass": (lambda fine, coarse, x: Answered(None, fine, (x, x)), None, FINE),
    "dataclass by name": (lambda fine, coarse, x: Answered(fine.mean(), fine, (fine * 2,)), "logits", FINE),
    "dataclass by path": (lambda fine, coarse, x: Answered(None, fine * 2, (x, fine)), "hidden.1", FINE),
    "object": (lambda fine, coarse, x: SimpleNamespace(pred=fine, features=x), None, FINE),
    "object by name": (lambda fine, coarse, x: SimpleNamespace(pred=fine, other=fine * 2), "pred", FINE),
    "only a coarse one": (lambda fine, coarse, x: (coarse, x), None, COARSE),
}


def network_of(case: str) -> Network:
    torch.manual_seed(0)
    return Network(CASES[case][0])


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_found(case: str) -> None:
    """By its shape, else by what the user names; a coarser one is brought to the image's resolution."""
    network, (_, output, which) = network_of(case), CASES[case]
    image = torch.randn(2, 1, 8, 8)
    answer = choose_answer(network, ("drop",), image, contract(spatial=(8, 8)), Options(output=output))
    with sampling(answer, ()), torch.no_grad():
        x = torch.relu(network.first(image))
        expected = network.fine(x) if which is FINE else network.coarse(x)
        if which is COARSE:
            expected = nn.functional.interpolate(expected, size=(8, 8), mode="bilinear")
        torch.testing.assert_close(answer(image), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["deep supervision, finest last", "dict by key", "named tuple by name", "dataclass by path", "object by name"],
)
def test_what_was_chosen_is_what_is_sampled(case: str) -> None:
    """Through the whole export: with nothing dropped, the sampler's mean is the chosen tensor's."""
    network, (_, output, _) = network_of(case), CASES[case]
    compiled = compile_sampler(network, contract(spatial=(8, 8)), torch.randn(2, 1, 8, 8), Options(output=output))
    image = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    got = OnnxSampler(compiled.model.SerializeToString())(image, np.full((1, 1, 1), 255, np.uint8))["sum_p"]
    with torch.no_grad():
        x = torch.relu(network.first(torch.from_numpy(image))) / (1 - 0.3)
        np.testing.assert_allclose(got, torch.softmax(network.fine(x), 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "output", "reason"),
    [
        (lambda fine, coarse, x: (fine, fine), None, "2 of its outputs have the shape"),
        (lambda fine, coarse, x: {"a": x, "b": x}, None, "0 of its outputs have the shape"),
        (lambda fine, coarse, x: {"out": fine}, "logits", "there is no output logits"),
        (lambda fine, coarse, x: [fine], "3", "there is no output 3"),
        (lambda fine, coarse, x: Answered(None, fine, (x,)), "hidden", "there is no output hidden"),
        (lambda fine, coarse, x: Answered(None, fine, (x,)), "loss", "there is no output loss"),
    ],
)
def test_what_is_not_there_or_not_clear_is_refused_with_the_list(wrap: Any, output: str | None, reason: str) -> None:
    """The remedy names every output with its shape."""
    with pytest.raises(ExportRefused, match=reason) as caught:
        choose_answer(
            Network(wrap), ("drop",), torch.randn(2, 1, 8, 8), contract(spatial=(8, 8)), Options(output=output)
        )
    assert "There are: " in caught.value.remedy
    assert "[2, " in caught.value.remedy


def test_transformers_outputs_are_both_mapping_and_dataclass() -> None:
    """Such a class answers to its keys."""

    @dataclass
    class Both(OrderedDict):
        logits: Tensor | None = None

        def __post_init__(self) -> None:
            self["logits"] = self.logits

    network = Network(lambda fine, coarse, x: Both(fine.mean((2, 3))))
    draft = contract(task=Task.CLASSIFICATION, classes=2, spatial=(8, 8))
    answer = choose_answer(network, ("drop",), torch.randn(2, 1, 8, 8), draft, Options(output="logits"))
    assert answer(torch.randn(2, 1, 8, 8)).shape == (2, 2)


class Downsampling(nn.Module):
    """Answers at 1/stride of the resolution, or, unpadded, for the middle of the image."""

    def __init__(self, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, kernel, stride, padding)
        self.drop, self.head = nn.Dropout2d(0.3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.conv(x))))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 4, 0), (3, 2, 1), (2, 2, 0)])
def test_a_downsampled_answer_is_interpolated_and_said(kernel: int, stride: int, padding: int) -> None:
    """The whole image at a lower resolution, whatever its sizes."""
    network = Downsampling(kernel, stride, padding)
    answer = choose_answer(network, ("drop",), torch.randn(2, 1, 16, 24), contract(spatial=(16, 24)))
    assert answer(torch.randn(2, 1, 16, 24)).shape == (2, 2, 16, 24)
    assert f"1/{stride} x 1/{stride}" in answer.notes[0]


@pytest.mark.parametrize(("kernel", "stride"), [(9, 1), (5, 1), (8, 4), (10, 2)])
def test_an_answer_for_a_part_of_the_image_is_refused(kernel: int, stride: int) -> None:
    """Stretched, everything would move and grow, and volumes with it."""
    draft = contract(spatial=(32, 32))
    with pytest.raises(ExportRefused, match="no downsampling"):
        choose_answer(Downsampling(kernel, stride), ("drop",), torch.randn(2, 1, 32, 32), draft)


def test_with_a_margin_each_pixel_is_answered_in_its_place() -> None:
    """Mirrored at its borders, the image has what unpadded convolutions cut off; the remedy says by how much."""
    network, draft, image = Downsampling(9), contract(spatial=(16, 16)), torch.randn(2, 1, 16, 16)
    with pytest.raises(ExportRefused) as caught:
        choose_answer(network, ("drop",), image, draft)
    assert "--margin 4 " in caught.value.remedy
    network.eval()
    answer = choose_answer(network, (), image, draft, Options(margin=4))(image)
    assert answer.shape == (2, 2, 16, 16)
    torch.testing.assert_close(answer[..., 4:-4, 4:-4], network(image))
    compiled = compile_sampler(network, draft, image, Options(margin=4))
    assert any("mirrored by 4 pixels" in note for note in compiled.notes)


class Needs(nn.Module):
    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("forward", "remedy"),
    [
        (lambda image, age: image + age, "takes image, age"),
        (lambda batch: batch["image"], "a dictionary or a list"),
        (lambda image: image.to("cuda"), "device is written into its code"),
        (lambda image: image.reshape(-1, 7), "--input-shape"),
    ],
)
def test_a_forward_that_fails_is_told_its_own_cause(forward: Callable[..., Tensor], remedy: str) -> None:
    """Not one remedy for all."""
    with pytest.raises(ExportRefused) as caught:
        choose_answer(Needs(forward), (), torch.randn(2, 1, 8, 8), contract(spatial=(8, 8)))
    assert remedy in caught.value.remedy


class Features(nn.Module):
    """Features [N, 8, H, W] with dropout, then what a subclass makes of them."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(0.3)
        self.head, self.map = nn.Linear(8, classes), nn.Conv2d(8, classes, 1)
        with torch.no_grad():
            self.head.weight *= 5

    def features(self, image: Tensor) -> Tensor:
        return self.drop(torch.relu(self.conv(image)))

    def pooled(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))  # type: ignore[no-any-return]


class OneNumber(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.pooled(image).squeeze(1)


class OneMap(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.map(self.features(image)).squeeze(1)  # type: ignore[no-any-return]


class OneQuarterMap(Features):
    def forward(self, image: Tensor) -> Tensor:
        return functional.avg_pool2d(self.map(self.features(image)), 2)[:, 0]


class Unpooled(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.map(self.features(image)).mean((2, 3), keepdim=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "classes", "task"),
    [
        (OneNumber, 1, Task.CLASSIFICATION),
        (OneMap, 1, Task.SEGMENTATION),
        (OneQuarterMap, 1, Task.SEGMENTATION),
        (Unpooled, 3, Task.CLASSIFICATION),
    ],
)
def test_an_answer_may_lack_an_axis_or_have_one_more(kind: Any, classes: int, task: Task) -> None:
    """[N] and [N, *S] of one class, [N, K, 1, 1] of a classifier: what is served has the contract's axes."""
    torch.manual_seed(0)
    activation = Activation.SIGMOID if classes == 1 else Activation.SOFTMAX
    draft = replace(contract(task=task, classes=classes, spatial=(8, 8)), activation=activation)
    example = torch.randn(2, 1, 8, 8)
    compiled = compile_sampler(kind(classes), draft, example)
    assert compiled.proof.sites[0].effect > 0


class WithPrior(Features):
    """Answers beside its logits with a tensor that has nothing to do with the batch."""

    def __init__(self, task: Task, *shape: int) -> None:
        super().__init__()
        self.task, self.prior = task, nn.Parameter(torch.zeros(shape))

    def forward(self, image: Tensor) -> Any:
        logit = self.map(self.features(image)) if self.task is Task.SEGMENTATION else self.pooled(image)
        return {"logit": logit, "prior": self.prior + 0}


@pytest.mark.parametrize(
    ("task", "prior"),
    [
        (Task.CLASSIFICATION, (8,)),
        (Task.SEGMENTATION, (8, 8, 8)),
        (Task.SEGMENTATION, (2, 16, 16)),
    ],
)
def test_other_outputs_of_a_network_of_one_class_keep_their_form(task: Task, prior: tuple[int, ...]) -> None:
    """What is no answer to a batch is not read as one that lacks an axis."""
    draft = replace(contract(task=task, classes=1, spatial=(8, 8)), activation=Activation.SIGMOID)
    network, image = WithPrior(task, *prior), torch.randn(2, 1, 8, 8)
    for output in ("logit", None):
        answer = choose_answer(network, ("drop",), image, draft, Options(output=output))
        assert answer(image).shape == (2, 1, 8, 8)[: 4 if task is Task.SEGMENTATION else 2]


class Contexts(Features):
    """What people leave in a forward pass: none of it changes what single precision gives."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__(3)
        self.context = context

    def forward(self, image: Tensor) -> Tensor:
        with self.context():
            return self.pooled(image)


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.set_grad_enabled(True),
    ],
    ids=["no_grad", "enable_grad", "inference_mode", "autocast", "set_grad_enabled"],
)
def test_contexts_in_a_forward_pass_are_left_out(context: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network = Contexts(context)
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(8, 8))
    compiled = compile_sampler(network, draft, torch.randn(2, 1, 8, 8))
    assert [site.name for site in compiled.contract.sites] == ["drop"]
    assert torch.autocast.__enter__ is not torch.inference_mode.__enter__


class ByFirst(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.pooled(image) * image[0].mean()


class Labels(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.pooled(image).argmax(1)


class SqueezesAll(Features):
    def forward(self, image: Tensor) -> Tensor:
        return self.pooled(image).squeeze()


class HasScript(Features):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.script = torch.jit.script(nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        return self.pooled(self.script(image))


@pytest.mark.parametrize(
    ("kind", "classes", "says"),
    [
        (ByFirst, 3, "beside another image of a batch"),
        (Labels, 3, "labels or decisions"),
        (SqueezesAll, 1, r"Name the axis that is to go: squeeze\(1\)"),
        (HasScript, 3, "script: it is a TorchScript module"),
    ],
)
def test_what_is_no_answer_of_one_image_is_refused_by_its_cause(kind: Any, classes: int, says: str) -> None:
    activation = Activation.SIGMOID if classes == 1 else Activation.SOFTMAX
    draft = replace(contract(task=Task.CLASSIFICATION, classes=classes, spatial=(8, 8)), activation=activation)
    torch.manual_seed(0)
    with pytest.raises(ExportRefused, match=says):
        compile_sampler(kind(classes), draft, torch.randn(2, 1, 8, 8))
