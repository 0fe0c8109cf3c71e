"""Chooses the one tensor of a network's output that is its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from equipoise_core.contract import Contract, Task
from torch import Tensor, nn
from torch.nn import functional

from .errors import CaptureRefused, ExportRefused
from .stochastic import sampling

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Answer(nn.Module):
    """A network reduced to one tensor of its output, brought to the image's resolution where it is coarser.

    Args:
        network: image → anything.
        path: where in the output the answer lies: keys and indices, outermost first.
        resize: interpolate the answer to the image's spatial sizes, as the network's own post-processing would.
    """

    def __init__(self, network: nn.Module, path: tuple[str | int, ...], resize: bool = False) -> None:
        super().__init__()
        self.equipoise_network = network  # a name that site names can be rid of
        self.path = path
        self.resize = resize

    def forward(self, image: Tensor) -> Tensor:
        answer = self.equipoise_network(image)
        for step in self.path:
            answer = getattr(answer, step) if dataclasses.is_dataclass(answer) and isinstance(step, str) else answer[step]
        if self.resize:
            answer = functional.interpolate(answer, size=image.shape[2:], mode=MODES[image.dim() - 2], align_corners=False)
        return answer


def choose_answer(network: nn.Module, example: Tensor, draft: Contract, output: str | int | None = None) -> Answer:
    """The network as image → logits.

    Args:
        output: index, key or dotted path; where not given, the only output of the shape that the contract asks for.

    Raises:
        ExportRefused: no output, or more than one, fits.
    """
    with sampling(network, ()), torch.no_grad():
        try:
            outputs = dict(_tensors(network(example)))
        except Exception as error:
            raise CaptureRefused(
                f"the network does not run on an image {list(example.shape)}: {type(error).__name__}: {error}",
                "the whole network",
                "State its --input-shape (C,H,W[,D]) and --multiple as it was trained.",
            ) from error
    spelled = {".".join(map(str, path)): path for path in outputs}
    listing = "; ".join(f"{name or 'the only one'} {list(outputs[path].shape)}" for name, path in spelled.items())
    if output is not None:
        path = spelled.get(str(output))
        if path is None:
            raise ExportRefused(f"there is no output {output}", "the chosen output", f"There are: {listing}.")
        return Answer(network, path, _coarser(outputs[path], draft))
    batch = len(example)
    full = draft.nominal if draft.task is Task.SEGMENTATION else ()
    classes = len(draft.classes)
    exact = [path for path, tensor in outputs.items() if tuple(tensor.shape) == (batch, classes, *full)]
    coarse = [path for path, tensor in outputs.items() if _coarser(tensor, draft) and tensor.shape[:2] == (batch, classes)]
    if len(outputs) == 1:
        (path,) = outputs
        return Answer(network, path, _coarser(outputs[path], draft))
    if len(exact) == 1:
        return Answer(network, exact[0])
    if not exact and len(coarse) == 1:
        return Answer(network, coarse[0], resize=True)
    raise ExportRefused(
        f"{len(exact) or len(coarse)} of its outputs have the shape [N, {', '.join(map(str, (classes, *full)))}]",
        "the chosen output",
        f"Choose one with --output. There are: {listing}.",
    )


def _coarser(tensor: Tensor, draft: Contract) -> bool:
    """Whether it is a segmentation at less than the image's resolution."""
    if draft.task is not Task.SEGMENTATION or tensor.dim() != 2 + draft.rank:
        return False
    sizes = tuple(tensor.shape[2:])
    return sizes != draft.nominal and all(1 <= size <= full for size, full in zip(sizes, draft.nominal, strict=True))


def _tensors(output: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """Every floating-point tensor in an output, with the way to it."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, (*path, key))
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name), (*path, field.name))
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from _tensors(value, (*path, index))
