"""`equipoise compare`: published models and one data set in, one table with intervals out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_core.contract import ContractError, Task
from equipoise_core.errors import InvalidRequest, SamplerFailure
from equipoise_export.calibration.choose import Goals, Method
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.options import LabelValues, LeaveOut, Spacing
from equipoise_export.calibration.reading import numbers
from equipoise_export.page import ready
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .bootstrap import bootstrap, differences
from .case_sets import gather
from .errors import ComparisonError
from .figures import figures
from .report import Comparison, document, render, sentences, show
from .results import check_alike, load_compared, results_on
from .timing import milliseconds

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise compare mc_dropout ensemble student --repository models/ --data labelled/ --report comparison.html

    equipoise compare a b --repository models/ --data cases.npz --test other_site/ --shifted phantoms/ --json

    equipoise compare lesion --repository models --data cases/ --leave-out lesion.pt.cases.csv

    equipoise compare hippocampus --repository model_repository --data reference:hippocampus

Data: as `equipoise calibrate` takes it (a third of the patients is then measured on, unless --test is given), or
reference:NAME with the images that EQUIPOISE_DATA names. Shifted images need no labels.

Figures, each with a 95 % interval over resampled patients:

    Dice, accuracy        how good the answers are
    ECE, Brier, NLL       how far the probabilities can be taken at their word; smooth ECE is without bins, class-wise
                          ECE the mean over classes
    AURC, E-AURC, AUGRC   mean risk while the least certain cases are set aside; what of it the score alone loses; the
                          same as a share of all cases; risk at 80, 90 and 95 % kept
    pairwise Dice         the same of ranking by how alike the samples' label maps are: what any score should beat
    AUROC errors          whether wrong cases have higher scores than right ones
    AUROC shifted         whether shifted images have higher scores; beside it that of `ood_distance`, of the input
    coverage, width       of the volume intervals; the width in mL
    accepted              share of cases that the policy accepts at --alpha, and how many of them are wrong
    samples, ms           per image, until it is decided; a first pass counts as one; ms in this process, in turns
    training              seconds, from REPOSITORY/MODEL/training.json {"title": …, "seconds": …, "note": …}

A difference to the first model is put in words only where its interval excludes 0, corrected for the number of models.
"""


@app.command(epilog=_EXAMPLES)
def compare(
    models: Annotated[list[str], typer.Argument(help="Published models; the others are compared with the first.")],
    repository: Annotated[Path, typer.Option(help="The model repository that holds them all.")],
    data: Annotated[str, typer.Option(help="Labelled cases, or reference:NAME; see below.")],
    test: Annotated[
        Path | None, typer.Option(help="Labelled cases to measure on, instead of a part of --data.")
    ] = None,
    shifted: Annotated[
        Path | None, typer.Option(help="Images that are out of distribution; labels not needed.")
    ] = None,
    alpha: Annotated[float, typer.Option(min=0.001, max=0.5, help="Error among accepted cases, at most.")] = 0.1,
    delta: Annotated[float, typer.Option(min=0.001, max=0.5, help="Chance that this is not so, at most.")] = 0.1,
    acceptable_dice: Annotated[float, typer.Option(min=0, max=1, help="Segmentation: below it a case is wrong.")] = 0.8,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Full T of models with dropout; their own by default.")
    ] = None,
    method: Annotated[Method, typer.Option(help="How probabilities are recalibrated.")] = Method.TEMPERATURE,
    pilot: Annotated[float, typer.Option(min=0.1, max=0.8, help="Share of patients for exploration only.")] = 0.3,
    spacing: Spacing = None,
    label_values: LabelValues = None,
    leave_out: LeaveOut = None,
    repetitions: Annotated[int, typer.Option(min=1000, max=100_000, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of ONNX Runtime; 0: as many as there are cores.")] = 0,
    report: Annotated[Path | None, typer.Option(help="HTML file; comparison.html by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compares published models on the same cases: answers, calibration, scores, decisions, cost; with intervals."""
    console = Console(stderr=as_json)
    try:
        page = ready(report or Path("comparison.html"))
        compared = [load_compared(repository, name, samples) for name in models]
        check_alike(compared)
        contract = compared[0].contract
        if contract.targets:
            raise ComparisonError(
                f"{contract.name} is a regression: compare looks at probabilities of classes. `equipoise calibrate` "
                "reports errors and intervals of each model on the same cases"
            )
        segmentation = contract.task is Task.SEGMENTATION
        loss = f"mean Dice below {acceptable_dice:g}" if segmentation else "wrong label"
        goals = Goals(loss, alpha, delta, method=method)
        spacings = numbers(spacing) if spacing else None
        sets = gather(data, contract, test, shifted, pilot, spacings, label_values, leave_out)
        every = [results_on(each, sets, goals, acceptable_dice, threads, as_json) for each in compared]
        times = milliseconds(compared, [each.chosen for each in every], sets.test, threads, as_json)
        resampled = bootstrap(every, figures(every, segmentation), repetitions, seed)
        found = differences(every, resampled)
        comparison = Comparison(sets, goals, compared, every, resampled, found, times, repetitions, seed)
        outcome = document(comparison)
        page.write_text(render(comparison, outcome), encoding="utf-8")
    except (CalibrationError, ComparisonError, ContractError, InvalidRequest, SamplerFailure, OSError) as error:
        Console(stderr=True).print(f"[red]not compared[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({**outcome, "report": str(page)}, indent=1, allow_nan=False))
    else:
        _show(console, outcome, page)


def _show(console: Console, outcome: dict[str, Any], page: Path) -> None:
    """Figures down, models across: with twelve models the names still stand above their columns."""
    table = Table("", title=f"{outcome['data']}: {outcome['cases']['test']['cases']} test cases", show_lines=False)
    for model in outcome["models"]:
        table.add_column(model["name"], justify="right")
    for figure in outcome["figures"]:
        percent = figure["percent"]
        row = []
        for model in outcome["models"]:
            of = model["figures"][figure["name"]]
            interval = f"\n[dim]{show(of['low'], percent)} – {show(of['high'], percent)}[/dim]"
            row.append(show(of["value"], percent) + ("" if of["low"] is None else interval))
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[figure["better"]]
        table.add_row(figure["title"] + arrow, *row)
    table.add_row("ms per image", *(show(model["milliseconds"]["median"]) for model in outcome["models"]))
    table.add_row("× fastest", *(f"{model['milliseconds']['ratio']:.2f}" for model in outcome["models"]))
    table.add_row(
        "training, s",
        *(f"{model['training']['seconds']:.0f}" if model["training"] else "–" for model in outcome["models"]),
    )
    console.print(table)
    for model in outcome["models"]:
        console.print(f"[bold]{escape(model['name'])}[/bold]: {escape(model['accept'])}", highlight=False)
    for name, shown, others in sentences(outcome["differences"]):
        for words in shown:
            console.print(f"• {escape(words)}", highlight=False)
        if others:
            title = next(figure["title"] for figure in outcome["figures"] if figure["name"] == name)
            console.print(f"[dim]• {title}: no difference shown for {escape(', '.join(others))}[/dim]", highlight=False)
    if outcome["differences"]:
        console.print(
            f"{outcome['comparisons']['made']} comparisons; {outcome['comparisons']['correction']}.", highlight=False
        )
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
