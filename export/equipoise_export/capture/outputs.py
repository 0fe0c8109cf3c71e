"""Chooses the one tensor of a network's output that is its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from equipoise_core.contract import Contract, Task
from torch import Tensor, nn

from ..errors import CaptureRefused, ExportRefused
from ..graph.randomness import sampling
from ..options import DEFAULTS, Answers, Options
from .answer import AnswerOnly, Place
from .heteroscedastic import Heteroscedastic

Outputs = Mapping[tuple[str | int, ...], Tensor]
"""Way to a tensor of the output → the tensor."""


def choose_answer(
    network: nn.Module,
    active: tuple[str, ...],
    example: Tensor,
    draft: Contract,
    options: Options = DEFAULTS,
) -> AnswerOnly | Heteroscedastic:
    """The network as image → logits.

    Args:
        active: the modules in training mode: under sampling, the output may be another one.
        options: its `output`, where not given the only output of the shape that the contract asks for; its
            `log_variance` and `answers`.

    Raises:
        ExportRefused: no output, or more than one, fits.
    """
    with sampling(network, active), torch.no_grad():
        try:
            answer = network(example)
            outputs = dict(_tensors(answer))
        except Exception as error:
            raise CaptureRefused(
                f"the network does not run on an image {list(example.shape)}: {type(error).__name__}: {error}",
                "the whole network",
                "State its --input-shape (C,H,W[,D]) and --multiple as it was trained.",
            ) from error
    if options.log_variance is None:
        place = _place(answer, outputs, len(example), draft, options.output)
        return AnswerOnly(network, place, draft.activation if options.answers is Answers.PROBABILITIES else None)
    if options.output is None:
        raise ExportRefused(
            "--log-variance names the output of the noise, but no --output names the logits",
            "the chosen output",
            f"Choose them with --output. There are: {_listing(outputs)}.",
        )
    mean, noise = (
        _place(answer, outputs, len(example), draft, chosen) for chosen in (options.output, options.log_variance)
    )
    return Heteroscedastic(network, mean, noise, draft.activation, len(draft.classes))


def _place(answer: Any, outputs: Outputs, batch: int, draft: Contract, output: str | int | None) -> Place:
    """Where the chosen output lies, or the only one that fits."""
    if output is not None:
        path = _found(answer, str(output).split("."))
        if path not in outputs:
            raise ExportRefused(f"there is no output {output}", "the chosen output", f"There are: {_listing(outputs)}.")
        return Place(path, _coarser(outputs[path], draft))
    if len(outputs) == 1:
        ((path, tensor),) = outputs.items()
        return Place(path, _coarser(tensor, draft))
    full = draft.nominal if draft.task is Task.SEGMENTATION else ()
    classes = len(draft.classes)
    exact = [path for path, tensor in outputs.items() if tuple(tensor.shape) == (batch, classes, *full)]
    coarse = [
        path for path, tensor in outputs.items() if _coarser(tensor, draft) and tensor.shape[:2] == (batch, classes)
    ]
    if len(exact) == 1:
        return Place(exact[0])
    if not exact and len(coarse) == 1:
        return Place(coarse[0], resize=True)
    raise ExportRefused(
        f"{len(exact) or len(coarse)} of its outputs have the shape [N, {', '.join(map(str, (classes, *full)))}]",
        "the chosen output",
        f"Choose one with --output. There are: {_listing(outputs)}.",
    )


def _listing(outputs: Outputs) -> str:
    return "; ".join(
        f"{'.'.join(map(str, path)) or 'the only one'} {list(tensor.shape)}" for path, tensor in outputs.items()
    )


def _found(output: Any, steps: list[str]) -> tuple[str | int, ...]:
    """The way that is spelled: keys, indices, names of fields; of a named tuple names and indices alike."""
    path: list[str | int] = []
    for text in steps if steps != [""] else []:
        step: str | int = text
        if isinstance(output, Mapping):
            step = next((key for key in output if str(key) == text), text)
            output = output.get(step)
        elif isinstance(output, (list, tuple)):
            named = getattr(output, "_fields", ())
            step = named.index(text) if text in named else int(text) if text.isdigit() else text
            output = output[step] if isinstance(step, int) and step < len(output) else None
        else:
            output = getattr(output, text, None)
        path.append(step)
    return tuple(path)


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
    elif hasattr(output, "__dict__"):
        for name, value in vars(output).items():
            yield from _tensors(value, (*path, name))
