"""Labelled cases → what calibration needs of each: the model's answer after every stage, compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from equipoise_core.assessment import Assessment
from equipoise_core.case import Case, Model
from equipoise_core.contract import Activation, Contract
from equipoise_core.outline import foreground_of
from equipoise_core.sampling import Run, RunSampler, get_ready
from equipoise_core.stages import chunk_of
from equipoise_core.volume import voxel_volume
from numpy.typing import NDArray

from .errors import CalibrationError
from .metrics import dice
from .outline import Margins, margins_needed

SENSITIVE_GRID = tuple(np.linspace(0.5, 0.0, 101).round(3).tolist())
"""Candidates for the threshold of `labels_sensitive`, from the strictest to the one that misses nothing."""

VOXELS = 2000
"""Voxels per case that calibration errors of a segmentation are measured on, drawn without replacement."""


@dataclass(frozen=True)
class Labelled:
    """One image with its truth.

    Attributes:
        name: for the report.
        patient: cases of one patient never stand on both sides of a split.
        truth: softmax: class indices, `[*S]` of a segmentation, `[]` of a classification; sigmoid: 0/1 per class,
            `[K, *S]` or `[K]`; regression: float64 `[K]` in the targets' units.
        group: scanner or site, or "".
        orientation: anatomical letters of the axes, where the file says how it lies; for pictures.
        order: when the case came, as a number or an ISO date, or "".
    """

    name: str
    patient: str
    image: NDArray[np.float32]
    truth: NDArray[Any]
    spacing: tuple[float, ...] | None = None
    group: str = ""
    orientation: str | None = None
    order: str = ""


@dataclass(frozen=True)
class Step:
    """The model's answer after one stage.

    Attributes:
        samples: drawn; 0: the first pass.
        scores: case scores by name.
        prediction: statistics of the prediction by name.
        loss: 1 where accepting this answer would have been an error, else 0.
        dice: mean over foreground classes; NaN where there are no voxels.
        volumes: per class and, unless classes overlap, `total` (mean, low, high) in mL before any widening; empty
            without a physical scale.
        missed: share of the true foreground that is missed at each threshold of `SENSITIVE_GRID`; empty where there are
            no voxels.
        probabilities: `[m, K]`: p̄ of this image (m = 1), or at some of its voxels; m = 0 for regression.
        margins: that the predicted foreground's outline needs, see `outline`; None where there are no voxels.
        numbers: `[K, 2]`: of a regression's targets mean and standard deviation, in their units.
    """

    samples: int
    scores: Mapping[str, float]
    prediction: Mapping[str, float]
    loss: float
    dice: float
    volumes: Mapping[str, tuple[float, float, float]]
    missed: tuple[float, ...]
    probabilities: NDArray[np.float64]
    numbers: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    margins: Margins | None = None


@dataclass(frozen=True)
class Measured:
    """What calibration needs of one case.

    Attributes:
        statistics: of the input, by name.
        steps: after each stage, in that order.
        truths: true volumes in mL by the same names as `Step.volumes`; true numbers by target.
        hits: `[m, K]`: which classes are true, of what `Step.probabilities` are of.
        windows: whether the image is larger than the network sees at once: such cases are not accepted.
    """

    name: str
    patient: str
    group: str
    image_digest: str
    statistics: Mapping[str, float]
    steps: tuple[Step, ...]
    truths: Mapping[str, float]
    hits: NDArray[np.float64]
    spacing: tuple[float, ...] | None = None
    windows: bool = False

    @property
    def full(self) -> Step:
        """At full T."""
        return self.steps[-1]

    def after(self, samples: int) -> Step:
        """The answer of the stage that has so many samples."""
        return next(step for step in self.steps if step.samples == samples)

    def worst(self, stages: Sequence[int]) -> Step:
        """What asks most of rules about volumes, outlines and missed foreground: what the stages' intervals have in
        common, their largest margins and missed shares.

        Which stage decides a case follows from thresholds that were chosen on the calibration cases. Rules fitted on
        the answers of those stages would rest on luck that new cases do not have. Fitted on the worst they hold
        whichever stage decides, and the choice costs nothing more.
        """
        steps = [self.after(samples) for samples in stages]
        last = steps[-1]
        volumes = {
            name: (mean, max(step.volumes[name][1] for step in steps), min(step.volumes[name][2] for step in steps))
            for name, (mean, _, _) in last.volumes.items()
        }
        margins = [step.margins for step in steps if step.margins is not None]
        return replace(
            last,
            volumes=volumes,
            missed=tuple(map(max, zip(*(step.missed for step in steps), strict=True))),
            margins=(max(inner for inner, _ in margins), max(outer for _, outer in margins)) if margins else None,
        )


def measure(
    model: Model,
    case: Labelled,
    samplers: Sequence[RunSampler],
    acceptable_dice: float,
    stages: Sequence[int] = (),
    first_pass: RunSampler | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> Measured:
    """Runs one case and compares it with its truth, after each stage.

    Args:
        model: without a policy, so that nothing is left out or widened.
        samplers, first_pass: as for `assess`.
        acceptable_dice: segmentation: a mean Dice below it is a loss.
        stages: numbers of samples, 0 for the first pass; the last one is full T. Empty: the model's T alone.
        tolerances: regression: per target, an answer further from the truth is a loss.
    """
    contract, ends = model.contract, tuple(stages) or model.stages
    _check_truth(contract, case)
    asked = Case(case.image, spacing=case.spacing)
    small = replace(model, at_most=chunk_of([samples for samples in (*ends, model.samples) if samples]))
    run = Run(small, [get_ready(small, asked, ends)], samplers, first_pass=first_pass)
    answers = [answer for (answer,) in run.assessments(until_decided=False)]
    for answer in answers:
        if found := (*answer.problems, *answer.input.problems):
            problems = "; ".join(map(str, found))
            raise CalibrationError(f"{case.name}: {problems}: calibrate where every case can be answered")
    scale = voxel_volume(case.spacing) if case.spacing and contract.per_voxel else None
    names = [*(contract.classes[k] for k in contract.foreground), "total"] if scale else []
    if contract.overlapping:
        names = [name for name in names if name != "total"]
    known = answers[-1].input
    if contract.targets:
        steps = tuple(_numbers_step(answer, case.truth, tolerances or {}) for answer in answers)
        truths = dict(zip(contract.answers, map(float, case.truth), strict=True))
        nothing = np.zeros((0, len(contract.targets)))
        return Measured(
            case.name, case.patient, case.group, known.digest, known.statistics, steps, truths, nothing, case.spacing
        )
    chosen = chosen_voxels(contract, case.image, answers[-1].seed)
    return Measured(
        case.name,
        case.patient,
        case.group,
        known.digest,
        known.statistics,
        tuple(_step(answer, case.truth, acceptable_dice, names, chosen) for answer in answers),
        {name: float(true_region(contract, case.truth, name).sum()) * (scale or 0.0) for name in names},
        true_classes(contract, case.truth)[chosen],
        case.spacing,
        contract.in_windows(case.image.shape[1:]),
    )


def check_scale(contract: Contract, cases: Sequence[Labelled]) -> None:
    """Where answers are measures every case needs the size of its voxels, in mm. Raises CalibrationError."""
    odd = [case for case in cases if not all(0.0 < mm < np.inf for mm in case.spacing or ())]
    if odd:
        raise CalibrationError(f"{odd[0].name}: a spacing of {odd[0].spacing} mm; expected numbers above 0")
    bare = [case.name for case in cases if case.spacing is None]
    if bare and contract.physical and contract.spacing is not None:
        raise CalibrationError(
            f"{bare[0]}: no voxel spacing is stated ({len(bare)} of {len(cases)} cases): without one nothing is "
            "accepted and no volume is known; give --spacing"
        )


def check_classes(contract: Contract, cases: Sequence[Labelled]) -> None:
    """Every class must occur, and every label that may or may not hold must do both.

    What was never seen cannot be calibrated: a policy from normal cases alone would vouch for illnesses too.
    Raises CalibrationError that names the class.
    """
    if contract.targets:
        return
    absent = [name for name, seen in zip(contract.classes, _seen(contract, cases), strict=True) if not seen]
    if absent:
        raise CalibrationError(
            f"{contract.name}: of {len(cases)} labelled cases none shows {' or '.join(absent)}, or all of them do; "
            f"every class needs cases: label some, or check the labels (expected classes {', '.join(contract.classes)})"
        )


def _seen(contract: Contract, cases: Sequence[Labelled]) -> list[bool]:
    return all_seen([shown(contract, case.truth) for case in cases])


Shown = tuple[tuple[bool, ...], tuple[bool, ...]]
"""Of one case, per class: whether it occurs, and whether it is absent (somewhere)."""


def shown(contract: Contract, truth: NDArray[np.uint8]) -> Shown:
    """What a label shows of each class; of exclusive classes none need be absent."""
    classes = len(contract.classes)
    if contract.activation is Activation.SOFTMAX:
        found = set(np.unique(truth).tolist())
        return tuple(index in found for index in range(classes)), (True,) * classes
    flat = truth.reshape(classes, -1)
    return tuple(flat.any(axis=1).tolist()), tuple((~flat.all(axis=1)).tolist())


def all_seen(cases: Sequence[Shown]) -> list[bool]:
    """Per class: whether some case shows it, and some case its absence."""
    there, absent = (np.array([case[side] for case in cases]).any(axis=0) for side in (0, 1))
    return (there & absent).tolist()


def _check_truth(contract: Contract, case: Labelled) -> None:
    if contract.targets:
        if case.truth.shape != (len(contract.targets),) or not np.isfinite(case.truth).all():
            raise CalibrationError(
                f"{case.name}: the label is {case.truth.tolist()}; expected a finite number for each of "
                f"{', '.join(map(str, contract.targets))}"
            )
        return
    wanted = case.image.shape[1:] if contract.per_voxel else ()
    largest = len(contract.classes) - 1
    if contract.activation is Activation.SIGMOID:
        wanted, largest = (len(contract.classes), *wanted), 1
    if case.truth.shape != wanted:
        raise CalibrationError(
            f"{case.name}: the label has shape {list(case.truth.shape)}; expected {list(wanted)}; "
            "see `equipoise calibrate --help`"
        )
    if case.truth.size and int(case.truth.max()) > largest:
        raise CalibrationError(
            f"{case.name}: the label holds {int(case.truth.max())}; {contract.name} knows 0 to {largest}"
        )


def _step(
    assessment: Assessment, truth: NDArray[np.uint8], acceptable_dice: float, names: Sequence[str], chosen: Any
) -> Step:
    contract = assessment.model.contract
    segmentation = contract.per_voxel
    volumes = {name: assessment.volumes[name] for name in names}
    margins = None
    if segmentation:
        predicted = foreground_of(contract, assessment.uncertainty.labels)
        spacing = None if contract.spacing is None else assessment.case.spacing
        margins = margins_needed(predicted, true_region(contract, truth, "total"), spacing)
    return Step(
        assessment.samples,
        assessment.scores,
        assessment.prediction_statistics,
        float(is_wrong(assessment, truth, acceptable_dice)),
        mean_dice(assessment, truth) if segmentation else float("nan"),
        {name: (volume.mean, volume.low, volume.high) for name, volume in volumes.items()},
        missed_foreground(contract, assessment.uncertainty.mean, truth) if segmentation else (),
        assessment.uncertainty.mean.reshape(len(contract.classes), -1).T[chosen].astype(np.float64),
        margins=margins,
    )


def _numbers_step(assessment: Assessment, truth: NDArray[Any], tolerances: Mapping[str, float]) -> Step:
    """Regression: a case is wrong where any of its numbers is further from the truth than tolerated."""
    contract = assessment.model.contract
    numbers = np.array([(each.mean, each.sd) for each in assessment.values.values()], np.float64)
    allowed = np.array([tolerances[name] for name in contract.answers])
    loss = float((np.abs(numbers[:, 0] - truth) > allowed).any())
    none = np.zeros((0, len(contract.targets)))
    return Step(assessment.samples, assessment.scores, {}, loss, float("nan"), {}, (), none, numbers=numbers)


def is_wrong(assessment: Assessment, truth: NDArray[np.uint8], acceptable_dice: float) -> bool:
    """Segmentation: Dice, averaged over foreground classes, too low. Classification: any label other than the truth."""
    if assessment.model.contract.per_voxel:
        return mean_dice(assessment, truth) < acceptable_dice
    return bool((assessment.uncertainty.labels != truth).any())


def mean_dice(assessment: Assessment, truth: NDArray[np.uint8]) -> float:
    """Over foreground classes, 0..1."""
    return float(np.mean(list(dice_per_class(assessment, truth).values())))


def dice_per_class(assessment: Assessment, truth: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of each foreground class, 0..1; 1 where neither prediction nor truth has it."""
    contract, labels = assessment.model.contract, assessment.uncertainty.labels
    scores = {}
    for index in contract.foreground:
        name = contract.classes[index]
        predicted = labels[0] == index if contract.activation is Activation.SOFTMAX else labels[index] == 1
        scores[name] = dice(predicted, true_region(contract, truth, name))
    return scores


def true_region(contract: Contract, truth: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """Voxels `[*S]` of the class `name`, or of any foreground class for `total`."""
    if contract.activation is Activation.SOFTMAX:
        return np.asarray(truth > 0 if name == "total" else truth == contract.classes.index(name))
    return np.asarray(truth.any(axis=0) if name == "total" else truth[contract.classes.index(name)] > 0)


def missed_foreground(contract: Contract, mean: NDArray[Any], truth: NDArray[np.uint8]) -> tuple[float, ...]:
    """Share of true foreground voxels below each threshold of `SENSITIVE_GRID`, 0..1; empty without foreground: there
    is nothing to miss, which is no reason to miss more elsewhere."""
    foreground = 1.0 - mean[0] if contract.activation is Activation.SOFTMAX else mean.max(axis=0)
    inside = foreground[true_region(contract, truth, "total")]
    if not inside.size:
        return ()
    return tuple((np.searchsorted(np.sort(inside), SENSITIVE_GRID, side="left") / inside.size).tolist())


def true_classes(contract: Contract, truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`[voxels, K]`, or `[1, K]` of a classification."""
    classes = len(contract.classes)
    softmax = contract.activation is Activation.SOFTMAX
    hits = truth.reshape(-1, 1) == np.arange(classes) if softmax else truth.reshape(classes, -1).T == 1
    return hits.astype(np.float64)


def chosen_voxels(contract: Contract, image: NDArray[Any], seed: int) -> Any:
    """Which voxels of an image are compared: `VOXELS` of them, the same ones every time."""
    voxels = image[0].size if contract.per_voxel else 1
    return np.random.default_rng(seed).choice(voxels, VOXELS, replace=False) if voxels > VOXELS else slice(None)
