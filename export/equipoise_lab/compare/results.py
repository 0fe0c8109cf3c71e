"""One published model on the cases of a comparison: its policy, and what it answers under it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.case import Model
from equipoise_core.contract import Contract, Task
from equipoise_core.loading import load_model
from equipoise_core.policy import Policy
from equipoise_core.stages import FIRST_PASS, Stage
from equipoise_core.statistics import input_statistics
from equipoise_export.calibration.cases import Labelled, Measured, check_classes, measure
from equipoise_export.calibration.choose import ChosenPolicy, Goals, choose_policy, choose_score
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.figures import Judged, judge, volume_columns
from equipoise_export.calibration.metrics import Floats
from equipoise_export.calibration.ood_distance import fit_ood_distance
from equipoise_export.calibration.scored import exclusive
from equipoise_export.calibration.sums import CalibrationSums, calibration_sums
from equipoise_export.graph.session import OnnxSampler, published_samplers
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from .case_sets import CaseSets
from .errors import ComparisonError
from .pairwise import lack_of_pairwise_dice


@dataclass(frozen=True)
class Training:
    """What a model's `training.json` says of how it came about; `seconds` of training."""

    title: str
    seconds: float
    note: str


@dataclass(frozen=True)
class ComparedModel:
    """A model that is compared.

    Attributes:
        published: as it lies in the repository; its policy there is not looked at.
        asked: without a policy, for the T that is asked for.
        repository: where its samplers lie.
    """

    name: str
    published: Model
    asked: Model
    repository: Path
    training: Training | None

    @property
    def contract(self) -> Contract:
        return self.published.contract

    def load(self, threads: int) -> tuple[list[OnnxSampler], OnnxSampler | None]:
        """Its samplers, and its first pass where it has one."""
        return published_samplers(self.repository, self.contract, threads)


def load_compared(repository: Path, name: str, samples: int | None = None) -> ComparedModel:
    """Raises ContractError where the pair is broken, ComparisonError where there is none."""
    directory = repository / name / "1"
    if not (directory / "contract.json").is_file():
        there = sorted(path.parents[1].name for path in repository.glob("*/1/contract.json"))
        raise ComparisonError(f"{repository} holds no published model {name!r}; there are {', '.join(there) or 'none'}")
    published = load_model(directory)
    contract = published.contract
    return ComparedModel(
        name,
        published,
        Model(replace(contract, samples=samples) if samples else contract, None, "", published.code_digest),
        repository,
        load_training(repository / name / "training.json"),
    )


def load_training(path: Path) -> Training | None:
    """None without the file. Raises ComparisonError where it says something else."""
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        training = Training(str(document["title"]), float(document["seconds"]), str(document.get("note", "")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ComparisonError(f'{path}: expected {{"title": …, "seconds": …, "note": …}}; got {error!r}') from error
    if not 0.0 <= training.seconds < float("inf"):
        raise ComparisonError(f"{path}: seconds is {training.seconds}; expected a number from 0 on")
    return training


def check_alike(models: Sequence[ComparedModel]) -> None:
    """All must answer the same question about the same images. Raises ComparisonError that says what differs."""
    first = models[0]
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ComparisonError(f"{', '.join(twice)}: given more than once; name every model once")
    for other in models[1:]:
        for what, mine in _question(first.contract).items():
            theirs = _question(other.contract)[what]
            if mine != theirs:
                raise ComparisonError(
                    f"{first.name} and {other.name} cannot be compared: {what} {_words(mine)} there, "
                    f"{_words(theirs)} here; compare models that answer the same question about the same images"
                )


def _question(contract: Contract) -> dict[str, Any]:
    """All that a case's preparation and its truth depend on; intensities are each model's own business."""
    return {
        "task": contract.task.value,
        "kind of labels": contract.activation.value,
        "classes": contract.classes,
        "channels": contract.channels,
        "image size": contract.spatial if contract.task is Task.CLASSIFICATION else contract.rank,
        "spacing": contract.spacing,
        "orientation": contract.orientation,
    }


def _words(value: Any) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Results:
    """What one model answers on n test cases and m shifted ones, under its own policy.

    Attributes:
        patients, shifted_patients: of each case, for resampling.
        quality: `[n]`: Dice, mean over foreground classes, or 1 for a right label.
        risk: `[n]`: 1 − quality: what is ranked.
        loss: `[n]` 0/1: what must not be accepted.
        score, shifted_score: `[n]`, `[m]`: the case score that the policy routes by, see `Judged.ranking`.
        ood_distance, shifted_ood_distance: `[n]`, `[m]`: the input's distance from typical ones.
        accepted: `[n]` 0/1.
        samples: `[n]`; a first pass counts as one.
        covered, width_ml: per class and for `total` `[n]`: whether the volume interval holds the truth, and its width
            in mL; empty without a physical scale or a rule.
        plain, recalibrated: of the probabilities that are answered, as they are and as the policy recalibrates them.
        pairwise: `[n]`: the baseline of failure detection, see `lack_of_pairwise_dice`; NaN where no samples differ.
    """

    name: str
    chosen: ChosenPolicy
    patients: tuple[str, ...]
    shifted_patients: tuple[str, ...]
    full_samples: int
    quality: Floats
    loss: Floats
    score: Floats
    shifted_score: Floats
    ood_distance: Floats
    shifted_ood_distance: Floats
    accepted: Floats
    samples: Floats
    covered: Mapping[str, Floats]
    width_ml: Mapping[str, Floats]
    plain: CalibrationSums
    recalibrated: CalibrationSums
    pairwise: Floats

    @property
    def risk(self) -> Floats:
        return np.asarray(1.0 - self.quality)


def results_on(
    model: ComparedModel, sets: CaseSets, goals: Goals, acceptable_dice: float, threads: int = 0, quiet: bool = False
) -> Results:
    """Runs every case in this process, chooses the model's policy, and judges the test and shifted cases under it."""
    (run, first_pass), asked = model.load(threads), model.asked
    stages = (*((FIRST_PASS,) if first_pass else ()), asked.samples)
    measured: dict[str, list[Measured]] = {name: [] for name in sets.parts}
    cases = [(name, case) for name, part in sets.parts.items() for case in part]
    for name, case in track(cases, f"{model.name}: measuring", console=Console(stderr=True), disable=quiet):
        measured[name].append(measure(asked, case, run, acceptable_dice, stages, first_pass))
    normalise = model.contract.preprocessing.normalise
    typical = [input_statistics(normalise(image)) for image in sets.typical]
    chosen = choose(model.contract, measured["pilot"], measured["calibration"], goals, typical, sets.calibration)
    return as_columns(
        model.name,
        chosen,
        judge(model.contract, chosen, measured["test"]),
        judge(model.contract, chosen, measured["shifted"]),
        [
            lack_of_pairwise_dice(asked, case, run)
            for case in track(sets.test, f"{model.name}: pairing", console=Console(stderr=True), disable=quiet)
        ],
    )


def choose(
    contract: Contract,
    pilot: Sequence[Measured],
    cases: Sequence[Measured],
    goals: Goals,
    typical: Sequence[Mapping[str, float]] = (),
    labelled: Sequence[Labelled] = (),
) -> ChosenPolicy:
    """The model's policy; where nothing can be certified, one that accepts nothing and says why."""
    stages = [step.samples for step in cases[0].steps]
    try:
        check_classes(contract, labelled)
        return choose_policy(contract, pilot, cases, goals, typical or None, stages)
    except CalibrationError as error:
        ood_distance = fit_ood_distance(typical or [case.statistics for case in pilot])
        score = goals.score or choose_score([case.full for case in pilot])
        nothing = Policy(contract.model_digest, "", (Stage(stages[-1], score),), ood_distance=ood_distance)
        return ChosenPolicy(contract, nothing, score, None, str(error))


def as_columns(
    name: str, chosen: ChosenPolicy, test: Sequence[Judged], shifted: Sequence[Judged], pairwise: Sequence[float]
) -> Results:
    """The cases as arrays; `pairwise` of the test cases."""
    policy = chosen.policy
    distance = policy.ood_distance.distance if policy.ood_distance else None

    def column(values: Sequence[float]) -> NDArray[np.float64]:
        return np.array(values, dtype=np.float64)

    def strange(cases: Sequence[Judged]) -> NDArray[np.float64]:
        return column([distance(each.case.statistics) if distance else float("nan") for each in cases])

    loss = column([each.step.loss for each in test])
    covered, width = _volumes(policy, test)
    one_of = exclusive(chosen.contract)
    return Results(
        name,
        chosen,
        tuple(each.case.patient for each in test),
        tuple(each.case.patient for each in shifted),
        test[0].case.full.samples,
        1.0 - loss if np.isnan(test[0].step.dice) else column([each.step.dice for each in test]),
        loss,
        column([each.ranking for each in test]),
        column([each.ranking for each in shifted]),
        strange(test),
        strange(shifted),
        column([each.route == "accept" for each in test]),
        column([each.step.samples + (policy.stages[0].samples == FIRST_PASS) for each in test]),
        covered,
        width,
        calibration_sums([(each.step.probabilities, each.case.hits) for each in test], one_of),
        calibration_sums([(each.calibrated, each.case.hits) for each in test], one_of),
        column(pairwise),
    )


def _volumes(policy: Policy, test: Sequence[Judged]) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Covered 0/1 and width in mL, as the service widens the intervals."""
    covered, width = {}, {}
    for name in test[0].step.volumes if policy.volume else ():
        _, _, _, truth, low, high = volume_columns(test, name)
        covered[name] = ((low <= truth) & (truth <= high)).astype(np.float64)
        width[name] = high - low
    return covered, width
