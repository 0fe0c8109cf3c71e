"""Chooses the one tensor of a network's output that is its answer."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from equipoise_core.contract import Contract
from torch import Tensor, nn

from ..errors import CaptureRefused, ExportRefused
from ..graph.randomness import sampling
from ..options import DEFAULTS, Answers, Options
from .answer import AnswerOnly, MeanAndVariance, Place
from .heteroscedastic import Heteroscedastic

Outputs = Mapping[tuple[str | int, ...], Tensor]
"""Way to a tensor of the output → the tensor."""


def choose_answer(
    network: nn.Module,
    active: tuple[str, ...],
    example: Tensor,
    draft: Contract,
    options: Options = DEFAULTS,
) -> AnswerOnly | Heteroscedastic | MeanAndVariance:
    """The network as image → logits, or a regression's numbers.

    Args:
        active: the modules in training mode: under sampling, the output may be another one.
        options: its `output`, where not given the only output of the shape that the contract asks for; its
            `log_variance` and `answers`.

    Raises:
        ExportRefused: no output, or more than one, fits.
    """
    reader = _Reader(network, active, example, draft, options)
    if draft.targets and options.log_variance is not None:
        raise ExportRefused(
            "--log-variance names the noise of logits, which a regression does not have",
            "the chosen output",
            "State --answers mean_log_variance, and where the two are outputs of their own --output MEAN,LOG_VARIANCE.",
        )
    if pair := both_outputs(options, draft):
        mean, noise = (reader.place(chosen) for chosen in pair)
        return MeanAndVariance(network, mean, noise)
    if options.log_variance is None:
        place = reader.place(options.output)
        return AnswerOnly(network, place, draft.activation if options.answers is Answers.PROBABILITIES else None)
    if options.output is None:
        raise ExportRefused(
            "--log-variance names the output of the noise, but no --output names the logits",
            "the chosen output",
            f"Choose them with --output. There are: {_listing(reader.outputs)}.",
        )
    mean, noise = (reader.place(chosen) for chosen in (options.output, options.log_variance))
    return Heteroscedastic(network, mean, noise, draft.activation, len(draft.classes))


def both_outputs(options: Options, draft: Contract) -> tuple[str, str] | None:
    """The outputs that hold a regression's means and variances, where `--output` names two."""
    named = str(options.output).split(",") if draft.targets and options.output is not None else []
    if len(named) < 2:
        return None
    if len(named) > 2 or not draft.states_variance:
        raise ExportRefused(
            f"--output {options.output} names {len(named)} outputs",
            "the chosen output",
            "A regression has one of means, or two (MEAN,VARIANCE) with --answers mean_variance or mean_log_variance.",
        )
    return named[0].strip(), named[1].strip()


class _Reader:
    """A network's output for the example."""

    def __init__(
        self, network: nn.Module, active: tuple[str, ...], example: Tensor, draft: Contract, options: Options
    ) -> None:
        self.network, self.active, self.draft, self.margin = network, active, draft, options.margin
        both = draft.states_variance and both_outputs(options, draft) is None
        self.width = len(draft.answers) * (2 if both else 1)
        self.example = example
        try:
            self.answer = self.run(example)
        except Exception as error:
            raise CaptureRefused(
                f"the network does not run on an image {list(example.shape)}: {type(error).__name__}: {error}",
                "the whole network",
                _what_to_do(network, error),
            ) from error
        self.outputs = self.tensors(self.answer, example)

    def run(self, image: Tensor) -> Any:
        with sampling(self.network, self.active), torch.no_grad():
            return self.network(Place((), margin=self.margin).seen(image))

    def place(self, output: str | int | None) -> Place:
        """Where the chosen output lies, or the only one that fits."""
        path = self.chosen(output)
        return self.form(path, self.answer, self.example, self.scale(path))

    def tensors(self, answer: Any, image: Tensor) -> Outputs:
        """Of all outputs, with the axes that an answer is to have."""
        return {path: self.form(path, answer, image).of(answer, image) for path, _ in _tensors(answer)}

    def form(self, path: tuple[str | int, ...], answer: Any, image: Tensor, scale: tuple[int, ...] = ()) -> Place:
        """A place in the answer to more than one image, and what axes it lacks or has too many."""
        tensor = next(each for way, each in _tensors(answer) if way == path)
        spatial = self.draft.rank if self.draft.per_voxel else 0
        full = (len(image), *image.shape[2 : 2 + spatial])
        one_class = (
            self.width == 1
            and tensor.dim() == len(full)
            and len(tensor) == len(image)
            and all(size <= whole for size, whole in zip(tensor.shape, full, strict=True))
        )
        pooled = not spatial and tensor.dim() > 2 and set(tensor.shape[2:]) == {1}
        return Place(path, scale, self.margin, one_class, pooled)

    def chosen(self, output: str | int | None) -> tuple[str | int, ...]:
        if output is not None:
            path = _found(self.answer, str(output).split("."))
            if path not in self.outputs:
                raise ExportRefused(
                    f"there is no output {output}", "the chosen output", f"There are: {_listing(self.outputs)}."
                )
            return path
        if len(self.outputs) == 1:
            return next(iter(self.outputs))
        if not self.outputs:
            raise ExportRefused(
                "it answers with labels or decisions (no tensor of floating-point numbers), which have no mean",
                "the chosen output",
                "Let it return logits or probabilities: leave argmax and thresholds out of its forward.",
            )
        full = self.draft.nominal if self.draft.per_voxel else ()
        classes = self.width
        exact = [
            path for path, tensor in self.outputs.items() if tuple(tensor.shape) == (len(self.example), classes, *full)
        ]
        coarse = [
            path
            for path, tensor in self.outputs.items()
            if _smaller(tensor, self.draft) and tensor.shape[:2] == (len(self.example), classes)
        ]
        if len(exact) == 1 or (not exact and len(coarse) == 1):
            return (exact or coarse)[0]
        raise ExportRefused(
            f"{len(exact) or len(coarse)} of its outputs have the shape [N, {', '.join(map(str, (classes, *full)))}]",
            "the chosen output",
            f"Choose one with --output{self._or_both()}. There are: {_listing(self.outputs)}.",
        )

    def _or_both(self) -> str:
        return " (a mean and its variance: MEAN,VARIANCE, with --answers)" if self.draft.targets else ""

    def scale(self, path: tuple[str | int, ...]) -> tuple[int, ...]:
        """Image size over answer size per axis, where the answer is smaller.

        Raises:
            ExportRefused: it is no downsampling of the image: to stretch it would move and enlarge what it shows.
        """
        if not _smaller(self.outputs[path], self.draft):
            return ()
        nominal, sizes = self.draft.nominal, tuple(self.outputs[path].shape[2:])
        factors = tuple(round(full / size) for full, size in zip(nominal, sizes, strict=True))
        pairs = [(nominal, sizes)]
        double = tuple(2 * full for full in nominal)
        with contextlib.suppress(Exception):  # it serves one size only
            image = torch.zeros(2, self.draft.channels, *double)
            larger = self.tensors(self.run(image), image)
            pairs.append((double, tuple(larger[path].shape[2:])))
        if all(
            size in (full // factor, -(-full // factor))
            for fulls, each in pairs
            for full, size, factor in zip(fulls, each, factors, strict=True)
        ):
            return factors
        missing = {full - size for full, size in zip(nominal, sizes, strict=True)}
        odd = len(missing) > 1 or next(iter(missing)) % 2
        remedy = "" if odd else f"--margin {next(iter(missing)) // 2} mirrors the image at its borders. "
        raise ExportRefused(
            f"it answers {list(sizes)} for an image {list(nominal)}, which is no downsampling of the whole image but a "
            "part of it (unpadded convolutions?): stretched, everything would move and grow",
            "the chosen output",
            f"{remedy}Or pad its convolutions, or choose another output (--output).",
        )


def _what_to_do(network: nn.Module, error: Exception) -> str:
    """The remedy by what a forward pass on an image alone raised."""
    needed = [
        parameter
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    text = str(error)
    if len(needed) > 1 and "required positional argument" in text:
        others = " ".join(f"--bind {parameter.name}=VALUE" for parameter in needed[1:])
        return (
            f"Its forward takes {', '.join(map(str, needed))}, a sampler has the image alone: bind the others to "
            f"constants, {others} (a number, a list such as [0.5] for a tensor, a .npy or .safetensors file)."
        )
    if "conv2d" in text and "4D (batched)" in text:
        return "A network of 2D images takes volumes slice by slice: --slices 1, or 3 where it takes neighbours too."
    if network._forward_pre_hooks_with_kwargs and "number of dimensions" in text:
        return "A constant that goes to each image has a first axis of 1: --bind NAME=[[1,2,3]], or a .npy file [1, F]."
    if isinstance(error, AttributeError) and re.match(r"'(int|float|bool|list)' object has no attribute", text):
        return "A constant is to be a tensor: --bind NAME=[VALUE] makes a vector of one number, a .npy file any shape."
    if isinstance(error, (TypeError, IndexError, KeyError)) and ("indices" in text or "integers, slices" in text):
        return "Its forward takes a dictionary or a list, a sampler gives the image: wrap it in a module that packs it."
    if "cuda" in text.lower() or "NVIDIA" in text or "same device" in text:
        return "A device is written into its code; export runs on the CPU: use the device of the input (x.device)."
    if "must be float, not" in text:
        return "A probability of dropping is a tensor; PyTorch wants a number (p.item())."
    if "BFloat16" in text or "Half" in text:
        return (
            "Half precision is written into its code; export computes in single precision: use the dtype of the input."
        )
    return "State its --input-shape (C,H,W[,D]) and --multiple as it was trained."


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


def _smaller(tensor: Tensor, draft: Contract) -> bool:
    """Whether it is a segmentation of fewer pixels than the image's."""
    if not draft.per_voxel or tensor.dim() != 2 + draft.rank:
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
