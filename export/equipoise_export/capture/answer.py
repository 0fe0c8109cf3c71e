"""A network reduced to one tensor of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from equipoise_core.contract import Activation
from torch import Tensor, nn
from torch.nn import functional

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Place:
    """Where in an output a tensor lies.

    Attributes:
        path: keys and indices, outermost first.
        scale: per spatial axis, image size over answer size: it is interpolated to the image's sizes, as the network's
            own post-processing would. Empty where it has them already.
        one_class: the network leaves out the axis of its only class or number: it answers `[N]` or `[N, *S]`.
        pooled: an answer for the whole image keeps spatial axes of one pixel: `[N, K, 1, 1]`.
        margin: the image is mirrored by so many pixels at each border first (Ronneberger et al., MICCAI 2015): a
            network of unpadded convolutions then answers for the whole image.
    """

    path: tuple[str | int, ...]
    scale: tuple[int, ...] = ()
    margin: int = 0
    one_class: bool = False
    pooled: bool = False

    def seen(self, image: Tensor) -> Tensor:
        """What the network is given for `image` `[N, C, *S]`."""
        if not self.margin:
            return image
        return functional.pad(image, [self.margin] * 2 * (image.dim() - 2), mode="reflect")

    def of(self, output: Any, image: Tensor) -> Tensor:
        """The tensor at this place of the output for `image`."""
        for step in self.path:
            inside = isinstance(output, Mapping) or isinstance(step, int)
            output = output[step] if inside else getattr(output, str(step))
        if self.one_class:  # `squeeze()` takes the axis of a single image as well
            spatial = output.shape[-(image.dim() - 2) :] if output.dim() >= image.dim() - 2 else ()
            output = output.reshape(image.shape[0], 1, *spatial)
        if self.pooled:
            output = output.flatten(1)
        if self.scale:
            size, mode = image.shape[2:], _MODES[image.dim() - 2]
            output = functional.interpolate(output, size=size, mode=mode, align_corners=False)
        return output  # type: ignore[no-any-return]


class AnswerOnly(nn.Module):
    """image → the one tensor at `place` of what the network answers, as logits.

    Args:
        network: image → anything.
        activation: where the network answers with probabilities: what gives them, to 1e-7, of the logits again.
    """

    def __init__(self, network: nn.Module, place: Place, activation: Activation | None = None) -> None:
        super().__init__()
        self.equipoise_network = network  # `marker.WRAPPED`
        self.place = place
        self.activation = activation

    def forward(self, image: Tensor) -> Tensor:
        """`[N, C, *S]` → `[N, K(, *S)]`."""
        answer = self.place.of(self.equipoise_network(self.place.seen(image)), image)
        if self.activation is None:
            return answer
        p = answer.clamp(1e-7, 1 - 1e-7)
        return torch.log(p) if self.activation is Activation.SOFTMAX else torch.log(p) - torch.log1p(-p)

    def as_it_is(self) -> AnswerOnly:
        """The same without taking an activation off."""
        return AnswerOnly(self.equipoise_network, self.place)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how the answer is brought to the image's size."""
        found = []
        if self.place.scale:
            parts = " x ".join(f"1/{factor}" for factor in self.place.scale)
            found.append(f"its answer has {parts} of the image's resolution and is interpolated to the image's size")
        if self.place.margin:
            found.append(f"images are mirrored by {self.place.margin} pixels at each border before the network")
        return tuple(found)


class MeanAndVariance(nn.Module):
    """image → `[N, 2K]`: a regression's K means, and what it states of their variances in another output."""

    notes: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, mean: Place, variance: Place) -> None:
        super().__init__()
        self.equipoise_network = network  # `marker.WRAPPED`
        self.mean, self.variance = mean, variance

    def forward(self, image: Tensor) -> Tensor:
        """`[N, C, *S]` → `[N, 2K]`."""
        outputs = self.equipoise_network(self.mean.seen(image))
        return torch.cat([self.mean.of(outputs, image), self.variance.of(outputs, image)], 1)
