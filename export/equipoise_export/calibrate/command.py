"""`equipoise calibrate`: labelled cases in, policy.json and a report out."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer
from equipoise_core.case import Model
from equipoise_core.contract import Contract, ContractError, Task
from equipoise_core.errors import InvalidRequest, SamplerFailure
from equipoise_core.loading import load_model
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ..graph.session import published_samplers
from .cases import LOOKS, Labelled, Measured, check_classes, measure
from .choose import Chosen, Goals, Method, check_enough, choose_policy, deal_pilot, one_each
from .errors import CalibrationError, TooFewCases
from .figures import by_group, figures, judge, judge_across
from .reading import labelled_cases, numbers
from .report import guarantees, render_report
from .sweep import Rate, sweep, with_rate

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise calibrate hippocampus --data labelled/ --repository model_repository --spacing 1,1,1

    equipoise calibrate chest --data cases.npz --repository model_repository --alpha 0.05 --method isotonic

    equipoise calibrate chest --data cases.npz --repository model_repository --sweep-p 0.05,0.1,0.2,0.3,0.5

Data: a folder with images/ and labels/ (files of the same name), a folder of folders named by class, or an .npz with
images and labels (or masks), optionally ids, patients, groups, spacing. A cases.csv beside the folders may state
file, patient, group, label.
"""


@app.command(epilog=_EXAMPLES)
def calibrate(
    name: Annotated[str, typer.Argument(help="The public model.")],
    data: Annotated[Path, typer.Option(help="Labelled cases, see below.")],
    repository: Annotated[Path, typer.Option(help="The model repository.")],
    test: Annotated[
        Path | None, typer.Option(help="Other labelled cases to measure on, such as a shifted site.")
    ] = None,
    alpha: Annotated[float, typer.Option(min=0.001, max=0.5, help="Error among accepted cases, at most.")] = 0.1,
    delta: Annotated[float, typer.Option(min=0.001, max=0.5, help="Chance that this is not so, at most.")] = 0.1,
    acceptable_dice: Annotated[float, typer.Option(min=0, max=1, help="Segmentation: below it a case is wrong.")] = 0.8,
    false_alarms: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Typical cases that a bound may hold back.")
    ] = 0.05,
    audited: Annotated[float, typer.Option(min=0, max=1, help="Accepted cases marked for an audit.")] = 0.05,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Coverage of the volume intervals.")] = 0.9,
    missed: Annotated[float, typer.Option(min=0.001, max=0.5, help="Foreground labels_sensitive may miss.")] = 0.05,
    method: Annotated[Method, typer.Option(help="How probabilities are recalibrated.")] = Method.TEMPERATURE,
    adaptive: Annotated[bool, typer.Option(help="Stop early where more samples cannot change the route.")] = True,
    samples: Annotated[int | None, typer.Option(min=2, help="Full T; the contract's by default.")] = None,
    pilot: Annotated[
        float, typer.Option(min=0.1, max=0.8, help="Share of patients that only say where to look.")
    ] = 0.3,
    spacing: Annotated[str | None, typer.Option(help="mm per axis for files that state none (1,1,1.2).")] = None,
    sweep_p: Annotated[str | None, typer.Option(help="Dropout rates to try (0.1,0.2,0.5); changes no policy.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML file; NAME.calibration.html beside the repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Chooses thresholds with a stated guarantee on labelled cases, and writes policy.json and a report."""
    loss = f"mean Dice below {acceptable_dice:g}"
    console = Console(stderr=as_json)
    try:
        published = load_model(repository / name / "1")
        model = Model(
            replace(published.contract, samples=samples) if samples else published.contract,
            None, "", published.code_digest,
        )  # fmt: skip
        contract = published.contract
        sampler_files = [repository / sampler.name / "1" / "model.onnx" for sampler in contract.samplers]
        goals = Goals(
            loss if contract.task is Task.SEGMENTATION else "wrong label",
            alpha, delta, false_alarms, level, missed, method, adaptive,
            audited=audited,
        )  # fmt: skip
        stated = numbers(spacing) if spacing else None
        cases = labelled_cases(data, contract, stated)
        for rate in numbers(sweep_p) if sweep_p else ():  # before hours are spent
            with_rate(onnx.load(sampler_files[0]), contract, rate)
        is_pilot = deal_pilot([case.patient for case in cases], pilot)
        _check(contract, cases, is_pilot, pilot, goals)
        measured = _measured(model, repository, cases, acceptable_dice, as_json)
        chosen = choose_policy(
            contract,
            model.default_samples,
            [case for case in measured if is_pilot[case.patient]],
            calibration := [case for case in measured if not is_pilot[case.patient]],
            goals,
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
            others = _measured(model, repository, labelled_cases(test, contract, stated), acceptable_dice, as_json)
            judged = judge(contract, chosen, others)
            note = "In no part of the policy. If they come from elsewhere, no guarantee holds for them."
            sections.append((f"Test cases: {test.name}", note, figures(contract, judged, goals)))
        rates: Sequence[Rate] = ()
        if sweep_p:
            tried = numbers(sweep_p)
            rates = sweep(
                model, [onnx.load(file) for file in sampler_files], cases, tried, acceptable_dice, chosen.score, as_json
            )
        groups = by_group(contract, judged, goals)
        page = report or repository / f"{name}.calibration.html"
        page.write_text(
            render_report(contract, chosen.policy, chosen.why, sections, judged, groups, rates), encoding="utf-8"
        )
        _write_policy(repository / name / "1" / "policy.json", chosen)
    except (CalibrationError, ContractError, InvalidRequest, SamplerFailure, OSError) as error:
        Console(stderr=True).print(f"[red]not calibrated[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    document = {
        "policy": chosen.policy.digest,
        "accept": chosen.why,
        "report": str(page),
        "figures": {title: each for title, _, each in sections},
        "groups": groups,
        "rates": [asdict(rate) for rate in rates],
    }
    if as_json:
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        _show(console, name, chosen, sections, rates, page)


def _check(
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
            f"{error}. (A share of {pilot:g} of the patients only says where to look, and each patient counts once, so "
            f"about {total} patients in all; there are {len(is_pilot)}.)"
        ) from error
    check_classes(contract, calibration)


def _measured(
    model: Model, repository: Path, cases: Sequence[Labelled], acceptable_dice: float, quiet: bool
) -> list[Measured]:
    samplers, screen = published_samplers(repository, model.contract)
    shown = track(cases, f"{model.contract.name}: measuring", console=Console(stderr=True), disable=quiet)
    looks = [look for look in LOOKS if look < model.contract.samples]
    return [measure(model, case, samplers, acceptable_dice, looks, screen) for case in shown]


def _write_policy(path: Path, chosen: Chosen) -> None:
    """In one step: a server that starts meanwhile reads the old policy or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        file.write(chosen.policy.dumps())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _show(
    console: Console,
    name: str,
    chosen: Chosen,
    sections: Sequence[tuple[str, str, dict[str, Any]]],
    rates: Sequence[Rate],
    page: Path,
) -> None:
    for what, words in guarantees(chosen.policy, chosen.why):
        console.print(f"[bold]{what}[/bold]: {words}", highlight=False)
    for title, _, each in sections:
        routes = each["routes"]
        shown = Table("cases", "accept", "review", "reject", "wrong among accepted", "median samples", title=title)
        row = (each["cases"], *routes.values(), each["wrong_among_accepted"], each["samples"]["median"])
        shown.add_row(*(f"{number:g}" for number in row))
        console.print(shown)
    if rates:
        shown = Table("p", "ECE", "NLL", "Brier", "AURC", "share wrong", title="dropout rate")
        for rate in rates:
            own = "its own" if rate.p is None else f"{rate.p:g}"
            shown.add_row(own, *(f"{n:.4f}" for n in (rate.ece, rate.nll, rate.brier, rate.aurc, rate.loss)))
        console.print(shown)
    console.print(
        f"{name}: policy {chosen.policy.digest[:12]} written; report: {page}", highlight=False, soft_wrap=True
    )
