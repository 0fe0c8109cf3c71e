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
from .decision import Decision, Evidence, Route, decide, settled
from .moments import Array, Moments
from .policy import AcceptRule, VolumeRule
from .record import FORMAT, jsonable, software
from .scores import case_scores, default_score
from .statistics import prediction_statistics
from .uncertainty import Uncertainty
from .volume import UNKNOWN, VolumeEstimate, volume_of_samples, voxel_volume

UNCALIBRATED_LEVEL = 0.9
"""Share of the samples' volumes inside the interval where no policy widens it."""


@dataclass(frozen=True)
class Assessment:
    """What is known of one case after the samples drawn so far. Maps and volumes are computed when first asked for.

    Attributes:
        asked: T that was to be drawn.
        problems: what went wrong, in words.
        screened: this is the answer of the contract's screen; no sample was drawn.
    """

    model: Model
    case: Case
    seed: int
    input: Input
    moments: Moments
    asked: int
    problems: tuple[str, ...]
    screened: bool = False

    @property
    def contract(self) -> Contract:
        """What was run under: the model's contract, or its screen's."""
        return self.model.contract.screening if self.screened else self.model.contract

    @cached_property
    def uncertainty(self) -> Uncertainty:
        return Uncertainty(self.moments, self.model.contract.activation)

    @cached_property
    def scores(self) -> dict[str, float]:
        return case_scores(self.contract, self.uncertainty)

    @cached_property
    def prediction_statistics(self) -> dict[str, float]:
        return prediction_statistics(self.model.contract, self.uncertainty.mean)

    @property
    def statistics(self) -> dict[str, float]:
        """Of input and prediction, by name."""
        return {**self.input.statistics, **self.prediction_statistics}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All that routing may look at: scores, statistics and, where the policy says how, `ood_distance`.

        Without a policy nothing looks at the input's statistics, which take longer than the rest for a small image.
        """
        policy = self.model.in_force
        if policy is None:
            return {**self.scores, **self.prediction_statistics}
        ood_distance = policy.ood_distance.number(self.input.statistics) if policy.ood_distance else {}
        return {**self.scores, **self.statistics, **ood_distance}

    @cached_property
    def stopped(self) -> bool:
        """Whether the policy's stopping rule is content: no more samples can be expected to change the route."""
        policy, samples = self.model.in_force, self.moments.samples
        named = self.case.samples is not None
        if policy is None or named or self.screened or self.problems or samples >= self.asked:
            return False
        return settled(policy, self.numbers, {*self.scores, *self.prediction_statistics}, samples)

    @property
    def score_name(self) -> str:
        """The score that routing looks at."""
        rule = self.rule
        return rule.score if rule is not None and rule.score in self.scores else default_score(self.contract)

    @property
    def rule(self) -> AcceptRule | None:
        """What the policy in force accepts by."""
        policy = self.model.in_force
        if policy is None:
            return None
        return policy.screen if self.screened else policy.accept

    @property
    def case_score(self) -> float:
        return self.scores[self.score_name]

    @property
    def volume_rule(self) -> VolumeRule | None:
        """What the policy says of volume intervals, where it is in force; else they are the samples' own."""
        return self.model.in_force.volume if self.model.in_force else None

    @cached_property
    def volumes(self) -> dict[str, VolumeEstimate]:
        """Per class name and for `total` (all foreground); NaN without a spacing in mm, and for classification."""
        contract, rule = self.model.contract, self.volume_rule
        if contract.task is Task.CLASSIFICATION or self.case.spacing is None:
            return dict.fromkeys((*contract.classes, "total"), UNKNOWN)
        millilitres = self.moments.volumes * voxel_volume(self.case.spacing)
        columns = dict(zip(contract.classes, millilitres.T, strict=True))
        columns["total"] = millilitres[:, list(contract.foreground)].sum(axis=1)
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
        if policy is None or policy.sensitive is None or self.model.contract.task is Task.CLASSIFICATION:
            return self.uncertainty.labels
        return sensitive_labels(self.model.contract, self.uncertainty.mean, policy.sensitive.threshold)

    @cached_property
    def decision(self) -> Decision:
        model, case = self.model, self.case
        evidence = Evidence(
            numbers=self.numbers,
            samples=self.moments.samples,
            asked=self.asked,
            own_samples=case.samples is not None,
            own_seed=case.seed is not None,
            spacing=case.spacing,
            problems=self.problems,
            stopped=self.stopped,
            windows=model.contract.in_windows(case.image.shape[1:]),
            screened=self.screened,
        )
        return decide(model.contract, model.policy, model.why_no_policy, evidence)

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
        found = {name: watched.rank(name, self.numbers[name], digest) for name in self.numbers}
        return {name: rank for name, rank in found.items() if rank is not None}

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is needed to replay the decision; see `record`."""
        model, case, policy = self.model, self.case, self.model.policy
        segmentation = model.contract.task is Task.SEGMENTATION
        return dict(
            jsonable(
                {
                    "format": FORMAT,
                    "model": model.contract.name,
                    "model_digest": model.contract.model_digest,
                    "policy_digest": policy.digest if policy else None,
                    "code_digest": model.code_digest,
                    "input_digest": self.input.digest,
                    "shape": list(case.image.shape),
                    "spacing": None if case.spacing is None else list(case.spacing),
                    "seed": str(self.seed),  # a string: 64 bits do not survive JSON's doubles
                    "seed_named": case.seed is not None,
                    "samples": self.moments.samples,
                    "samples_asked": self.asked,
                    "samples_named": case.samples is not None,
                    "stopped": self.stopped,
                    "screened": self.screened,
                    "problems": list(self.problems),
                    "masks_plan": "iid" if self.contract.stochastic else "none",
                    "score": self.score_name,
                    "case_score": self.case_score,
                    "scores": self.scores,
                    "statistics": self.statistics,
                    "ood_distance": self.numbers.get("ood_distance"),
                    "threshold": self.rule.threshold if self.rule else None,
                    "volume_level": self.volume_rule.level if segmentation and self.volume_rule else None,
                    "volume_ml": {n: vars(v) for n, v in self.volumes.items()} if segmentation else None,
                    "route": self.decision.route.value,
                    "reason": self.decision.reason,
                    "alpha": policy.accept.alpha if policy and policy.accept else None,
                    "delta": policy.accept.delta if policy and policy.accept else None,
                    "audit": self.audited,
                    "software": software(),
                }
            )
        )


def sensitive_labels(contract: Contract, mean: Array, threshold: float) -> NDArray[np.uint8]:
    """`[E, *S]`: foreground where its probability reaches `threshold`; softmax: its most probable class."""
    if contract.activation is Activation.SIGMOID:
        return (mean >= threshold).astype(np.uint8)
    foreground = list(contract.foreground)
    labels = mean[foreground].argmax(axis=0) + foreground[0]
    return np.asarray(np.where(1.0 - mean[0] >= threshold, labels, 0)[None], dtype=np.uint8)
