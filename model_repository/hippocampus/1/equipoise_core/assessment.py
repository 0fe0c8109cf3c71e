"""What is known of one case after the samples drawn so far: maps, scores, volumes, decision, record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .canonical import digest_of
from .case import Case, Input, Model
from .contract import Activation, Contract, Task
from .decision import Decision, Evidence, Route, decide
from .intervals import RELATIVE_WIDTH, NumberEstimate, estimates
from .moments import Array, Moments
from .policy import PREDICTED_CLASS, VolumeRule
from .reasons import Reason
from .record import FORMAT, computed_by, jsonable
from .scores import case_scores, default_score
from .stages import FIRST_PASS, Stage
from .statistics import prediction_statistics
from .uncertainty import NumberUncertainty, Uncertainty, label_confidence, uncertainty_of
from .volume import UNKNOWN, VolumeEstimate, volume_of_samples, voxel_volume

UNCALIBRATED_LEVEL = 0.9
"""Share of the samples' volumes inside the interval where no policy widens it."""


@dataclass(frozen=True)
class Assessment:
    """What is known of one case after one stage. Maps and volumes are computed when first asked for.

    Attributes:
        moments: of the answer that is decided on: of the samples drawn so far, or of the first pass.
        planned: samples that the last stage is to have.
        last: no further stage follows, for whatever reason.
        problems: what went wrong.
        first_pass: this is the answer of the first pass; no sample was drawn for it.
        sampled: moments of samples that were drawn after a first pass had decided, for the outputs that it cannot give.
    """

    model: Model
    case: Case
    seed: int
    input: Input
    moments: Moments
    planned: int
    last: bool
    problems: tuple[Reason, ...] = ()
    first_pass: bool = False
    sampled: Moments | None = None

    @property
    def contract(self) -> Contract:
        """What was run under: the model's contract, or that of its first pass."""
        return self.model.contract.of_first_pass if self.first_pass else self.model.contract

    @property
    def samples(self) -> int:
        """Drawn for the decision."""
        return FIRST_PASS if self.first_pass else self.moments.samples

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Of the answer that is decided on."""
        return uncertainty_of(self.model.contract, self.moments)

    @cached_property
    def spread(self) -> Uncertainty:
        """What only samples can say, or a network that states it; NaN where none were drawn."""
        if self.sampled is not None:
            return uncertainty_of(self.model.contract, self.sampled)
        return self.uncertainty if self.shows_spread else uncertainty_of(self.model.contract, self.moments.unknown)

    @property
    def shows_spread(self) -> bool:
        """Whether the answer itself says how far samples lie apart."""
        return not self.first_pass or self.contract.states_moments

    @cached_property
    def scores(self) -> dict[str, float]:
        """By name; the width of the interval among them where the policy says what is tolerated."""
        found, policy = case_scores(self.contract, self.uncertainty), self.model.in_force
        if policy is not None and policy.interval is not None and isinstance(self.uncertainty, NumberUncertainty):
            width = policy.interval.relative_width(self.contract.targets, self.uncertainty.deviation)
            found[RELATIVE_WIDTH] = width
        return found

    @cached_property
    def values(self) -> dict[str, NumberEstimate]:
        """Regression: per target's name; empty for other tasks."""
        if not isinstance(self.uncertainty, NumberUncertainty):
            return {}
        policy, said = self.model.in_force, self.uncertainty
        rule = policy.interval if policy is not None else None
        return estimates(self.contract.targets, said.mean, said.deviation, rule)

    @cached_property
    def prediction_statistics(self) -> dict[str, float]:
        return prediction_statistics(self.model.contract, self.uncertainty.mean)

    @property
    def statistics(self) -> dict[str, float]:
        """Of input and prediction, by name."""
        return {**self.input.statistics, **self.prediction_statistics}

    @property
    def answer_numbers(self) -> dict[str, float]:
        """Scores and statistics of the prediction, by name: what a further stage can change."""
        return {**self.scores, **self.prediction_statistics}

    @cached_property
    def input_numbers(self) -> dict[str, float]:
        """Statistics of the input and, where the policy says how, `ood_distance`.

        Without a policy nothing looks at them, and for a small image they take longer than the rest.
        """
        policy = self.model.in_force
        if policy is None:
            return {}
        distance = policy.ood_distance.number(self.input.statistics) if policy.ood_distance else {}
        return {**self.input.statistics, **distance}

    @property
    def score_name(self) -> str:
        """The score that routing looks at."""
        stage = self.stage
        return stage.score if stage is not None and stage.score in self.scores else default_score(self.contract)

    @property
    def stage(self) -> Stage | None:
        """The stage of the policy in force that looks at this answer."""
        return self.model.in_force.stage(self.samples, self.group) if self.model.in_force else None

    @property
    def group(self) -> str | None:
        """The group of cases that this is one of: what the caller states, or the predicted class where that counts."""
        contract, policy = self.model.contract, self.model.in_force
        if policy is None or policy.groups is None or policy.groups.by != PREDICTED_CLASS:
            return self.case.group
        if contract.task is not Task.CLASSIFICATION or contract.activation is not Activation.SOFTMAX:
            return None
        return contract.classes[int(self.uncertainty.mean.argmax())]

    @property
    def case_score(self) -> float:
        return self.scores[self.score_name]

    @property
    def volume_rule(self) -> VolumeRule | None:
        """What the policy says of volume intervals, where it is in force; else they are the samples' own."""
        return self.model.in_force.volume if self.model.in_force else None

    @cached_property
    def volumes(self) -> dict[str, VolumeEstimate]:
        """Per class name and for `total` (all foreground); NaN without a spacing in mm, and where there are no voxels.

        Where regions may overlap there is no total: their sum would count a voxel several times.
        """
        contract, rule = self.model.contract, self.volume_rule
        if not contract.per_voxel or self.case.spacing is None:
            return dict.fromkeys((*contract.classes, "total"), UNKNOWN)
        millilitres = self.moments.volumes * voxel_volume(self.case.spacing)
        columns = dict(zip(contract.classes, millilitres.T, strict=True))
        total = (
            np.full(len(millilitres), np.nan) if contract.overlapping else millilitres[:, contract.foreground].sum(1)
        )
        columns["total"] = total
        level = rule.level if rule else UNCALIBRATED_LEVEL
        return {
            name: volume_of_samples(column, level, rule.widening.get(name, 0.0) if rule else 0.0)
            for name, column in columns.items()
        }

    @cached_property
    def calibrated(self) -> Array:
        """The samples' mean, recalibrated as the policy says: `[K, *S]`, 0..1. Without that: the mean itself."""
        policy, mean = self.model.in_force, self.uncertainty.mean
        if policy is None or policy.recalibration is None:
            return mean
        return policy.recalibration.apply(mean, self.model.contract.activation)

    @cached_property
    def labels_sensitive(self) -> NDArray[np.uint8]:
        """Labels that miss no more than the policy's `sensitive` rule allows; without one, the labels themselves."""
        policy = self.model.in_force
        if policy is None or policy.sensitive is None or not self.model.contract.per_voxel:
            return self.uncertainty.labels
        return sensitive_labels(self.model.contract, self.uncertainty.mean, policy.sensitive.threshold)

    @cached_property
    def decided(self) -> Decision | None:
        """None: it is left to the next stage."""
        model, case = self.model, self.case
        evidence = Evidence(
            input=self.input_numbers,
            answer=self.answer_numbers,
            samples=self.samples,
            planned=self.planned,
            last=self.last,
            named_samples=case.samples is not None,
            named_seed=case.seed is not None,
            spacing=case.spacing,
            problems=(*self.problems, *self.input.problems),
            windows=model.contract.in_windows(case.image.shape[1:]),
            closed=model.closed,
            group=self.group,
        )
        return decide(model.contract, model.policy, model.why_no_policy, evidence)

    @property
    def decision(self) -> Decision:
        """Of an assessment that is decided."""
        assert self.decided is not None
        return self.decided

    @property
    def outline_margins(self) -> dict[str, float] | None:
        """Level and margins of the policy's `OutlineRule`; None where it has none, or the image no scale."""
        policy, contract = self.model.in_force, self.model.contract
        if policy is None or policy.outline is None or (contract.spacing is not None and self.case.spacing is None):
            return None
        return {name: getattr(policy.outline, name) for name in ("level", "inner", "outer")}

    @property
    def confidence(self) -> float | None:
        """Classification: the recalibrated probability that the answer's label is right, 0..1, of the least sure label.

        None for segmentation, whose experts judge outlines, and where policy or samples are another model's.
        """
        contract = self.model.contract
        if contract.task is not Task.CLASSIFICATION or self.model.in_force is None:
            return None
        return float(label_confidence(contract.activation, self.uncertainty.labels, self.calibrated).min())

    @property
    def audited(self) -> bool:
        """Whether this accepted case is one of those that an expert looks at all the same."""
        policy = self.model.in_force
        if policy is None or policy.monitoring is None or self.decision.route is not Route.ACCEPT:
            return False
        return policy.monitoring.audits(digest_of([self.input.digest, policy.model_digest, policy.digest]))

    @property
    def ranks(self) -> dict[str, float]:
        """Where the case's numbers lie among those of the calibration cases; see `Monitoring.rank`."""
        policy = self.model.in_force
        if policy is None or policy.monitoring is None:
            return {}
        watched, digest = policy.monitoring, self.input.digest
        numbers = {**self.input_numbers, **self.answer_numbers}
        found = {name: watched.rank(name, number, digest) for name, number in numbers.items()}
        return {name: rank for name, rank in found.items() if rank is not None}

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is needed to replay the decision; see `record`."""
        model, case, policy = self.model, self.case, self.model.policy
        contract, stage, reason = model.contract, self.stage, self.decision.reason
        segmentation = contract.per_voxel
        guarantee = policy.guarantee if policy else None
        groups = policy.groups if policy else None
        return dict(
            jsonable(
                {
                    "format": FORMAT,
                    "model": contract.name,
                    "model_digest": contract.model_digest,
                    "policy_digest": policy.digest if policy else None,
                    "code_digest": model.code_digest,
                    "input_digest": self.input.digest,
                    "shape": list(case.image.shape),
                    "spacing": None if case.spacing is None else list(case.spacing),
                    "seed": str(self.seed),  # a string: 64 bits do not survive JSON's doubles
                    "seed_named": case.seed is not None,
                    "samples": self.samples,
                    "samples_planned": self.planned,
                    "samples_named": case.samples is not None,
                    **({"group": groups.named(self.group)} if groups else {}),
                    "first_pass": self.first_pass,
                    "problems": [problem.document() for problem in self.problems],
                    "score": self.score_name,
                    "case_score": self.case_score,
                    "scores": self.scores,
                    "statistics": self.statistics,
                    "ood_distance": self.input_numbers.get("ood_distance"),
                    "threshold": stage.accept_up_to if stage else None,
                    "volume_level": self.volume_rule.level if segmentation and self.volume_rule else None,
                    "volume_ml": {n: vars(v) for n, v in self.volumes.items()} if segmentation else None,
                    "outline": self.outline_margins,
                    **self._recorded_values,
                    "route": self.decision.route.value,
                    "reason": {**reason.document(), "text": str(reason)},
                    "alpha": guarantee.alpha if guarantee else None,
                    "delta": guarantee.delta if guarantee else None,
                    "audit": self.audited,
                    "confidence": self.confidence,
                    "ood_rank": self.ranks.get("ood_distance"),
                    "expected": dict(policy.monitoring.expected) if policy and policy.monitoring else None,
                    "computed_by": computed_by(contract, model.computed_by),
                }
            )
        )

    @property
    def _recorded_values(self) -> dict[str, Any]:
        """Of a regression: its numbers with their units, and what their intervals promise."""
        contract, policy = self.model.contract, self.model.in_force
        if contract.task is not Task.REGRESSION:
            return {}
        units = {target.name: target.unit for target in contract.targets}
        return {
            "interval_level": policy.interval.level if policy is not None and policy.interval else None,
            "values": {name: {**vars(each), "unit": units[name]} for name, each in self.values.items()},
        }


def sensitive_labels(contract: Contract, mean: Array, threshold: float) -> NDArray[np.uint8]:
    """`[E, *S]`: foreground where its probability reaches `threshold`; softmax: its most probable class."""
    if contract.activation is Activation.SIGMOID:
        return (mean >= threshold).astype(np.uint8)
    foreground = list(contract.foreground)
    labels = mean[foreground].argmax(axis=0) + foreground[0]
    return np.asarray(np.where(1.0 - mean[0] >= threshold, labels, 0)[None], dtype=np.uint8)
