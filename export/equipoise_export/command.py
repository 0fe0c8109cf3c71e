"""`equipoise export`: what a user types, as values; the work is that of `equipoise_export.export` and `.inspect`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from equipoise_core.contract import Activation, Precision, Task
from equipoise_core.steps import spellings
from rich.console import Console
from rich.markup import escape

from .errors import ExportError, SpecError
from .inputs.bound import read_constants
from .options import Answers, Options, Sizes
from .progress import shown
from .publish.repository import PROOF
from .typed import arguments, bounds, whole_numbers, words

if TYPE_CHECKING:  # it loads torch, which help and a mistyped option need not wait for
    from . import api

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EXAMPLES = """
Examples:

    equipoise export nets.py:unet --weights unet.pt --name nuclei --task segmentation \\
        --input-shape 1,256,256 --classes background,nucleus --multiple 8 --into model_repository

    equipoise export monai.networks.nets:DenseNet121 --arg spatial_dims=2 --arg in_channels=1 --arg out_channels=2 \\
        --arg dropout_prob=0.2 --weights d.safetensors --name chest --task classification \\
        --input-shape 1,224,224 --classes normal,pneumonia --sizes fixed --into model_repository

    equipoise export nets.py:unet --weights a.pt --weights b.pt --weights c.pt --name nuclei --task segmentation \\
        --input-shape 1,256,256 --classes background,nucleus --multiple 8 --into model_repository

    equipoise export bundles/spleen_ct_segmentation --arg network_def.dropout=0.2 --weights retrained.pt \\
        --preprocess "scale_range:-57,164,clip" --into model_repository

    equipoise export vendor.onnx --dropout-at 'layer4*' --p 0.1 --name chest --task classification \\
        --input-shape 3,224,224 --classes normal,pneumonia --into model_repository

    equipoise export nets.py:bone_age --name age --task regression --input-shape 1,256,256 --targets age:mo \\
        --answers mean_log_variance --sizes fixed --into model_repository

    equipoise export nets.py:unet --name nuclei --task segmentation --input-shape 1,256,256 \\
        --classes background,nucleus --inspect

Preprocessing, as in training: --preprocess "scale_range:-57,164,clip" (MONAI, CT), "zscore:nonzero" (MONAI, MR),
"clip:-80,310 mean_std:102/38" (nnU-Net, CT), "rgb divide:255 imagenet" (torchvision, timm). The steps:

""" + "\n".join(f"    {spelling}" for spelling in spellings())


@app.command(epilog=_EXAMPLES)
def export(
    spec: Annotated[
        str,
        typer.Argument(
            help="package.module:callable or file.py:callable that returns an nn.Module, an ONNX file, or the "
            "directory of a MONAI bundle (what its metadata and transforms state need not be given)."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The public model's name in Triton.")] = None,
    task: Annotated[Task | None, typer.Option(help="What the network answers.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="C,H,W or C,X,Y,Z of one image; the size used for warm-up.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="One name per output channel; softmax segmentation: background first.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Regression: NAME:UNIT of each number, unit as UCUM spells it (age:mo,height:cm; 1: none)."),
    ] = None,
    into: Annotated[Path | None, typer.Option(help="The model repository to publish into.")] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="State dict or safetensors (FILE:NAME where one holds several: last.pt:ema); several: a deep ensemble."
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the callable, or for a bundle's configuration; the value is read as JSON."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Which output, by index, key or dotted path; of a regression also MEAN,VARIANCE."),
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What it takes besides the image (parameter of forward, input of an ONNX file), bound to a constant: "
            "a number, a JSON list, a .npy or .safetensors file.",
        ),
    ] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="How logits become probabilities; softmax unless stated.")
    ] = None,
    answers: Annotated[
        Answers,
        typer.Option(
            help="What its output is; unstated: logits, refused where it looks like probabilities. Regression: mean "
            "[N, K], or [N, 2K] with the K variances or their logarithms behind the K means."
        ),
    ] = Answers.UNSTATED,
    preprocess: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEPS",
            help="What happened to intensities in training, step by step; see the end. zscore unless stated.",
        ),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(help="zscore, identity, or with --low and --high window and percentile; those clip nothing."),
    ] = None,
    low: Annotated[float | None, typer.Option(help="Intensity or percentile that becomes 0.")] = None,
    high: Annotated[float | None, typer.Option(help="Intensity or percentile that becomes 1.")] = None,
    multiple: Annotated[int, typer.Option(help="Spatial sizes are padded to a multiple of this.")] = 1,
    fill: Annotated[float, typer.Option(help="Normalised intensity that the network sees in padding.")] = 0.0,
    sizes: Annotated[Sizes, typer.Option(help="Serve any size (dynamic), one (fixed), or what works.")] = Sizes.AUTO,
    maximum: Annotated[str | None, typer.Option(help="H,W: the largest sizes served.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="lowest:highest mm per axis, comma-separated (0.8:1.2,0.8:1.2).")
    ] = None,
    orientation: Annotated[str | None, typer.Option(help="Anatomical axes as nibabel spells them (RAS).")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="DICOM modality code it was trained for.")] = None,
    body_part: Annotated[
        list[str] | None, typer.Option(help="Body Part Examined that it was trained on; another one is rejected.")
    ] = None,
    view: Annotated[list[str] | None, typer.Option(help="View Position that it was trained on (PA).")] = None,
    laterality: Annotated[list[str] | None, typer.Option(help="Image Laterality that it was trained on (L).")] = None,
    ages: Annotated[str | None, typer.Option(help="lowest:highest completed years of its patients (1:5).")] = None,
    optional: Annotated[
        list[str] | None,
        typer.Option(help="Of body_part, view, laterality, age: a header need not state it for an accept."),
    ] = None,
    samples: Annotated[int, typer.Option(help="T unless the policy or the caller says otherwise.")] = 20,
    sites: Annotated[str | None, typer.Option(help="Only modules that match this pattern drop (decoder.*).")] = None,
    p: Annotated[float | None, typer.Option("--p", help="Override the probability of dropping.")] = None,
    min_depth: Annotated[
        float | None, typer.Option(help="Only sites after this share (0 to 1) of the network's multiplications.")
    ] = None,
    dropout_at: Annotated[
        str | None, typer.Option(help="ONNX files: put a site behind every tensor of this name pattern; needs --p.")
    ] = None,
    log_variance: Annotated[
        str | None, typer.Option(help="Heteroscedastic networks: the output that holds log σ² of the logits.")
    ] = None,
    slices: Annotated[
        int | None,
        typer.Option(
            help="A network of 2D images takes volumes slice by slice: 1; 3, 5, …: a slice and its neighbours are its "
            "channels (2.5D). --input-shape stays the network's; needs --orientation, the slices' axis first (SPL)."
        ),
    ] = None,
    margin: Annotated[
        int, typer.Option(min=0, help="Mirror images by so many pixels at each border: for unpadded convolutions.")
    ] = 0,
    precision: Annotated[
        Precision, typer.Option(help="fp16: weights and activations half, statistics and outputs single.")
    ] = Precision.FP32,
    deterministic: Annotated[bool, typer.Option(help="A network without randomness is wanted: one pass.")] = False,
    states_moments: Annotated[
        bool, typer.Option(help="The network answers with its own moments: see equipoise_lab.methods.stated.")
    ] = False,
    first_pass: Annotated[
        bool, typer.Option(help="Publish the network without dropout, too: its one pass may decide before any sample.")
    ] = True,
    inspect: Annotated[bool, typer.Option("--inspect", help="List sites and predicted cost; write nothing.")] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Say how long each phase took: tracing, each pass, the proof.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite another model of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turns a network trained with dropout into a sampler, proves that it is the same function, and publishes it."""
    console = Console(stderr=as_json)
    try:
        source: dict[str, Any] = {
            "name": name,
            "task": task,
            "shape": None if input_shape is None else whole_numbers(input_shape, "--input-shape"),
            "classes": None if classes is None else words(classes),
            "targets": None if targets is None else words(targets),
            "weights": weights or (),
            "arguments": arguments(arg or []),
            "activation": activation,
            "preprocess": preprocess,
            "normalisation": normalisation,
            "low": low,
            "high": high,
            "multiple": multiple,
            "fill": fill,
            "maximum": None if maximum is None else whole_numbers(maximum, "--maximum"),
            "spacing": None if spacing is None else [bounds(entry) for entry in spacing.split(",")],
            "orientation": orientation,
            "modalities": modality or (),
            "body_parts": body_part or (),
            "views": view or (),
            "lateralities": laterality or (),
            "ages": None if ages is None else bounds(ages, "--ages"),
            "optional": optional or (),
            "samples": samples,
            "precision": precision,
            "states_moments": states_moments,
            "slices": slices,
            "options": Options(
                output,
                sites,
                p,
                min_depth,
                dropout_at,
                log_variance,
                margin,
                deterministic,
                first_pass,
                answers,
                sizes,
                read_constants(bind or []),
            ),
        }
        if into is None and not inspect:
            raise SpecError(
                "--into is missing: state the model repository to publish into, or --inspect to write nothing"
            )
        with shown(Console(file=sys.stderr)):  # this stream itself: torch's talk is kept from `sys.stderr`
            from . import api

            if inspect or into is None:
                result: api.Exported | api.Inspection = api.inspect(spec, **source)
            else:
                result = api.export(spec, into=into, replace=replace, **source)
    except (ExportError, ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]not exported[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        document = _published(result) if isinstance(result, api.Exported) else _inspected(result)
        print(json.dumps({**document, "timings": result.timings.document()} if timings else document))
        return
    if timings:
        console.print(result.timings)
    if isinstance(result, api.Exported):
        for name, proof in result.samplers.items():
            console.print(proof)
            console.print(f"{name}: {result.placements[name]}", highlight=False, markup=False)
    console.print(result.cost)
    if isinstance(result, api.Exported) and result.gain:
        console.print(str(result.gain))
    for note in result.notes:
        console.print(f"[yellow]note[/yellow]: {escape(note)}")
    if isinstance(result, api.Exported):
        console.print(f"published {result.folder} and {', '.join(result.samplers)}", markup=False)
        console.print(
            f"next: equipoise calibrate {result.contract.name} --data LABELLED --repository {result.folder.parent}; "
            "until then every case goes to review",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _published(result: api.Exported) -> dict[str, Any]:
    """The proofs are those on disk: the same model published again keeps its first one."""

    places = {name: result.folder.parent / name / "1" / PROOF for name in result.samplers}
    return {
        "name": result.contract.name,
        "folder": str(result.folder),
        "digest": result.contract.digest,
        "bits": result.cost.bits,
        "notes": list(result.notes),
        "cost": {**result.cost.document(), "measured_gain": result.gain.document() if result.gain else None},
        "samplers": [
            {"name": name, "proof": json.loads(place.read_text(encoding="utf-8"))} for name, place in places.items()
        ],
    }


def _inspected(result: api.Inspection) -> dict[str, Any]:
    cost = result.cost
    sites = [
        {"name": s.name, "kind": s.kind.value, "shape": list(s.shape), "p": s.p, "depth": round(depth, 4)}
        for s, depth in zip(cost.sites, cost.depths, strict=True)
    ]
    return {
        "name": result.contract.name,
        "sites": sites,
        "bits": cost.bits,
        "notes": list(result.notes),
        "cost": cost.document(),
    }


if __name__ == "__main__":
    app()
