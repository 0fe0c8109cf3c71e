"""The answer for one image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from equipoise_core.decision import Route
from numpy.typing import NDArray

from .errors import InvalidInput

_ON_VOXELS = ("labels", "labels_sensitive", "aleatoric", "epistemic", "uncertainty")
"""Arrays of a segmentation that say of each voxel what is there, or how certain that is; 0 says nothing."""


class Priority(IntEnum):
    """Place in the public model's queue, as Triton numbers it."""

    URGENT = 1
    ROUTINE = 2


@dataclass(frozen=True)
class Estimate:
    """A volume in mL, or a number (`Value`): mean and standard deviation over samples, and the ends of the
    policy's interval.

    Volumes are all NaN where the voxel spacing was not given.
    """

    mean: float
    sd: float
    low: float
    high: float

    def document(self) -> dict[str, Any]:
        """Ready for JSON, which has no NaN."""
        return {name: number(value) for name, value in dataclasses.asdict(self).items() if name != "unit"}


@dataclass(frozen=True)
class Value(Estimate):
    """A number that a regression answers; `sd` is of a new measurement, √(aleatoric + epistemic).

    Attributes:
        unit: of all four, in UCUM's spelling; `1`: none.
    """

    unit: str

    def document(self) -> dict[str, Any]:
        return {**super().document(), "unit": self.unit}

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"{self.mean:.4g}{unit} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class Volume:
    """Volumes of one image: `volume["anterior"].mean`, `volume.total.high`.

    Attributes:
        classes: per foreground class.
        total: all foreground classes together; its interval is its own, not a sum of theirs. NaN where classes may
            overlap.
    """

    classes: Mapping[str, Estimate]
    total: Estimate

    def __getitem__(self, name: str) -> Estimate:
        return self.classes[name]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image.

    Attributes:
        model: the public model's name.
        route: the service's decision; at most `review` where anything is in doubt.
        reason: why, in words.
        case_score: the number that the route depends on; higher is more uncertain. NaN where sampling gave none.
        samples_used: T that was drawn for the decision; 0: the first pass decided.
        volume: None where there are no voxels to be counted: for classification and regression.
        record: what is needed to replay the decision, as the server gave it.
        arrays: the outputs that were asked for, by name, without the batch axis; read-only. K classes, E = 1 where
            classes exclude each other, else K; *S the image's spatial sizes, absent where the answer is for the image
            as a whole. Of a regression K targets, E = K.
        values: of a regression: target → its number with its interval and unit; else None.
    """

    model: str
    route: Route
    reason: str
    case_score: float
    samples_used: int
    volume: Volume | None
    record: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    values: Mapping[str, Value] | None = None

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean probability over samples `[K, *S]`, 0..1, before any recalibration: see `calibrated`. Of a regression
        the numbers `[K]`."""
        return self._array("mean")

    @property
    def variance(self) -> NDArray[np.float32]:
        """Population variance of the probability (0..0.25) or number over samples `[K, *S]`."""
        return self._array("variance")

    @property
    def variance_corrected(self) -> NDArray[np.float32]:
        """Variance times T/(T − 1), the unbiased one, `[K, *S]`."""
        return self._array("variance_corrected")

    @property
    def aleatoric(self) -> NDArray[np.float32]:
        """Mean entropy of the samples `[E, *S]`, nats: the part that lies in the image. Of a regression the mean of the
        variances that the network states, 0 where it states none."""
        return self._array("aleatoric")

    @property
    def epistemic(self) -> NDArray[np.float32]:
        """Mutual information of prediction and network `[E, *S]`, nats: the part that lies in the network. Of a
        regression the variance over samples."""
        return self._array("epistemic")

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """What a single-pass network states of its voxels `[1, *S]`, ≥ 0, higher is less certain."""
        return self._array("uncertainty")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Class index (or 0/1 per class) `[E, *S]`."""
        return self._array("labels")

    @property
    def calibrated(self) -> NDArray[np.float32]:
        """The probability `[K, *S]`, 0..1: the mean, recalibrated where the policy says how."""
        return self._array("calibrated")

    @property
    def labels_sensitive(self) -> NDArray[np.uint8]:
        """Labels that miss no more foreground than the policy states `[E, *S]`; `labels` where it states nothing."""
        return self._array("labels_sensitive")

    def at_most_review(self, reason: str) -> Prediction:
        """The same numbers, but not to be accepted: `reason` is added, and a `reject` stays one."""
        route = Route.REVIEW if self.route is Route.ACCEPT else self.route
        before = "" if self.route is Route.ACCEPT else self.reason
        return dataclasses.replace(self, route=route, reason="; ".join(part for part in (before, reason) if part))

    def remarked(self, remark: str) -> Prediction:
        """The same decision, with one more remark in its reason."""
        return dataclasses.replace(self, reason="; ".join(part for part in (self.reason, remark) if part))

    def blanked(self, outside: NDArray[np.bool_]) -> Prediction:
        """The same decision, with labels and maps that are 0 where `outside` `[*S]` is True."""
        arrays = {
            name: np.where(outside, values.dtype.type(0), values)
            if name in _ON_VOXELS and values.shape[1:] == outside.shape
            else values
            for name, values in self.arrays.items()
        }
        return dataclasses.replace(self, arrays=arrays)

    def rejected(self, reason: str) -> Prediction:
        """The same numbers, for an image that the model must not be asked about: `reason` stands first."""
        before = "" if self.route is Route.ACCEPT else self.reason
        return dataclasses.replace(
            self, route=Route.REJECT, reason="; ".join(part for part in (reason, before) if part)
        )

    def document(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        volume = self.volume
        return {
            "model": self.model,
            "route": self.route.value,
            "reason": self.reason,
            "case_score": number(self.case_score),
            "samples_used": self.samples_used,
            "volume": None if volume is None else {name: each.document() for name, each in volume.classes.items()},
            "volume_total": None if volume is None else volume.total.document(),
            **({} if self.values is None else {"values": {n: each.document() for n, each in self.values.items()}}),
            "record": dict(self.record),
        }

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return self.arrays[name]
        except KeyError:
            raise InvalidInput(
                f"{name} was not asked for; this prediction holds {sorted(self.arrays) or 'no arrays'}: "
                f"call predict(…, outputs=({name!r},))"
            ) from None


def number(value: float) -> float | None:
    """A float as JSON can say it: NaN and infinities become null."""
    return float(value) if math.isfinite(value) else None


def in_words(probability: Mapping[str, float | None]) -> str:
    """`0.93 (mean 0.90 ± 0.04)`: recalibrated, and the samples' own; one number where they are the same."""
    calibrated, mean, sd = (probability[name] for name in ("calibrated", "mean", "sd"))
    if mean is None or calibrated is None:
        return "–"
    spread = f" ± {sd:.3f}" if sd is not None else ""
    if f"{calibrated:.3f}" == f"{mean:.3f}":
        return f"{mean:.3f}{spread}"
    return f"{calibrated:.3f} (mean {mean:.3f}{spread})"
