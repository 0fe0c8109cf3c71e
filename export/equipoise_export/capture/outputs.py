"""Chooses the one tensor of a network's output that is its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from equipoise_core.contract import Activation, Contract, Task
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CaptureRefused, ExportRefused
from ..graph.randomness import sampling
from .active import active_modules

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
        return _pick(self.equipoise_network(image), self.path, self.resize, image)


class Heteroscedastic(nn.Module):
    """A network that also answers how noisy its logits are: p = E[activation(f + σ·ε)], ε ~ N(0, 1) per class.

    Kendall & Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?", NeurIPS 2017, eq. 12,
    with fixed nodes for ε instead of random ones, so that nothing is drawn in the graph:
    Case 1, sigmoid, and Case 2, softmax of two classes (in the difference of its logits): Gauss–Hermite, 9 nodes.
    Case 3, softmax of more: 16 scrambled Sobol points and their mirror images.
    The answer is given as logits: log p, or log p − log(1 − p) for a sigmoid.
    """

    def __init__(self, mean: Answer, log_variance: Answer, activation: Activation, classes: int) -> None:
        super().__init__()
        self.equipoise_network = mean.equipoise_network
        self.mean, self.log_variance = _Picked(mean), _Picked(log_variance)
        self.softmax = activation is Activation.SOFTMAX
        self.pair = self.softmax and classes == 2
        if self.softmax and not self.pair:
            half = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0).draw(16).clamp(1e-4, 1 - 1e-4)
            half = torch.special.ndtri(half)
            self.nodes = torch.cat([half, -half]).tolist()
            self.weights = [1 / 32] * 32
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(9)
            self.nodes = nodes.tolist()
            self.weights = (weights / weights.sum()).tolist()

    def forward(self, image: Tensor) -> Tensor:
        """`[N, C, *S]` → logits `[N, K(, *S)]`."""
        outputs = self.equipoise_network(image)
        f, sigma = self.mean(outputs, image), torch.exp(0.5 * self.log_variance(outputs, image))
        if self.pair:
            sigma = torch.sqrt((sigma**2).sum(1, keepdim=True))
            f = f[:, 1:] - f[:, :1]
        p = torch.zeros_like(f)
        for node, weight in zip(self.nodes, self.weights, strict=True):
            if isinstance(node, list):
                shift = f.new_tensor(node).reshape(1, -1, *[1] * (f.dim() - 2))
                p = p + weight * torch.softmax(f + sigma * shift, 1)
            else:
                p = p + weight * torch.sigmoid(f + sigma * node)
        p = p.clamp(1e-7, 1 - 1e-7)
        if self.softmax and not self.pair:
            return torch.log(p)
        z = torch.log(p) - torch.log1p(-p)
        return torch.cat([torch.zeros_like(z), z], 1) if self.pair else z


class _Picked:
    """Takes one tensor out of an output: what `Answer` does, without running the network again."""

    def __init__(self, answer: Answer) -> None:
        self.path, self.resize = answer.path, answer.resize

    def __call__(self, outputs: Any, image: Tensor) -> Tensor:
        return _pick(outputs, self.path, self.resize, image)


def _pick(answer: Any, path: tuple[str | int, ...], resize: bool, image: Tensor) -> Tensor:
    for step in path:
        inside = isinstance(answer, Mapping) or isinstance(step, int)
        answer = answer[step] if inside else getattr(answer, str(step))
    if resize:
        answer = functional.interpolate(answer, size=image.shape[2:], mode=MODES[image.dim() - 2], align_corners=False)
    return answer  # type: ignore[no-any-return]


def choose_answer(
    network: nn.Module,
    example: Tensor,
    draft: Contract,
    output: str | int | None = None,
    log_variance: str | int | None = None,
) -> nn.Module:
    """The network as image → logits.

    Args:
        output: index, key or dotted path; where not given, the only output of the shape that the contract asks for.
        log_variance: the output that holds log σ² of the logits, for a heteroscedastic network.

    Raises:
        ExportRefused: no output, or more than one, fits.
    """
    with sampling(network, active_modules(network, example)), torch.no_grad():  # an active module may answer otherwise
        try:
            answer = network(example)
            outputs = dict(_tensors(answer))
        except Exception as error:
            raise CaptureRefused(
                f"the network does not run on an image {list(example.shape)}: {type(error).__name__}: {error}",
                "the whole network",
                "State its --input-shape (C,H,W[,D]) and --multiple as it was trained.",
            ) from error
    spelled = {".".join(map(str, path)): path for path in outputs}
    listing = "; ".join(f"{name or 'the only one'} {list(outputs[path].shape)}" for name, path in spelled.items())
    if log_variance is not None:
        if output is None:
            raise ExportRefused(
                "--log-variance says which output is the noise, nothing says which are the logits",
                "the chosen output",
                f"Choose them with --output. There are: {listing}.",
            )
        means, noise = (
            choose_answer(network, example, draft, output),
            choose_answer(network, example, draft, log_variance),
        )
        assert isinstance(means, Answer) and isinstance(noise, Answer)
        return Heteroscedastic(means, noise, draft.activation, len(draft.classes))
    if output is not None:
        path = _found(answer, str(output).split("."))
        if path not in outputs:
            raise ExportRefused(f"there is no output {output}", "the chosen output", f"There are: {listing}.")
        return Answer(network, path, _coarser(outputs[path], draft))
    batch = len(example)
    full = draft.nominal if draft.task is Task.SEGMENTATION else ()
    classes = len(draft.classes)
    exact = [path for path, tensor in outputs.items() if tuple(tensor.shape) == (batch, classes, *full)]
    coarse = [
        path for path, tensor in outputs.items() if _coarser(tensor, draft) and tensor.shape[:2] == (batch, classes)
    ]
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
