"""`equipoise calibrate`: what a user types, as values; the work is `calibrate`'s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_core.contract import ContractError
from equipoise_core.errors import InvalidRequest, SamplerFailure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .calibrate import LIMITS, Calibrated
from .calibrate import calibrate as run
from .choose import Method
from .corrupted import verdict
from .errors import CalibrationError
from .options import LabelValues, LeaveOut, Spacing
from .reading import numbers
from .report import guarantees

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise calibrate hippocampus --data labelled/ --repository model_repository --spacing 1,1,1

    equipoise calibrate chest --data cases.npz --repository model_repository --alpha 0.05 --method isotonic

    equipoise calibrate nuclei --data labelled/ --repository model_repository --stages 0,20

    equipoise calibrate chest --data cases.npz --repository model_repository --sweep-p 0.05,0.1,0.2,0.3,0.5

    equipoise calibrate lesion --data cases/ --leave-out lesion.pt.cases.csv --repository models

    equipoise calibrate age --data labelled/ --repository model_repository --tolerance 12

    equipoise calibrate brats --data labelled/ --repository model_repository --label-values "wt=1,2,3; tc=1,3; et=3"

    equipoise calibrate chest --data labelled/ --repository model_repository --group-by scanner

    equipoise calibrate chest --data labelled/ --repository model_repository --group-by prediction

Data: a folder with images/ and labels/ or masks/ (files of the same name, or labels/CLASS/ with one mask per class), a
folder of folders named by class, or an .npz with images and labels (or masks), optionally ids, patients, groups,
spacing. A cases.csv beside the folders may state file, patient, group, label.

Regression: a folder of images and a cases.csv with a column for each target (file,age), or an .npz with images and an
entry for each target [n]. --tolerance says how far from the truth is wrong: 12, or age=12,height=3.

Labels: indices of classes (of regions that may overlap: 0 nothing, 1 the first region alone, …), names of classes, or 0
and 255 for one structure; anything else by --label-values, or by a
dataset.json (nnU-Net's) beside the data. CLASS=LABEL,… are separated by ;, 1..500 is a range, none=… is no class.
"""


def _limited(name: str, text: str) -> Any:
    low, high = LIMITS[name]
    return typer.Option(min=low, max=high, help=text)


@app.command(epilog=_EXAMPLES)
def calibrate(
    name: Annotated[str, typer.Argument(help="The public model.")],
    data: Annotated[Path, typer.Option(help="Labelled cases, see below.")],
    repository: Annotated[Path, typer.Option(help="The model repository.")],
    test: Annotated[
        Path | None, typer.Option(help="Other labelled cases to measure on, such as a shifted site.")
    ] = None,
    alpha: Annotated[float, _limited("alpha", "Error among accepted cases, at most.")] = 0.1,
    delta: Annotated[float, _limited("delta", "Chance that this is not so, at most.")] = 0.1,
    acceptable_dice: Annotated[float, _limited("acceptable_dice", "Segmentation: below it a case is wrong.")] = 0.8,
    tolerance: Annotated[
        str | None, typer.Option(help="Regression: further from the truth is wrong, in the target's unit (12).")
    ] = None,
    false_alarms: Annotated[float, _limited("false_alarms", "Typical cases that a bound may hold back.")] = 0.05,
    audited: Annotated[float, _limited("audited", "Accepted cases marked for an audit.")] = 0.05,
    level: Annotated[float, _limited("level", "Coverage of the intervals of volumes or numbers.")] = 0.9,
    missed: Annotated[float, _limited("missed", "Foreground labels_sensitive may miss.")] = 0.05,
    method: Annotated[Method, typer.Option(help="How probabilities are recalibrated.")] = Method.TEMPERATURE,
    stages: Annotated[
        str | None,
        typer.Option(help="Samples after which a case may be decided, 0: first pass (0,20); measured unless named."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Full T; the contract's by default.")] = None,
    pilot: Annotated[float, _limited("pilot", "Share of patients for exploration only.")] = 0.3,
    spacing: Spacing = None,
    label_values: LabelValues = None,
    leave_out: LeaveOut = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of cases.csv (scanner), or `prediction`: a certificate for each value.")
    ] = None,
    order_by: Annotated[str | None, typer.Option(help="Column with dates or numbers, to look for drift.")] = None,
    training: Annotated[Path | None, typer.Option(help="Images trained on, to look for them among the cases.")] = None,
    despite: Annotated[
        str, typer.Option(help="Why, and who says so: use cases in spite of what was found; the policy keeps it.")
    ] = "",
    sweep_p: Annotated[str | None, typer.Option(help="Dropout rates to try (0.1,0.2,0.5); changes no policy.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML file; NAME.calibration.html beside the repository.")] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Cases of each kind shown in the report; 0: no image in it.")
    ] = 4,
    timings: Annotated[bool, typer.Option("--timings", help="Say how long each phase took.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Chooses thresholds with a stated guarantee on labelled cases, and writes policy.json and a report."""
    console = Console(stderr=as_json)
    try:
        found = run(
            name, data=data, repository=repository, test=test, alpha=alpha, delta=delta,
            acceptable_dice=acceptable_dice, tolerance=tolerance, false_alarms=false_alarms, audited=audited,
            level=level, missed=missed,
            method=method, stages=_whole(stages), samples=samples, pilot=pilot, report=report, pictures=pictures,
            spacing=numbers(spacing) if spacing else None, label_values=label_values, leave_out=leave_out,
            group_by=group_by, order_by=order_by, training=training, despite=despite, progress=not as_json,
            sweep_p=numbers(sweep_p) if sweep_p else (),
        )  # fmt: skip
    except (CalibrationError, ContractError, InvalidRequest, SamplerFailure, OSError) as error:
        Console(stderr=True).print(f"[red]not calibrated[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        document = {**found.document(), "timings": found.timings.document()} if timings else found.document()
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        if timings:
            console.print(found.timings)
        _show(console, name, found, repository)


def _whole(text: str | None) -> tuple[int, ...]:
    given = numbers(text) if text else ()
    if any(number != int(number) for number in given):
        raise CalibrationError(f"--stages {text}: expected whole numbers of samples, such as 0,20 or 0,5,10,20")
    return tuple(int(number) for number in given)


def _show(console: Console, name: str, found: Calibrated, repository: Path) -> None:
    for note in found.notes:
        console.print(f"[yellow]note[/yellow]: {escape(note)}", highlight=False, soft_wrap=True)
    for what, words in guarantees(found.policy, found.why):
        console.print(f"[bold]{escape(what)}[/bold]: {escape(words)}", highlight=False)
    for asked in found.examined:
        console.print(f"{asked.what}: {asked.words}", highlight=False, markup=False)
    for title, _, each in found.sections:
        routes = each["routes"]
        shown = Table("cases", "accept", "review", "reject", "wrong among accepted", "median samples", title=title)
        row = (each["cases"], *routes.values(), each["wrong_among_accepted"], each["samples"]["median"])
        shown.add_row(*(f"{number:g}" for number in row))
        console.print(shown)
    if found.corrupted:
        console.print(f"{verdict(found.corrupted)}.", highlight=False)
    if found.rates:
        shown = Table("p", "ECE", "NLL", "Brier", "AURC", "share wrong", title="dropout rate")
        for rate in found.rates:
            own = "its own" if rate.p is None else f"{rate.p:g}"
            shown.add_row(own, *(f"{n:.4f}" for n in (rate.ece, rate.nll, rate.brier, rate.aurc, rate.loss)))
        console.print(shown)
    console.print(
        f"{name}: policy {found.policy.digest[:12]} written; report: {found.report}; all cases: {found.table}\n"
        f"next: equipoise serve {repository}, then: equipoise predict {name} IMAGE",
        highlight=False,
        soft_wrap=True,
    )
