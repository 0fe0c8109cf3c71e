"""A network reduced to one tensor of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Place:
    """Where in an output a tensor lies.

    Attributes:
        path: keys and indices, outermost first.
        resize: interpolate it to the image's spatial sizes, as the network's own post-processing would.
    """

    path: tuple[str | int, ...]
    resize: bool = False

    def of(self, output: Any, image: Tensor) -> Tensor:
        """The tensor at this place of the output for `image`."""
        for step in self.path:
            inside = isinstance(output, Mapping) or isinstance(step, int)
            output = output[step] if inside else getattr(output, str(step))
        if self.resize:
            size, mode = image.shape[2:], _MODES[image.dim() - 2]
            output = functional.interpolate(output, size=size, mode=mode, align_corners=False)
        return output  # type: ignore[no-any-return]


class AnswerOnly(nn.Module):
    """image → the one tensor at `place` of what the network answers.

    Args:
        network: image → anything.
    """

    def __init__(self, network: nn.Module, place: Place) -> None:
        super().__init__()
        self.equipoise_network = network  # `marker.WRAPPED`
        self.place = place

    def forward(self, image: Tensor) -> Tensor:
        return self.place.of(self.equipoise_network(image), image)
