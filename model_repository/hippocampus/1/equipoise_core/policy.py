"""The policy: what was chosen on calibration cases, and for which model. Without one that fits, nothing is accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .canonical import digest_of, optional, parse_document, read_json
from .intervals import RELATIVE_WIDTH, IntervalRule, parse_interval
from .monitoring import Monitoring, parse_monitoring
from .ood_distance import OodDistance, parse_ood_distance
from .recalibration import Recalibration, parse_recalibration
from .stages import Stage, check_order, parse_stage

FORMAT = "equipoise-policy/3"


class PolicyError(ValueError):
    """The policy cannot be read, or does not hold together."""


@dataclass(frozen=True)
class Guarantee:
    """What was tested of all stages together, on calibration cases.

    Attributes:
        alpha, delta: error among accepted cases ≤ alpha with confidence 1 − delta.
        loss: what counted as an error among calibration cases, in words.
        cases, accepted, errors: calibration cases, how many of them are accepted, how many of those are wrong.
        rule: how the thresholds were chosen, and what that guarantees, in words.
    """

    alpha: float
    delta: float
    loss: str
    cases: int
    accepted: int
    errors: int
    rule: str


@dataclass(frozen=True)
class Bounds:
    """[low, high] per named score or input statistic, and how they were chosen, in words."""

    limits: Mapping[str, tuple[float, float]]
    rule: str

    def document(self) -> dict[str, Any]:
        return {"limits": {name: list(pair) for name, pair in self.limits.items()}, "rule": self.rule}


NO_BOUNDS = Bounds({}, "none")


@dataclass(frozen=True)
class VolumeRule:
    """Split-conformal widening of the volume interval, mL per class name and for `total`."""

    level: float
    widening: Mapping[str, float]
    cases: int
    rule: str


@dataclass(frozen=True)
class SensitiveRule:
    """Conformal risk control of false negatives: `labels_sensitive` takes a voxel for foreground from `threshold` on.

    Attributes:
        threshold: probability of being foreground (softmax: of any foreground class), 0..½.
        alpha: the expected share of a new case's true foreground that is missed, at most.
    """

    threshold: float
    alpha: float
    cases: int
    rule: str


@dataclass(frozen=True)
class Policy:
    """See the fields' classes.

    Attributes:
        model_digest: the model it was made for (Contract.model_digest).
        calibration_digest: SHA-256 over the calibration cases' digests.
        stages: what a case goes through, in this order, until it is decided.
        guarantee: of the stages' thresholds; None: they accept nothing.
        typical: a case outside is unlike the calibration cases: not accepted.
        suitable: a case outside is so unlike them that the input is rejected.
        population: for which cases all of this holds, in words.
        ood_distance: computes the number of that name, which `typical` and `suitable` may bound.
        monitoring: which accepted cases are audited, and where calibration cases lay.
        interval: of a regression's numbers, and which error is tolerated.
    """

    model_digest: str
    calibration_digest: str
    stages: tuple[Stage, ...]
    guarantee: Guarantee | None = None
    typical: Bounds = NO_BOUNDS
    suitable: Bounds = NO_BOUNDS
    volume: VolumeRule | None = None
    population: str = ""
    ood_distance: OodDistance | None = None
    sensitive: SensitiveRule | None = None
    recalibration: Recalibration | None = None
    monitoring: Monitoring | None = None
    interval: IntervalRule | None = None

    def __post_init__(self) -> None:
        check_order(self.stages)
        for stage in self.stages:
            if stage.score == RELATIVE_WIDTH and (self.interval is None or (stage.accept_up_to or 0.0) > 1.0):
                raise ValueError("a stage accepts by the width of intervals only what is narrower than tolerated")
        if self.guarantee is None and any(stage.accept_up_to is not None for stage in self.stages):
            raise ValueError("a stage accepts cases, but no guarantee is stated")

    @property
    def samples(self) -> int:
        """T: of the last stage."""
        return self.stages[-1].samples

    def stage(self, samples: int) -> Stage | None:
        """The one that decides after so many samples (0: the first pass)."""
        return next((stage for stage in self.stages if stage.samples == samples), None)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.document())

    def document(self) -> dict[str, Any]:
        guarantee, volume, sensitive = self.guarantee, self.volume, self.sensitive
        return {
            "format": FORMAT,
            "model_digest": self.model_digest,
            "calibration_digest": self.calibration_digest,
            "stages": [stage.document() for stage in self.stages],
            "guarantee": None if guarantee is None else dict(vars(guarantee)),
            "typical": self.typical.document(),
            "suitable": self.suitable.document(),
            "volume": None if volume is None else {**vars(volume), "widening": dict(volume.widening)},
            "population": self.population,
            "ood_distance": self.ood_distance.document() if self.ood_distance else None,
            "sensitive": None if sensitive is None else dict(vars(sensitive)),
            "recalibration": self.recalibration.document() if self.recalibration else None,
            "monitoring": self.monitoring.document() if self.monitoring else None,
            **({"interval": self.interval.document()} if self.interval else {}),
        }

    def dumps(self) -> str:
        return json.dumps({**self.document(), "digest": self.digest}, indent=1, allow_nan=False) + "\n"


def load_policy(path: Path) -> Policy:
    """Reads `policy.json`. Raises PolicyError that names what is wrong with it."""
    return parse_policy(read_json(path, PolicyError))


def parse_policy(document: Any) -> Policy:
    """The policy that a JSON document describes; it must state its own digest."""
    policy = parse_document(document, "policy", FORMAT, _policy, PolicyError)
    if "digest" not in document:
        raise PolicyError("policy states no digest: it was changed")
    return policy


def _policy(document: Any) -> Policy:
    return Policy(
        model_digest=str(document["model_digest"]),
        calibration_digest=str(document["calibration_digest"]),
        stages=tuple(parse_stage(stage) for stage in document["stages"]),
        guarantee=optional(document["guarantee"], _guarantee),
        typical=_bounds(document["typical"]),
        suitable=_bounds(document["suitable"]),
        volume=optional(document["volume"], _volume_rule),
        population=str(document["population"]),
        ood_distance=optional(document["ood_distance"], parse_ood_distance),
        sensitive=optional(document["sensitive"], _sensitive_rule),
        recalibration=optional(document["recalibration"], parse_recalibration),
        monitoring=optional(document["monitoring"], parse_monitoring),
        interval=optional(document.get("interval"), parse_interval),
    )


def _guarantee(document: Any) -> Guarantee:
    return Guarantee(
        alpha=float(document["alpha"]),
        delta=float(document["delta"]),
        loss=str(document["loss"]),
        cases=int(document["cases"]),
        accepted=int(document["accepted"]),
        errors=int(document["errors"]),
        rule=str(document["rule"]),
    )


def _volume_rule(document: Any) -> VolumeRule:
    widening = {str(name): float(width) for name, width in document["widening"].items()}
    return VolumeRule(float(document["level"]), widening, int(document["cases"]), str(document["rule"]))


def _sensitive_rule(document: Any) -> SensitiveRule:
    threshold, alpha = float(document["threshold"]), float(document["alpha"])
    return SensitiveRule(threshold, alpha, int(document["cases"]), str(document["rule"]))


def _bounds(document: Any) -> Bounds:
    limits = {str(name): (float(low), float(high)) for name, (low, high) in document["limits"].items()}
    return Bounds(limits, str(document["rule"]))
