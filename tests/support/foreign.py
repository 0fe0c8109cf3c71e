"""Networks as strangers write them, around one small body: other outputs, further inputs, slices, odd forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from equipoise_export.options import Answers, Options, Sizes
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Foreign:
    """A network, how it is described, and the units of its sites."""

    make: Callable[[], nn.Module]
    sites: tuple[tuple[int | str, ...], ...] = ((8,),)
    options: Options = Options()  # noqa: RUF009  # it is frozen
    shape: tuple[int, ...] = (1, 16, 16)
    classes: tuple[str, ...] = ("background", "lesion")
    stated: Mapping[str, Any] = field(default_factory=dict)


class Body(nn.Module):
    """Two convolutions with channel dropout between them."""

    def __init__(self, classes: int = 2, kernel: int = 3, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, kernel, padding=padding)
        self.drop: nn.Module = nn.Dropout2d(0.3)
        self.last = nn.Conv2d(8, classes, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.first(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        return self.last(self.features(x))


class Through(nn.Module):
    """What a function makes of the body and an image."""

    def __init__(self, function: Callable[..., Any], *body: int) -> None:
        super().__init__()
        self.body, self.function = Body(*body), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.body, x)


def through(function: Callable[..., Any], *body: int) -> Callable[[], nn.Module]:
    return lambda: Through(function, *body)


class Conditioned(Body):
    """A step for each image, an index."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:  # type: ignore[override]
        assert len(step) == len(x)
        return self.last(self.features(x) + self.embedding(step)[:, :, None, None])  # type: ignore[no-any-return]


class Scaled(Body):
    def forward(self, x: Tensor, temperature: float) -> Tensor:  # type: ignore[override]
        return super().forward(x) / temperature  # type: ignore[no-any-return]


class Keywords(Body):
    def forward(self, x: Tensor, mask: Tensor | None = None, **more: float) -> Tensor:  # type: ignore[override]
        y = super().forward(x) * more.get("gain", 1.0)
        return y if mask is None else y * mask  # type: ignore[no-any-return]


class Inference(Body):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Autocast(Body):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class NumberInside(Body):
    """A scalar goes through a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.gain(torch.tensor(2.0))


class Normalised(Body):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


class PooledSlices(nn.Module):
    """A classifier of volumes that pools over its slices, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = Body(), nn.Dropout(0.4), nn.Linear(8, 2)

    def forward(self, volume: Tensor) -> Tensor:
        n, c, d, h, w = volume.shape
        features = self.body.features(volume.permute(0, 2, 1, 3, 4).reshape(n * d, c, h, w)).mean((2, 3))
        return self.head(self.drop(features.reshape(n, d, 8).amax(1)))  # type: ignore[no-any-return]


def alpha() -> nn.Module:
    body = Body()
    body.drop = nn.FeatureAlphaDropout(0.3)
    return body


def windows(body: nn.Module, x: Tensor) -> Tensor:
    """4 × 4 pixels each, folded into the batch."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    answer = functional.relu(parts)
    whole = answer.reshape(n, h // 4, w // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
    return body(whole)  # type: ignore[no-any-return]


SLICED = {"slices": 1, "orientation": "SPL"}
ONE: dict[str, Any] = {"classes": ("lesion",)}
SIGMOID = {"activation": "sigmoid"}
NETWORKS = {
    "answers with a list": Foreign(through(lambda b, x: [y := b(x), functional.avg_pool2d(y, 2)])),
    "one class, squeezed": Foreign(through(lambda b, x: b(x).squeeze(1), 1), stated=SIGMOID, **ONE),
    "an optional input": Foreign(Keywords),
    "an optional input, bound": Foreign(Keywords, options=Options(bind={"mask": np.ones((1, 1, 16, 16), np.float32)})),
    "a keyword, bound": Foreign(Keywords, options=Options(bind={"gain": 2.0})),
    "a temperature, bound": Foreign(Scaled, options=Options(bind={"temperature": 2})),
    "a step for each image, bound": Foreign(Conditioned, options=Options(bind={"step": [2]})),
    "inference mode": Foreign(Inference),
    "autocast": Foreign(Autocast),
    "a scalar through a module": Foreign(NumberInside),
    "feature alpha dropout": Foreign(alpha),
    "unpadded, mirrored": Foreign(lambda: Body(2, 5, 0), options=Options(margin=2)),
    "a volume's slices pooled": Foreign(
        PooledSlices, ((6, 8), (8,)), Options(sizes=Sizes.FIXED), (1, 6, 16, 16), stated={"task": "classification"}
    ),
    "slices": Foreign(Body, stated=SLICED),
    "slices, one class squeezed": Foreign(through(lambda b, x: b(x).squeeze(1), 1), stated=SLICED | SIGMOID, **ONE),
    "slices, a step bound": Foreign(Conditioned, options=Options(bind={"step": [2]}), stated=SLICED),
    "slices, coarse": Foreign(through(lambda b, x: functional.avg_pool2d(b(x), 4)), stated=SLICED | {"multiple": 4}),
    "slices, unpadded and mirrored": Foreign(lambda: Body(2, 5, 0), options=Options(margin=2), stated=SLICED),
    "slices, probabilities": Foreign(
        through(lambda b, x: torch.softmax(b(x), 1)), options=Options(answers=Answers.PROBABILITIES), stated=SLICED
    ),
    "slices, BatchNorm": Foreign(Normalised, stated=SLICED),
    "slices, windows": Foreign(through(windows), stated=SLICED | {"multiple": 4}),
    "slices, one pass": Foreign(lambda: nn.Conv2d(1, 2, 3), (), Options(margin=1, deterministic=True), stated=SLICED),
}

REFUSED = {
    "a temperature, not bound": (Foreign(Scaled), "takes x.*temperature.*--bind temperature=VALUE"),
    "slices, unpadded": (Foreign(lambda: Body(2, 5, 0), stated=SLICED), "--margin 2 mirrors"),
    "slices, probabilities unsaid": (
        Foreign(through(lambda b, x: torch.softmax(b(x), 1)), stated=SLICED),
        "--answers probabilities",
    ),
    "slices of a 3D network": (
        Foreign(lambda: nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Dropout3d(0.3)), stated=SLICED),
        "Dropout3d gets features of shape",
    ),
    "volumes to a 2D network": (Foreign(Body, shape=(1, 6, 16, 16)), "--slices 1"),
    "slices, nothing random": (
        Foreign(lambda: nn.Conv2d(1, 2, 3, padding=1), stated=SLICED),
        "nothing in it is random",
    ),
}
