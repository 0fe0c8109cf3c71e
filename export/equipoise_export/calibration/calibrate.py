"""Labelled cases → a policy and a report, in the repository of a published model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from equipoise_core.case import Model
from equipoise_core.contract import Contract, Task
from equipoise_core.loading import load_model
from equipoise_core.policy import Policy
from equipoise_core.stages import FIRST_PASS
from rich.console import Console
from rich.progress import track

from ..graph.session import published_samplers
from ..progress import Phase, phase, running
from ..publish.repository import renew_configurations
from .cases import Labelled, Measured, check_classes, measure
from .choose import ChosenPolicy, Costs, Goals, Method, check_enough, choose_policy, deal_pilot, one_each
from .costs import measure_costs
from .errors import CalibrationError, TooFewCases
from .figures import by_group, figures, judge, judge_across
from .reading import labelled_cases
from .report import render_report
from .sweep import Rate, sweep, with_rate

LIMITS = {
    "alpha": (0.001, 0.5),
    "delta": (0.001, 0.5),
    "acceptable_dice": (0, 1),
    "false_alarms": (0.001, 0.5),
    "audited": (0, 1),
    "level": (0.5, 0.999),
    "missed": (0.001, 0.5),
    "pilot": (0.1, 0.8),
}
"""What each goal may be, both ends included."""


MANY = 8
"""From so many samples on, fewer of them may decide something."""


@dataclass(frozen=True)
class Calibrated:
    """A policy that is in force from now on, and what it was measured to do.

    Attributes:
        why: what the accept threshold guarantees, or why there is none.
        report: the HTML page.
        sections: (title, note, figures) of each set of cases.
        groups: figures by group of patients.
        rates: of the dropout rates that were tried.
        timings: how long it took, by phase.
        costs: seconds of sampler runs, where stages were chosen by them.
    """

    policy: Policy
    why: str
    report: Path
    sections: tuple[tuple[str, str, dict[str, Any]], ...]
    groups: dict[str, Any]
    rates: tuple[Rate, ...]
    timings: Phase
    costs: Costs | None = None

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "policy": self.policy.digest,
            "accept": self.why,
            "stages": [stage.document() for stage in self.policy.stages],
            "costs": None if self.costs is None else asdict(self.costs),
            "report": str(self.report),
            "figures": {title: each for title, _, each in self.sections},
            "groups": self.groups,
            "rates": [asdict(rate) for rate in self.rates],
        }


@phase("calibrate")
def calibrate(
    name: str,
    *,
    data: str | Path,
    repository: str | Path,
    test: str | Path | None = None,
    alpha: float = 0.1,
    delta: float = 0.1,
    acceptable_dice: float = 0.8,
    false_alarms: float = 0.05,
    audited: float = 0.05,
    level: float = 0.9,
    missed: float = 0.05,
    method: Method | str = Method.TEMPERATURE,
    stages: Sequence[int] = (),
    samples: int | None = None,
    pilot: float = 0.3,
    spacing: tuple[float, ...] | None = None,
    label_values: str | Mapping[str, Sequence[str | int]] | None = None,
    sweep_p: Sequence[float] = (),
    report: str | Path | None = None,
    progress: bool = False,
) -> Calibrated:
    """Chooses thresholds with a stated guarantee on labelled cases, and writes policy.json and a report.

    Args:
        name: the public model.
        data: labelled cases: a folder with `images/` and `labels/`, a folder of folders named by class, or an `.npz`.
        repository: the model repository.
        test: other labelled cases to measure on, such as a shifted site.
        alpha, delta: error among accepted cases at most alpha, but for a chance of delta.
        acceptable_dice: segmentation: below it a case is wrong.
        false_alarms: share of typical cases that a bound may hold back.
        audited: share of accepted cases marked for an audit.
        level: coverage of the volume intervals.
        missed: share of foreground that `labels_sensitive` may miss.
        method: how probabilities are recalibrated.
        stages: numbers of samples after which a case may be decided, 0 for the first pass; the last one is T. Empty:
            the cheapest of a few lists, as measured on this machine.
        samples: full T; the contract's by default, or the last of `stages`.
        pilot: share of patients for exploration only: no guarantee rests on them.
        spacing: mm per axis for files that state none.
        label_values: which labels make each class, such as `{"wt": [1, 2, 3], "et": [3]}`; by default labels are
            indices or names of classes, or `dataset.json` beside the data says it.
        sweep_p: dropout rates to try; they change no policy.
        report: HTML file; `NAME.calibration.html` in the repository by default.
        progress: whether a bar shows how far it is, on stderr.

    Raises:
        CalibrationError: no policy was written: too few cases, or cases that cannot be used.
        ContractError, InvalidRequest, SamplerFailure, OSError: the model or a case cannot be used or read.
    """
    given = {
        "alpha": alpha, "delta": delta, "acceptable_dice": acceptable_dice, "false_alarms": false_alarms,
        "audited": audited, "level": level, "missed": missed, "pilot": pilot,
    }  # fmt: skip
    for key, (low, high) in LIMITS.items():
        if not low <= given[key] <= high:
            raise CalibrationError(f"{key} is {given[key]:g}; expected {low:g} to {high:g}")
    if samples is not None and samples < 2:
        raise CalibrationError(f"samples is {samples}; expected 2 or more")
    if method not in list(Method):
        raise CalibrationError(f"method is {method!r}; expected {', '.join(each.value for each in Method)}")
    samples = checked_stages(stages, samples)
    repository = Path(repository)
    published = load_model(repository / name / "1")
    model = replace(published, policy=None)
    full = (samples if published.contract.stochastic else None) or model.samples
    contract = published.contract
    if FIRST_PASS in stages and contract.first_pass is None:
        raise CalibrationError(f"{name} has no first pass; leave 0 out of --stages, or export it again with one")
    sampler_files = [repository / sampler.name / "1" / "model.onnx" for sampler in contract.samplers]
    goals = Goals(
        f"mean Dice below {acceptable_dice:g}" if contract.task is Task.SEGMENTATION else "wrong label",
        alpha, delta, false_alarms, level, missed, Method(method),
        audited=audited,
    )  # fmt: skip
    cases = labelled_cases(Path(data), contract, spacing, values=label_values)
    for rate in sweep_p:  # before hours are spent
        with_rate(onnx.load(sampler_files[0]), contract, rate)
    is_pilot = deal_pilot([case.patient for case in cases], pilot)
    check_cases(contract, cases, is_pilot, pilot, goals)
    grid = tuple(stages) or tried_stages(contract, full)
    measured = _measured(model, repository, cases, acceptable_dice, grid, progress)
    costs = None if stages or len(grid) == 1 else measure_costs(model, repository, cases[0], grid)
    chosen = choose_policy(
        contract,
        [case for case in measured if is_pilot[case.patient]],
        calibration := [case for case in measured if not is_pilot[case.patient]],
        goals,
        stages=stages,
        costs=costs,
    )
    judged = judge_across(contract, chosen, calibration, goals)
    sections = [
        (
            "Calibration cases",
            "Recalibration, volumes and sensitive labels were fitted on other patients' cases each time; the "
            "threshold is the policy's own.",
            figures(contract, judged, goals),
        )
    ]
    if test is not None:
        held_out = labelled_cases(Path(test), contract, spacing, values=label_values)
        others = _measured(model, repository, held_out, acceptable_dice, grid, progress)
        judged = judge(contract, chosen, others)
        note = "In no part of the policy. If they come from elsewhere, no guarantee holds for them."
        sections.append((f"Test cases: {Path(test).name}", note, figures(contract, judged, goals)))
    rates: Sequence[Rate] = ()
    if sweep_p:
        rates = sweep(
            model, [onnx.load(file) for file in sampler_files], cases, sweep_p, acceptable_dice, chosen.score,
            quiet=not progress,
        )  # fmt: skip
    groups = by_group(contract, judged, goals)
    page = Path(report) if report is not None else repository / f"{name}.calibration.html"
    page.write_text(
        render_report(contract, chosen.policy, chosen.why, sections, judged, groups, rates), encoding="utf-8"
    )
    _write_policy(repository / name / "1" / "policy.json", chosen)
    renew_configurations(repository, name)
    return Calibrated(chosen.policy, chosen.why, page, tuple(sections), groups, tuple(rates), running(), costs)


def check_cases(
    contract: Contract, cases: Sequence[Labelled], is_pilot: Mapping[str, bool], pilot: float, goals: Goals
) -> None:
    """Before hours are spent: are there enough cases, of every class, with a scale? Raises CalibrationError."""
    if contract.task is Task.SEGMENTATION and contract.spacing is not None:
        bare = [case.name for case in cases if case.spacing is None]
        if bare:
            raise CalibrationError(
                f"{bare[0]}: no voxel spacing is stated ({len(bare)} of {len(cases)} cases): without one nothing is "
                "accepted and no volume is known; give --spacing"
            )
    calibration = one_each([case for case in cases if not is_pilot[case.patient]])
    try:
        check_enough(contract, len(calibration), goals)
    except TooFewCases as error:
        total = math.ceil(error.needed / (1.0 - pilot))
        raise CalibrationError(
            f"{error}. (A share of {pilot:g} of the patients is for exploration only, and each patient counts once, so "
            f"about {total} patients in all; there are {len(is_pilot)}.)"
        ) from error
    check_classes(contract, calibration)


def checked_stages(stages: Sequence[int], samples: int | None) -> int | None:
    """T, where it is named. Raises CalibrationError for stages that cannot be, or that end elsewhere."""
    if not stages:
        return samples
    if list(stages) != sorted({*stages}) or stages[0] < FIRST_PASS or stages[-1] < 2:
        given = ",".join(map(str, stages))
        raise CalibrationError(f"--stages {given}: expected rising numbers of samples, such as 0,20 or 0,5,10,20")
    if samples is not None and samples != stages[-1]:
        raise CalibrationError(f"--stages end with {stages[-1]} samples, --samples is {samples}: leave one of them out")
    return stages[-1]


def tried_stages(contract: Contract, full: int) -> tuple[int, ...]:
    """Numbers of samples at which answers are compared where none are named: the first pass, ¼, ½ and all of T."""
    early = [full // 4, full // 2] if contract.stochastic and full % 4 == 0 and full >= MANY else []
    return (*((FIRST_PASS,) if contract.first_pass else ()), *early, full)


@phase("measuring the cases")
def _measured(
    model: Model,
    repository: Path,
    cases: Sequence[Labelled],
    acceptable_dice: float,
    stages: tuple[int, ...],
    progress: bool,
) -> list[Measured]:
    samplers, first_pass = published_samplers(repository, model.contract)
    shown = track(cases, f"{model.contract.name}: measuring", console=Console(stderr=True), disable=not progress)
    return [measure(model, case, samplers, acceptable_dice, stages, first_pass) for case in shown]


def _write_policy(path: Path, chosen: ChosenPolicy) -> None:
    """Atomically: a server that starts meanwhile reads the old policy or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        file.write(chosen.policy.dumps())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
