"""The methods of the catalogue, trained on reference data, published and calibrated; no verb: see its examples."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from equipoise_core.loading import load_model
from equipoise_export.errors import ExportError
from equipoise_export.publish.repository import publish_pair, renew_configurations
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..reference.build import choose_on_split
from ..reference.data import DataMissingError, Dataset, load, reference_split
from ..reference.specs import REFERENCES, Reference
from ..reference.training import TrainingError
from .catalogue import CATALOGUE, Method
from .workshop import Product, Workshop

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

DATA_SETS = tuple(name for name, reference in REFERENCES.items() if reference.task == "segmentation")

_EXAMPLES = """
Examples:

    python -m equipoise_lab.methods.command --list

    python -m equipoise_lab.methods.command student cascade --on nuclei --into build/methods

    python -m equipoise_lab.methods.command --on nuclei --on hippocampus --into build/methods --from-scratch

A training that was stopped goes on after its last epoch when the command is given again; one that is done is not
repeated. Each method is published as DATASET_METHOD, for `equipoise compare` and `equipoise serve`.
"""


@app.command(epilog=_EXAMPLES)
def train(
    methods: Annotated[list[str] | None, typer.Argument(help="Names from --list; all by default.")] = None,
    on: Annotated[list[str] | None, typer.Option(help=f"Data set: {' or '.join(DATA_SETS)}; both by default.")] = None,
    into: Annotated[Path, typer.Option(help="The model repository to publish into.")] = Path("build/methods"),
    work: Annotated[
        Path | None, typer.Option(help="Folder of weights and checkpoints; INTO/.trainings by default.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the base network too; else it has the reference weights.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, batches, augmentation and dropout.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most so many for every training: to try it out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Processor cores to use; 0: all.")] = 0,
    calibrate: Annotated[bool, typer.Option(help="Choose each model's policy on the calibration split.")] = True,
    listed: Annotated[bool, typer.Option("--list", help="What there is; train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Trains uncertainty methods on a reference data set, publishes and calibrates them."""
    console = Console(stderr=as_json)
    if listed:
        _list(console, as_json)
        return
    try:
        by_name = {method.name: method for method in CATALOGUE}
        if unknown := [name for name in methods or () if name not in by_name]:
            raise TrainingError(f"there is no method {unknown[0]}; there are {', '.join(by_name)}")
        chosen = [by_name[name] for name in methods or by_name]
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        published = []
        for name in on or DATA_SETS:
            if name not in DATA_SETS:
                raise TrainingError(f"there is no data set {name} to train on; there are {', '.join(DATA_SETS)}")
            data = load(name)
            folder = (work or into / ".trainings") / name
            folder.mkdir(parents=True, exist_ok=True)
            cases = data.select(reference_split(name, data.ids).train)
            workshop = Workshop(REFERENCES[name], cases, folder, seed, from_scratch, epochs)
            for method in chosen:
                published.append(_publish(method, workshop, into))
                if calibrate:
                    published[-1]["accept"] = _calibrated(published[-1]["name"], workshop.reference, data, into)
                console.print(f"[bold]{published[-1]['name']}[/bold] published into {into}", highlight=False)
    except (ExportError, TrainingError, DataMissingError, OSError) as error:
        Console(stderr=True).print(f"[red]not trained[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(published, indent=1))
        return
    shown = Table("model", "method", "training, processor s", "policy")
    for each in published:
        shown.add_row(each["name"], each["title"], f"{each['seconds']:.0f}", each.get("accept", "none"))
    console.print(shown)


def _list(console: Console, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"name": m.name, "title": m.title, "source": m.source} for m in CATALOGUE], indent=1))
        return
    shown = Table("name", "method", "source")
    for method in CATALOGUE:
        shown.add_row(method.name, method.title, method.source)
    console.print(shown)


def _publish(method: Method, workshop: Workshop, into: Path) -> dict[str, Any]:
    """Trains what is missing, publishes, and writes `training.json`; returns what it says."""
    draft = replace(workshop.draft, name=f"{workshop.reference.name}_{method.name}")
    publish_product(method.build(workshop, draft), into)
    base = "base network trained here" if workshop.from_scratch else "base network: the reference weights, not counted"
    note = {
        "name": draft.name,
        "title": method.title,
        "source": method.source,
        "seconds": workshop.seconds(method.trainings),
        "note": f"seed {workshop.seed}, trainings {', '.join(method.trainings)}; {base}",
    }
    (into / draft.name / "training.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return note


def publish_product(product: Product, into: Path) -> Path:
    """Writes what a method made as one public model; one that is there already is replaced."""
    first, *further = product.members
    return publish_pair(first, into, replace=True, further=further, first_pass=product.first_pass)


def _calibrated(name: str, reference: Reference, data: Dataset, into: Path) -> str:
    """Chooses the policy and writes it; returns what its accept threshold guarantees."""
    model = load_model(into / name / "1")
    policy, _ = choose_on_split(replace(model, policy=None), into, reference, data)
    (into / name / "1" / "policy.json").write_text(policy.dumps(), encoding="utf-8")
    renew_configurations(into, name)
    return policy.guarantee.rule if policy.guarantee else "nothing could be certified"


if __name__ == "__main__":
    app()
