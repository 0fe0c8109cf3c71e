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
from .outline import OutlineRule, parse_outline
from .recalibration import Recalibration, parse_recalibration
from .stages import Stage, check_order, parse_stage

FORMAT = "equipoise-policy/4"

PREDICTED_CLASS = "predicted class"
"""`Groups.by` where a case's group is the class that it is predicted to be, and nothing that a caller states."""


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
class Groups:
    """A certificate for each group of cases: a threshold that holds on average may fail at one scanner.

    Attributes:
        by: what groups cases, in words: `scanner`; see `PREDICTED_CLASS`.
        stages: group → the policy's stages with thresholds of its own.
        guarantees: group → what was tested of them, on its own cases.
        without: group → its calibration cases, where they certify nothing: its cases go to review.
        rule: what all certificates together guarantee, in words.
    """

    by: str
    stages: Mapping[str, tuple[Stage, ...]]
    guarantees: Mapping[str, Guarantee]
    without: Mapping[str, int]
    rule: str

    def __post_init__(self) -> None:
        if self.stages.keys() != self.guarantees.keys() or self.stages.keys() & self.without.keys():
            raise ValueError("each group has stages and a guarantee, or neither")

    def named(self, group: str | None) -> str | None:
        """The group, where the policy knows one of that name: nothing else that a caller states is kept."""
        return group if group in self.stages or group in self.without else None

    def document(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "stages": {name: [stage.document() for stage in stages] for name, stages in self.stages.items()},
            "guarantees": {name: dict(vars(guarantee)) for name, guarantee in self.guarantees.items()},
            "without": dict(self.without),
            "rule": self.rule,
        }


@dataclass(frozen=True)
class Adapted:
    """The policy was made for one site from another site's policy (`equipoise adapt`).

    Attributes:
        site: its name.
        source: digest of the policy that it was made from.
        images: of the site, without labels, that fixed what is typical there.
        labelled: cases of the site, one of each patient, that were labelled so far.
        effective_size: cases of the site that the other site's calibration cases are worth.
        rule: what is promised at the site, by what, in words.
    """

    site: str
    source: str
    images: int
    labelled: int
    effective_size: float
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
        adapted: the one site that it is for, where it was made from another site's.
        groups: thresholds and guarantees by group, where there are such; `stages` then accept nothing themselves.
        despite: what was found against the calibration cases, and why they were used all the same; "": nothing.
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
    outline: OutlineRule | None = None
    recalibration: Recalibration | None = None
    monitoring: Monitoring | None = None
    adapted: Adapted | None = None
    groups: Groups | None = None
    despite: str = ""
    interval: IntervalRule | None = None

    def __post_init__(self) -> None:
        check_order(self.stages)
        groups = self.groups.stages.values() if self.groups else ()
        for stage in (*self.stages, *(stage for stages in groups for stage in stages)):
            if stage.score == RELATIVE_WIDTH and (self.interval is None or (stage.accept_up_to or 0.0) > 1.0):
                raise ValueError("a stage accepts by the width of intervals only what is narrower than tolerated")
        for stages in self.groups.stages.values() if self.groups else ():
            if [(stage.samples, stage.score) for stage in stages] != [(s.samples, s.score) for s in self.stages]:
                raise ValueError("a group's stages have the policy's samples and scores")
        if self.groups and self.groups.by == PREDICTED_CLASS and len(self.stages) > 1:
            raise ValueError("a prediction may change from stage to stage: by predicted class there is one stage")
        if self.groups and any(stage.accept_up_to is not None for stage in self.stages):
            raise ValueError("where groups have thresholds of their own, a case of none of them is not accepted")
        if self.guarantee is None and any(stage.accept_up_to is not None for stage in self.stages):
            raise ValueError("a stage accepts cases, but no guarantee is stated")

    @property
    def samples(self) -> int:
        """T: of the last stage."""
        return self.stages[-1].samples

    def stage(self, samples: int, group: str | None = None) -> Stage | None:
        """The one that decides after so many samples (0: the first pass) on a case of this group."""
        own = self.groups.stages.get(group) if self.groups and group is not None else None
        return next((stage for stage in own or self.stages if stage.samples == samples), None)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.document())

    def document(self) -> dict[str, Any]:
        guarantee, volume, sensitive, outline = self.guarantee, self.volume, self.sensitive, self.outline
        further = {  # policies without them keep their digests
            **({"adapted": dict(vars(self.adapted))} if self.adapted else {}),
            **({"groups": self.groups.document()} if self.groups else {}),
            **({"despite": self.despite} if self.despite else {}),
        }
        return {
            **further,
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
            "outline": None if outline is None else dict(vars(outline)),
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
    return parse_document(document, "policy", FORMAT, _policy, PolicyError, must_state=True)


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
        outline=optional(document["outline"], parse_outline),
        recalibration=optional(document["recalibration"], parse_recalibration),
        monitoring=optional(document["monitoring"], parse_monitoring),
        adapted=optional(document.get("adapted"), _adapted),
        groups=optional(document.get("groups"), _groups),
        despite=str(document.get("despite", "")),
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


def _groups(document: Any) -> Groups:
    return Groups(
        by=str(document["by"]),
        stages={str(name): tuple(map(parse_stage, stages)) for name, stages in document["stages"].items()},
        guarantees={str(name): _guarantee(each) for name, each in document["guarantees"].items()},
        without={str(name): int(cases) for name, cases in document["without"].items()},
        rule=str(document["rule"]),
    )


def _adapted(document: Any) -> Adapted:
    return Adapted(
        site=str(document["site"]),
        source=str(document["source"]),
        images=int(document["images"]),
        labelled=int(document["labelled"]),
        effective_size=float(document["effective_size"]),
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
