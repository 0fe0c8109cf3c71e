"""A first policy by plain rules. It states what was seen on the calibration cases and guarantees nothing more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from equipoise_core.aggregate import Assessment
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.policy import AcceptRule, Bounds, Policy, VolumeRule
from equipoise_core.scores import SCORES, default_score
from equipoise_core.volume import voxel_volume
from numpy.typing import NDArray

EPISTEMIC = {Task.SEGMENTATION: "rim_epistemic", Task.CLASSIFICATION: "mutual_information"}


@dataclass(frozen=True)
class LabelledCase:
    """What calibration needs of one case.

    Attributes:
        image_digest: of the image, for the policy's calibration digest.
        numbers: case scores and input statistics by name.
        wrong: whether accepting it would have been an error.
        intervals: per class and `total` (low, high) in mL before any widening; empty without a physical scale.
        truths: the true volumes in mL by the same names.
    """

    image_digest: str
    numbers: Mapping[str, float]
    wrong: bool
    intervals: Mapping[str, tuple[float, float]]
    truths: Mapping[str, float]


def label_case(assessment: Assessment, truth: NDArray[np.uint8], acceptable_dice: float | None) -> LabelledCase:
    """Compares an assessment with the truth.

    Args:
        truth: segmentation: `[*S]` class indices (softmax) or 0/1 (sigmoid, one class); classification: the class.
        acceptable_dice: segmentation: a mean Dice below it is an error. None: classification.
    """
    contract = assessment.model.contract
    spacing = assessment.case.spacing
    intervals: dict[str, tuple[float, float]] = {}
    truths: dict[str, float] = {}
    if contract.task is Task.SEGMENTATION and spacing is not None:
        for name, volume in assessment.volumes.items():
            intervals[name] = (volume.low, volume.high)
            truths[name] = float(true_region(contract, truth, name).sum()) * voxel_volume(spacing)
    return LabelledCase(
        assessment.image_digest,
        {**assessment.scores, **assessment.statistics},
        is_wrong(assessment, truth, acceptable_dice),
        intervals,
        truths,
    )


def is_wrong(assessment: Assessment, truth: NDArray[np.uint8], acceptable_dice: float | None) -> bool:
    """Classification: another label than the truth. Segmentation: Dice, averaged over foreground classes, too low."""
    if acceptable_dice is None:
        return bool(int(assessment.uncertainty.labels.flat[0]) != int(truth))
    return bool(np.mean(list(dice_per_class(assessment, truth).values())) < acceptable_dice)


def dice_per_class(assessment: Assessment, truth: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of each foreground class, 0..1; 1 where neither prediction nor truth has it."""
    contract, labels = assessment.model.contract, assessment.uncertainty.labels
    scores = {}
    for index in contract.foreground:
        name = contract.classes[index]
        predicted = labels[0] == index if contract.activation is Activation.SOFTMAX else labels[index] == 1
        actual = true_region(contract, truth, name)
        total = int(predicted.sum()) + int(actual.sum())
        scores[name] = 2.0 * int((predicted & actual).sum()) / total if total else 1.0
    return scores


def true_region(contract: Contract, truth: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """Voxels of the class `name`, or of any foreground class for `total`."""
    if name == "total":
        return np.asarray(truth > 0)
    index = contract.classes.index(name)
    return np.asarray(truth == (index if contract.activation is Activation.SOFTMAX else index + 1))


def plain_policy(
    contract: Contract, samples: int, cases: Sequence[LabelledCase], loss: str, alpha: float = 0.02
) -> Policy:
    """The policy that plain rules choose on labelled cases.

    Accept: the highest threshold at which at most a share `alpha` of the calibration cases below it is wrong.
    Typical: inside the range that calibration cases span, widened by a quarter of its width on either side.
    Suitable: inside that range widened by its whole width; a case outside is rejected.
    Volume: split conformal at 90 % (see `conformal_widening`).

    Args:
        loss: what counted as wrong, in words.
    """
    score = default_score(contract.task)
    chosen = highest_threshold([(case.numbers[score], case.wrong) for case in cases], alpha)
    accept = None
    if chosen is not None:
        accepted = [case for case in cases if case.numbers[score] <= chosen]
        accept = AcceptRule(
            score,
            chosen,
            loss,
            len(cases),
            len(accepted),
            sum(case.wrong for case in accepted),
            f"plain rule: the highest threshold with at most {alpha:.0%} wrong among the calibration cases it accepts; "
            "no guarantee for other cases",
        )
    return Policy(
        contract.model_digest,
        digest_of(sorted(case.image_digest for case in cases)),
        samples,
        accept,
        _bounds(contract, cases, 0.25),
        _bounds(contract, cases, 1.0),
        _volume_rule(cases) if contract.spacing is not None else None,
    )


def _bounds(contract: Contract, cases: Sequence[LabelledCase], margin: float) -> Bounds:
    """The range of each input statistic, and the upper end of the epistemic score, widened by `margin`."""
    epistemic = EPISTEMIC[contract.task]
    statistics = [name for name in cases[0].numbers if name not in SCORES[contract.task]]
    limits = {name: widened([case.numbers[name] for case in cases], margin) for name in statistics}
    limits[epistemic] = (0.0, widened([case.numbers[epistemic] for case in cases], margin)[1])
    return Bounds(limits, f"plain rule: the calibration cases' range, widened by {margin:.0%} on either side")


def highest_threshold(cases: Iterable[tuple[float, bool]], alpha: float) -> float | None:
    """The highest score s such that of the cases scoring at most s a share ≤ alpha is wrong; None: there is none."""
    ordered = sorted(cases)
    wrong, best = 0, None
    for index, (score, is_error) in enumerate(ordered):
        wrong += is_error
        last_of_its_score = index + 1 == len(ordered) or ordered[index + 1][0] > score
        if last_of_its_score and wrong <= alpha * (index + 1):
            best = score
    return best


def widened(numbers: Sequence[float], margin: float) -> tuple[float, float]:
    """(lowest, highest), moved apart by `margin` of the distance between them on either side."""
    low, high = min(numbers), max(numbers)
    return low - margin * (high - low), high + margin * (high - low)


def conformal_widening(intervals: Sequence[tuple[float, float]], truths: Sequence[float], level: float) -> float | None:
    """Split conformal (Vovk 2005; Romano et al. 2019): widen [L, U] by the ⌈(n+1)·level⌉-th smallest
    `max(L − V, V − U)`, and a new exchangeable case is covered with probability ≥ `level`. None: too few cases."""
    excess = sorted(max(low - truth, truth - high) for (low, high), truth in zip(intervals, truths, strict=True))
    rank = math.ceil((len(excess) + 1) * level)
    return excess[rank - 1] if rank <= len(excess) else None


def _volume_rule(cases: Sequence[LabelledCase], level: float = 0.9) -> VolumeRule | None:
    widening = {}
    for name in cases[0].intervals:
        width = conformal_widening([c.intervals[name] for c in cases], [c.truths[name] for c in cases], level)
        if width is None:
            return None
        widening[name] = width
    return VolumeRule(level, widening, len(cases), f"split conformal at {level:.0%} on {len(cases)} cases")
