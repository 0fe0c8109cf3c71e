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
from equipoise_core.contract import Contract
from equipoise_core.loading import load_model
from equipoise_core.policy import PREDICTED_CLASS, Policy
from equipoise_core.stages import FIRST_PASS
from rich.console import Console
from rich.progress import track

from ..graph.session import published_samplers
from ..page import ready
from ..progress import Phase, phase, running
from ..publish.repository import renew_configurations
from .cases import Labelled, Measured, check_classes, check_scale, measure
from .choose import Costs, Goals, Method, check_enough, choose_policy, deal_pilot, one_each
from .corrupted import Corrupted, under_corruptions, verdict
from .costs import measure_costs
from .errors import CalibrationError, TooFewCases
from .examine import Finding, check_apart, examine_images, examine_numbers, order_of, refuse
from .figures import by_group, figures, judge, judge_across
from .groups import BY_PREDICTION, check_prediction_groups, grouped_by_prediction
from .reading import labelled_cases, labels_apart, without
from .regression import Tolerance, check_numbers, loss_in_words, tolerances
from .report import Findings, render_report, show_examples, write_cases
from .sweep import Rate, sweep, with_rate
from .table import table_of

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
        report: the HTML page; `table` lists the cases, CSV.
        sections: (title, note, figures) of each set of cases.
        groups: figures by group of patients.
        rates: of the dropout rates that were tried.
        notes: what the user should know of the labels.
        timings: how long it took, by phase.
        costs: seconds of sampler runs, where stages were chosen by them.
        examined: what was asked about the cases before they were trusted.
        corrupted: some pilot cases under named corruptions, see `under_corruptions`.
    """

    policy: Policy
    why: str
    report: Path
    sections: tuple[tuple[str, str, dict[str, Any]], ...]
    groups: dict[str, Any]
    rates: tuple[Rate, ...]
    timings: Phase
    costs: Costs | None = None
    table: Path | None = None
    examined: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    corrupted: tuple[Corrupted, ...] = ()

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "policy": self.policy.digest,
            "accept": self.why,
            "stages": [stage.document() for stage in self.policy.stages],
            "costs": None if self.costs is None else asdict(self.costs),
            "report": str(self.report),
            "cases": str(self.table),
            "figures": {title: each for title, _, each in self.sections},
            "groups": self.groups,
            "examined": [asdict(found) for found in self.examined],
            "corrupted": {"verdict": verdict(self.corrupted), "rows": [asdict(row) for row in self.corrupted]},
            "rates": [asdict(rate) for rate in self.rates],
            "notes": list(self.notes),
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
    tolerance: Tolerance | None = None,
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
    leave_out: str | Path | None = None,
    group_by: str | None = None,
    order_by: str | None = None,
    training: str | Path | None = None,
    despite: str = "",
    sweep_p: Sequence[float] = (),
    report: str | Path | None = None,
    pictures: int = 4,
    progress: bool = False,
) -> Calibrated:
    """Chooses thresholds with a stated guarantee on labelled cases; writes policy.json, a report, and a table of cases.

    `NAME.calibration.json` in the repository keeps the calibration cases' numbers, for `adapt` at another site.

    Args:
        name: the public model.
        data: labelled cases: a folder with `images/` and `labels/`, a folder of folders named by class, or an `.npz`.
        repository: the model repository.
        test: other labelled cases to measure on, of other patients, such as a shifted site.
        alpha, delta: error among accepted cases at most alpha, but for a chance of delta.
        acceptable_dice: segmentation: below it a case is wrong.
        tolerance: regression: an answer further from the truth is wrong, in the target's unit; of several targets
            `{"age": 12, "height": 3}`. Accepted is only what has an interval as narrow.
        false_alarms: share of typical cases that a bound may hold back.
        audited: share of accepted cases marked for an audit.
        level: coverage of the intervals of volumes or numbers.
        missed: share of foreground that `labels_sensitive` may miss.
        method: how probabilities are recalibrated.
        stages: numbers of samples after which a case may be decided, 0 for the first pass; the last one is T. Empty:
            the cheapest of a few lists, as measured on this machine.
        samples: full T; the contract's by default, or the last of `stages`.
        pilot: share of patients for exploration only: no guarantee rests on them.
        spacing: mm per axis for files that state none.
        label_values: which labels make each class, such as `{"wt": [1, 2, 3], "et": [3]}`; by default labels are
            indices or names of classes, or `dataset.json` beside the data says it.
        leave_out: the table of `equipoise train`: cases of patients that the network was trained on are left out.
        group_by: a column of `cases.csv`, such as `scanner`, or `prediction` (the predicted class): each of its values
            gets a certificate of its own, and cases of values without one go to review.
        order_by: a column that says when each case came (numbers or ISO dates), to look for drift.
        training: images that the network was trained on, to look for them among the cases.
        despite: why cases are used in spite of what was found against them, and who says so; the policy keeps it.
        sweep_p: dropout rates to try; they change no policy.
        report: HTML file; `NAME.calibration.html` in the repository by default. Beside it `NAME.calibration.cases.csv`
            lists the cases.
        pictures: cases of each kind (accepted and wrong, near misses) that the report shows; 0: it holds no image.
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
    if not contract.targets and tolerance is not None:
        raise CalibrationError(f"--tolerance is for a regression; {name} is a {contract.task.value}")
    if contract.targets and sweep_p:
        raise CalibrationError("--sweep-p compares probabilities of classes; a regression has none")
    allowed = tolerances(contract, tolerance) if contract.targets else {}
    by_class = group_by == BY_PREDICTION
    if by_class:
        check_prediction_groups(contract)
        if len(stages) > 1:
            raise CalibrationError(f"--group-by {BY_PREDICTION}: a prediction may change between stages; name one")
        stages = tuple(stages) or (full,)
    wrong = f"mean Dice below {acceptable_dice:g}" if contract.per_voxel else "wrong label"
    goals = Goals(
        loss_in_words(contract, allowed) if contract.targets else wrong,
        alpha, delta, false_alarms, level, missed, Method(method),
        audited=audited, by=PREDICTED_CLASS if by_class else group_by or "", tolerances=allowed,
    )  # fmt: skip
    column = "group" if group_by is None or by_class else group_by
    cases = labelled_cases(Path(data), contract, spacing, values=label_values, group_by=column, order_by=order_by or "")
    cases = without(cases, Path(leave_out) if leave_out else None)
    if group_by and not by_class and not any(case.group for case in cases):
        raise CalibrationError(f"no case names its {group_by}: fill that column of cases.csv, or leave --group-by out")
    notes = labels_apart(cases, contract)
    page = ready(Path(report) if report is not None else repository / f"{name}.calibration.html")  # before hours
    if order_by:
        order_of([case.order for case in cases], order_by)
    for rate in sweep_p:
        with_rate(onnx.load(sampler_files[0]), contract, rate)
    held_out: list[Labelled] = []
    if test is not None:
        held_out = labelled_cases(Path(test), contract, spacing, values=label_values, group_by=column)
        held_out = without(held_out, Path(leave_out) if leave_out else None, others=True)
        check_apart(cases, held_out)
        check_scale(contract, held_out)
    trained = labelled_cases(Path(training), contract, spacing, labels=False) if training else None
    findings = list(examine_images(cases, trained))
    refuse(findings, despite)
    is_pilot = deal_pilot([case.patient for case in cases], pilot)
    check_cases(contract, cases, is_pilot, pilot, goals)
    grid = tuple(stages) or tried_stages(contract, full)
    measured = measure_all(model, repository, cases, acceptable_dice, grid, progress, allowed)
    findings += examine_numbers(contract, one_each(cases), one_each(measured), order_by or "", column)
    measured = grouped_by_prediction(contract, measured) if by_class else measured
    against = refuse(findings, despite)
    costs = None if stages or len(grid) == 1 else measure_costs(model, repository, cases[0], grid)
    chosen = choose_policy(
        contract,
        [case for case in measured if is_pilot[case.patient]],
        calibration := [case for case in measured if not is_pilot[case.patient]],
        goals,
        stages=stages,
        costs=costs,
    )
    if against:
        chosen = replace(chosen, policy=replace(chosen.policy, despite=against))
    scored = {id(before): after for before, after in zip(measured, chosen.scored(measured), strict=True)}
    images = {id(scored[id(of)]): case for of, case in zip(measured, cases, strict=True)}  # for pictures
    judged = judge_across(contract, chosen, [scored[id(case)] for case in calibration], goals)
    pilots = judge(contract, chosen, [scored[id(case)] for case in measured if is_pilot[case.patient]])
    listed = {"pilot": pilots, "calibration": judged}
    sections = [
        (
            "Calibration cases",
            "Recalibration, intervals and sensitive labels were fitted on other patients' cases each time; the "
            "threshold is the policy's own." + "".join(f" Note: {note}." for note in notes),
            figures(contract, judged, goals),
        )
    ]
    if test is not None:
        others = measure_all(model, repository, held_out, acceptable_dice, grid, progress, allowed)
        others = chosen.scored(grouped_by_prediction(contract, others) if by_class else others)
        images |= {id(of): case for of, case in zip(others, held_out, strict=True)}
        listed["test"] = judged = judge(contract, chosen, others)
        note = "In no part of the policy. If they come from elsewhere, no guarantee holds for them."
        sections.append((f"Test cases: {Path(test).name}", note, figures(contract, judged, goals)))
    rates: Sequence[Rate] = ()
    if sweep_p:
        rates = sweep(
            model, [onnx.load(file) for file in sampler_files], cases, sweep_p, acceptable_dice, chosen.score,
            quiet=not progress,
        )  # fmt: skip
    worse = under_corruptions(
        model, chosen, [(images[id(each.case)], each) for each in pilots], *published_samplers(repository, contract),
        acceptable_dice, len(cases), quiet=not progress,
    )  # fmt: skip
    groups = by_group(contract, judged, goals)
    shown = show_examples(
        model, chosen.policy, [*listed["calibration"], *listed.get("test", ())], images,
        *published_samplers(repository, contract), pictures,
    )  # fmt: skip
    listing = page.with_name(f"{page.stem}.cases.csv")
    found = Findings(
        contract, chosen.policy, chosen.why, goals.loss, sections, judged, groups, rates, shown, listing.name,
        findings, chosen.gains, worse,
    )  # fmt: skip
    page.write_text(render_report(found), encoding="utf-8")
    write_cases(listing, contract, listed)
    table = table_of(chosen.policy.digest, goals, acceptable_dice, one_each(calibration))
    write_whole(table_file(repository, name), table.dumps())
    write_whole(repository / name / "1" / "policy.json", chosen.policy.dumps())
    renew_configurations(repository, name)
    return Calibrated(
        chosen.policy, chosen.why, page, tuple(sections), groups, tuple(rates), running(), costs, listing,
        tuple(findings), notes, worse,
    )  # fmt: skip


def check_cases(
    contract: Contract, cases: Sequence[Labelled], is_pilot: Mapping[str, bool], pilot: float, goals: Goals
) -> None:
    """Before hours are spent: are there enough cases, of every class, with a scale? Raises CalibrationError."""
    check_scale(contract, cases)
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
    if contract.targets:
        check_numbers(contract, [case.truth for case in calibration])


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
def measure_all(
    model: Model,
    repository: Path,
    cases: Sequence[Labelled],
    acceptable_dice: float,
    stages: tuple[int, ...],
    progress: bool,
    allowed: Mapping[str, float] | None = None,
) -> list[Measured]:
    """Every case after each of the stages, see `measure`."""
    samplers, first_pass = published_samplers(repository, model.contract)
    shown = track(cases, f"{model.contract.name}: measuring", console=Console(stderr=True), disable=not progress)
    return [measure(model, case, samplers, acceptable_dice, stages, first_pass, allowed or {}) for case in shown]


def table_file(repository: Path, name: str) -> Path:
    """Where the numbers of a model's calibration cases lie."""
    return repository / f"{name}.calibration.json"


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Atomically: whoever reads meanwhile, such as a server that starts, reads the old file or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(mode)
    Path(file.name).replace(path)
