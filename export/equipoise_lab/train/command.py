"""`equipoise train`: a user's network on a user's labelled cases; what it was not shown is left for `calibrate`."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from equipoise_client.errors import EquipoiseError
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.errors import InvalidRequest
from equipoise_export.calibration.cases import check_classes
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.options import LabelValues
from equipoise_export.calibration.reading import labelled_cases
from equipoise_export.draft import Description
from equipoise_export.errors import ExportError, SpecError
from equipoise_export.inputs.checkpoints import load_weights
from equipoise_export.inputs.factory import load_module
from equipoise_export.options import Sizes
from equipoise_export.typed import arguments, bounds, whole_numbers, words
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from torch import nn

from ..reference.training import TrainingError
from .cases import Parts, deal, samples, write_parts
from .fit import Epoch, Recipe, fit

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise train networks.py:unet --data cases/ --task segmentation --input-shape 1,256,256 \\
        --classes background,lesion --out lesion.safetensors

    equipoise train networks.py:net --data folders/ --task classification --input-shape 3,224,224 \\
        --classes normal,pneumonia --preprocess "rgb divide:255 imagenet" --weights pretrained.pt --out chest.pt

Data: as `equipoise calibrate` takes it. --task, --input-shape, --classes, --activation, --preprocess, --multiple,
--spacing, --orientation and --arg mean what they mean to `equipoise export`, and must be the same there; the command is
printed at the end. Of a segmentation's larger images, parts of the size of --input-shape are trained on.

Patients are dealt into three parts: the network is trained on one, --validation of the others says when to stop, and
--held-out of all are not looked at: OUT.cases.csv beside the weights says who is who, for `equipoise calibrate
--leave-out`. A network cannot be calibrated on cases that it was trained on.
"""


@app.command(epilog=_EXAMPLES)
def train(
    spec: Annotated[str, typer.Argument(help="package.module:callable or file.py:callable that returns an nn.Module.")],
    data: Annotated[Path, typer.Option(help="Labelled cases, see below.")],
    out: Annotated[Path, typer.Option(help="File for the weights: .safetensors, or .pt for a state dict of torch.")],
    task: Annotated[Task | None, typer.Option(help="What the network answers.")] = None,
    input_shape: Annotated[str | None, typer.Option(help="C,H,W or C,X,Y,Z of one image, or of a part of it.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="One name per output channel; softmax segmentation: background first.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for the next step; OUT's by default.")] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="How logits become probabilities; softmax unless stated.")
    ] = None,
    preprocess: Annotated[
        list[str] | None, typer.Option(metavar="STEPS", help="What happens to intensities; zscore unless stated.")
    ] = None,
    multiple: Annotated[int, typer.Option(min=1, help="Spatial sizes are padded to a multiple of this.")] = 1,
    spacing: Annotated[str | None, typer.Option(help="lowest:highest mm per axis (0.8:1.2,0.8:1.2).")] = None,
    orientation: Annotated[str | None, typer.Option(help="Anatomical axes as nibabel spells them (RAS).")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help="key=value for the callable; the value is read as JSON.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    label_values: LabelValues = None,
    validation: Annotated[
        float, typer.Option(min=0.05, max=0.5, help="Share of the others that says when to stop.")
    ] = 0.2,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of patients left for calibration.")] = 0.4,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cases, at most.")] = Recipe.epochs,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without progress before it stops.")] = Recipe.patience,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = Recipe.batch,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0, help="At the start.")] = Recipe.learning_rate,
    augment: Annotated[bool, typer.Option(help="Turn, scale, shift and recolour images a little each time.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches, augmentation and dropout.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Trains a network on labelled cases, and stops where it gets no better on patients that it was not trained on."""
    console = Console(stderr=as_json)
    try:
        _check_ending(out)
        stated: dict[str, Any] = {
            "name": name or out.name.split(".")[0],
            "task": task,
            "shape": None if input_shape is None else whole_numbers(input_shape, "--input-shape"),
            "classes": None if classes is None else words(classes),
            "activation": activation,
            "preprocess": preprocess,
            "multiple": multiple,
            "spacing": None if spacing is None else [bounds(entry) for entry in spacing.split(",")],
            "orientation": orientation,
        }
        if task is Task.REGRESSION:
            raise TrainingError(f"--task {task.value}: segmentation and classification are trained here")
        contract = Description.read(stated).contract(Sizes.DYNAMIC)
        torch.manual_seed(seed)
        network = load_module(spec, arguments(arg or []))
        if weights is not None:
            for note in load_weights(network, weights):
                console.print(f"[yellow]note[/yellow]: {escape(note)}", highlight=False, soft_wrap=True)
        cases = labelled_cases(data, contract, None, values=label_values)
        parts = deal(cases, validation, held_out)
        check_classes(contract, parts.train)
        out.parent.mkdir(parents=True, exist_ok=True)
        table = out.with_name(f"{out.name}.cases.csv")
        write_parts(table, parts)
        begun = time.monotonic()
        recipe = Recipe(epochs, patience, batch, learning_rate, augment=augment, seed=seed)
        best, last = _fitted(network, contract, parts, recipe, out, console)
    except (EquipoiseError, ExportError, TrainingError, CalibrationError, InvalidRequest, OSError) as error:
        Console(stderr=True).print(f"[red]not trained[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    described: dict[str, list[Any]] = {
        "--task": [contract.task.value], "--input-shape": [input_shape], "--classes": [classes],
        "--activation": [activation.value] if activation else [], "--preprocess": preprocess or [],
        "--multiple": [str(multiple)] if multiple > 1 else [], "--spacing": [spacing] if spacing else [],
        "--orientation": [orientation] if orientation else [], "--arg": arg or [],
    }  # fmt: skip
    given = [str(part) for option, values in described.items() for value in values for part in (option, value)]
    following = _next_steps(contract, spec, data, out, table if parts.held_out else None, label_values, given)
    if as_json:
        counts = {part: len(those) for part, those in parts.named.items()}
        said = {"weights": str(out), "cases": counts, "best": asdict(best), "epochs": last.number, "next": following}
        typer.echo(json.dumps({**said, "seconds": round(time.monotonic() - begun, 1)}, indent=1))
        return
    what = "mean Dice" if contract.task is Task.SEGMENTATION else "right labels"
    console.print(
        f"{out}: {what} {best.quality:.3f} on {len(parts.validation)} validation cases after epoch {best.number} of "
        f"{last.number}, {time.monotonic() - begun:.0f} s; trained on {len(parts.train)} cases, {len(parts.held_out)} "
        f"held out ({table.name})",
        highlight=False,
        soft_wrap=True,
    )
    if best.number == epochs:
        console.print(f"it was still getting better after {epochs} epochs: more --epochs may help")
    for title, command in zip(("next", "then"), following, strict=True):
        console.print(f"{title}: {command}", highlight=False, markup=False, soft_wrap=True)
    if not parts.held_out:
        console.print("calibrate on other cases than these: the network has seen all of them")


def _check_ending(out: Path) -> None:
    if out.suffix not in (".safetensors", ".pt", ".pth"):
        raise SpecError(f"--out {out}: expected a name that ends in .safetensors, .pt or .pth")


def _fitted(
    network: nn.Module, contract: Contract, parts: Parts, recipe: Recipe, out: Path, console: Console
) -> tuple[Epoch, Epoch]:
    """Trains with a progress bar; returns the best epoch and the last one. The weights of the best lie in `out`.

    Stopped by hand after an epoch, it keeps what it has.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    quality = "Dice" if contract.task is Task.SEGMENTATION else "right"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told = "loss {task.fields[loss]:.4f}, " + quality + " {task.fields[quality]:.3f}, best in epoch {task.fields[best]}"
    best: Epoch | None = None
    last: Epoch | None = None
    train, validation = samples(contract, parts.train), samples(contract, parts.validation)
    with Progress(*columns, TextColumn(told), console=console) as progress:
        bar = progress.add_task("epoch", total=recipe.epochs, loss=float("nan"), quality=float("nan"), best="–")
        try:
            for last in fit(network, contract, train, validation, recipe, lambda kept, _: _save(kept, out), device):
                best = last if last.best else best
                shown: dict[str, Any] = {
                    "loss": last.validation_loss,
                    "quality": last.quality,
                    "best": best.number if best else "–",
                }
                progress.update(bar, completed=last.number, **shown)
        except KeyboardInterrupt:
            if best is None:
                raise
    assert best is not None and last is not None
    return best, last


def _save(network: nn.Module, out: Path) -> None:
    """In one step: whoever reads it gets the weights before or these."""
    state = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    unfinished = out.with_name(f"{out.name}.partial")
    if out.suffix == ".safetensors":
        save_file(state, unfinished)
    else:
        torch.save(state, unfinished)
    unfinished.replace(out)


def _next_steps(
    contract: Contract, spec: str, data: Path, out: Path, table: Path | None, label_values: str | None, given: list[str]
) -> list[str]:
    """The commands that export and calibrate what was trained; `given` is what describes the network."""
    export = ["equipoise", "export", spec, "--weights", str(out), "--name", contract.name, *given, "--into", "models"]
    kept = ["--data", str(data), "--leave-out", str(table)] if table else ["--data", "OTHER_CASES"]
    values = ["--label-values", label_values] if label_values else []
    calibrate = ["equipoise", "calibrate", contract.name, *kept, *values, "--repository", "models"]
    return [shlex.join(export), shlex.join(calibrate)]
