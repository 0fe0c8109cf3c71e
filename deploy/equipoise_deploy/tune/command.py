"""The verb `equipoise tune`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import InvalidInput
from equipoise_core.case import Model
from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model
from equipoise_load.mix import Payload, Wish, build_mix
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..cli import exits_on
from ..errors import RepositoryError
from ..repository import models_of, public_models
from ..serving.engine import find_engine
from ..serving.settings import Settings, load_settings, settings_document
from ..serving.staging import available_cores, published_settings
from .tuning import KNOBS, Bench, Step, figures, knobs, queue_for, tune

EPILOG = """[bold]Examples[/]

equipoise tune pneumonia --image xray.dcm

equipoise tune hippocampus /srv/models --clients 4 --longest-wait 30 --into /etc/equipoise/settings.json

equipoise serve /srv/models --settings /etc/equipoise/settings.json

Nothing else should run meanwhile. Exit code: 0 done (also where nothing was better), 1 it failed, 2 wrong usage."""


def tune_command(
    model: Annotated[str, typer.Argument(help="The public model to tune.", show_default=False)],
    repository: Annotated[Path, typer.Argument(help="Folder of published models.")] = Path("model_repository"),
    into: Annotated[Path, typer.Option(help="Settings of this machine; those of other models are kept.")] = Path(
        "settings.json"
    ),
    image: Annotated[list[Path] | None, typer.Option(help="Image files to send; default: a synthetic one.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="T; default: the policy's stages.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="That ask at the same time.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 2.0,
    longest_wait: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request may wait: the queue is made no longer.")
    ] = 10.0,
    knob: Annotated[
        list[str] | None, typer.Option(help=f"Try only these: {', '.join(KNOBS)}. Default: all, one after the other.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print settings and figures as JSON.")] = False,
) -> None:
    """Measure how this machine serves MODEL fastest, and write that down for `equipoise serve --settings`.

    Tried one after the other, each against the best so far, side by side: how samplers share the cores, aggregators,
    batching delay, chunk size. A setting is taken only where it wins by 3 % and in three of four rounds.
    """
    err = Console(stderr=True)
    if unknown := sorted({*(knob or KNOBS)} - {*KNOBS}):
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; choose from {', '.join(KNOBS)}")
    with exits_on(InvalidInput, ContractError, OSError):
        if model not in public_models(repository):
            raise RepositoryError(f"{repository} serves {', '.join(public_models(repository))}; there is no {model}")
        before, figures_before = load_settings(into) if into.exists() else ({}, {})
        known = load_model((repository / model / "1").resolve())
        with TemporaryDirectory(prefix="equipoise-tune-") as alone:
            for name in models_of(repository, model):
                (Path(alone) / name).symlink_to((repository / name).resolve())
            steps, last = _measured(
                known, Path(alone), image or [], samples, clients, rounds, seconds, knob or KNOBS, err
            )
        speed = next(trial.median for trial in steps[-1].trials if trial.settings == steps[-1].kept)
        published = published_settings(repository, model, find_engine(os.environ).configuration, available_cores())
        aggregators = published.overlaid(last).aggregators or 1
        chosen = last.overlaid(queue_for(speed.together, longest_wait, aggregators))
        evidence = {**figures_before, model: _evidence(steps, clients, longest_wait)}
        document = settings_document({**before, model: chosen}, evidence)
        into.parent.mkdir(parents=True, exist_ok=True)
        part = into.with_name(f".{into.name}.{os.getpid()}.partial")  # the file holds other models' settings as well
        try:
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            part.replace(into)
        finally:
            part.unlink(missing_ok=True)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    console = Console()
    for step in steps:
        console.print(_table(step, clients))
    console.print(f"{model}: {chosen}")
    console.print(f"Written to {into}: equipoise serve {repository} --settings {into}", soft_wrap=True)


def _measured(
    model: Model,
    repository: Path,
    images: Sequence[Path],
    samples: int | None,
    clients: int,
    rounds: int,
    seconds: float,
    wanted: Sequence[str],
    err: Console,
) -> tuple[list[Step], Settings]:
    name = model.contract.name
    wish = Wish({name: 1.0}, tuple(images), (samples,) if samples else (), 0.0, (), 120.0)

    def payloads(url: str) -> Sequence[Payload]:
        with UncertaintyClient(url) as client:
            return build_mix(client, wish)

    bench = Bench(repository, name, payloads, clients, rounds, seconds)
    cores = available_cores()
    published = published_settings(repository, name, find_engine(os.environ).configuration, cores)
    tried = knobs(published, cores, samples or model.samples, model.contract.stochastic)
    choices = [knob for knob in tried if knob[0] in wanted]
    total = (rounds + 1) * (sum(len(values) + 1 for _, values in choices) + 2)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    steps: list[Step] = []
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(f"{name}: cores", total=total)
        for step in tune(bench, choices, lambda: progress.advance(task)):
            steps.append(step)
            progress.update(task, description=f"{name}: after {step.knob}: {step.kept}")
    return steps, steps[-1].kept


def _evidence(steps: Sequence[Step], clients: int, longest_wait: float) -> dict[str, Any]:
    return {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cores": available_cores(),
        "machine": platform.machine(),
        "clients": clients,
        "longest_wait_s": longest_wait,
        "steps": [figures(step) for step in steps],
    }


def _table(step: Step, clients: int) -> Table:
    headings = ("settings", "one client, ms", f"{clients} clients, per second", "times better", "rounds won", "")
    table = Table(*headings, title=step.knob, title_justify="left")
    for trial in step.trials:
        if trial.why_not:
            table.add_row(str(trial.settings), "–", "–", "–", "–", trial.why_not)
            continue
        speed, wins = trial.median, sum(ratio > 1.0 for ratio in trial.ratios)
        won = "–" if trial is step.trials[0] else f"{wins} of {len(trial.ratios)}"
        kept = "kept" if trial.settings == step.kept else ""
        table.add_row(
            str(trial.settings), f"{speed.alone:.4g}", f"{speed.together:.4g}", f"{trial.ratio:.3f}", won, kept
        )
    return table
