"""`equipoise export`: what a user types, as values; the work is `compile_sampler`'s and `publish`'s."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_contract
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import onnx
import torch
import typer
from equipoise_core.canonical import digest_of_file
from equipoise_core.contract import Activation, Contract, Precision, Task
from equipoise_core.preprocessing import NORMALISED_LIMIT, Normalisation, Preprocessing
from rich.console import Console

from .compile import compile_onnx, compile_onnx_unproven, compile_sampler, compile_unproven
from .compiled import Compiled
from .errors import ExportError, SpecError
from .graph.session import session
from .inputs.checkpoints import load_weights
from .inputs.factory import load_module
from .inputs.monai_bundle import Stated, is_bundle, read_bundle
from .inputs.onnx_file import load_graph
from .passes.compilation import Compilation
from .progress import shown

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_AXES = {1: ("X",), 2: ("H", "W"), 3: ("X", "Y", "Z")}

_EXAMPLES = """
Examples:

    equipoise export nets.py:unet --weights unet.pt --name nuclei --task segmentation \\
        --input-shape 1,256,256 --classes background,nucleus --multiple 8 --into model_repository

    equipoise export monai.networks.nets:DenseNet121 --arg spatial_dims=2 --arg in_channels=1 --arg out_channels=2 \\
        --arg dropout_prob=0.2 --weights d.safetensors --name chest --task classification \\
        --input-shape 1,224,224 --classes normal,pneumonia --fixed --into model_repository

    equipoise export nets.py:unet --weights a.pt --weights b.pt --weights c.pt --name nuclei --task segmentation \\
        --input-shape 1,256,256 --classes background,nucleus --multiple 8 --into model_repository

    equipoise export bundles/spleen_ct_segmentation --arg network_def.dropout=0.2 --weights retrained.pt \\
        --normalisation window --low -57 --high 164 --into model_repository

    equipoise export vendor.onnx --dropout-at 'layer4*' --p 0.1 --name chest --task classification \\
        --input-shape 3,224,224 --classes normal,pneumonia --into model_repository

    equipoise export nets.py:unet --name nuclei --task segmentation --input-shape 1,256,256 \\
        --classes background,nucleus --inspect
"""


_Value = TypeVar("_Value")


class Sizes(str, Enum):
    """Whether one published model serves several image sizes."""

    AUTO = "auto"
    DYNAMIC = "dynamic"
    FIXED = "fixed"


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
    into: Annotated[Path | None, typer.Option(help="The model repository to publish into.")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="State dict or safetensors; given several times: a deep ensemble.")
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the callable, or for a bundle's configuration; the value is read as JSON."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Which output, by index, key or dotted path.")] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="How logits become probabilities; softmax unless stated.")
    ] = None,
    normalisation: Annotated[Normalisation | None, typer.Option(help="As in training; zscore unless stated.")] = None,
    low: Annotated[float, typer.Option(help="Lower percentile or intensity of the normalisation.")] = 0.0,
    high: Annotated[float, typer.Option(help="Upper percentile or intensity of the normalisation.")] = 0.0,
    multiple: Annotated[int, typer.Option(help="Spatial sizes are padded to a multiple of this.")] = 1,
    fill: Annotated[float, typer.Option(help="Normalised intensity that the network sees in padding.")] = 0.0,
    sizes: Annotated[
        Sizes, typer.Option("--sizes", help="Serve any size (dynamic), one (fixed), or what works.")
    ] = Sizes.AUTO,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Short for --sizes dynamic.")] = False,
    fixed: Annotated[bool, typer.Option("--fixed", help="Short for --sizes fixed.")] = False,
    maximum: Annotated[str | None, typer.Option(help="H,W: the largest sizes served.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="lowest:highest mm per axis, comma-separated (0.8:1.2,0.8:1.2).")
    ] = None,
    orientation: Annotated[str | None, typer.Option(help="Anatomical axes as nibabel spells them (RAS).")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="DICOM modality code it was trained for.")] = None,
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
    precision: Annotated[
        Precision, typer.Option(help="fp16: weights and activations half, statistics and outputs single.")
    ] = Precision.FP32,
    deterministic: Annotated[bool, typer.Option(help="A network without randomness is wanted: one pass.")] = False,
    states_moments: Annotated[
        bool, typer.Option(help="The network answers with its own moments: see equipoise_lab.methods.stated.")
    ] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="List sites and predicted cost; write nothing.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite another model of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turns a network trained with dropout into a sampler, proves that it is the same function, and publishes it."""
    console = Console(stderr=as_json)
    try:
        bundle = read_bundle(Path(spec)) if is_bundle(spec) else None
        said = Stated() if bundle is None else bundle.stated()
        if normalisation is None:
            normalisation, low, high = said.scale(low, high)
        draft = contract_draft(
            name=_given(name or said.name, "--name"), task=_given(task or said.task, "--task"),
            input_shape=_given(input_shape or said.input_shape, "--input-shape"),
            classes=_given(classes or said.classes, "--classes"),
            activation=activation or said.activation or Activation.SOFTMAX,
            preprocessing=Preprocessing(normalisation, low, high, multiple, fill),
            dynamic=_sizes(sizes, dynamic, fixed) is not Sizes.FIXED, maximum=maximum, spacing=spacing or said.spacing,
            orientation=orientation or said.orientation, modalities=tuple(modality or said.modalities), samples=samples,
            precision=precision, states_moments=states_moments,
        )  # fmt: skip
        if into is None and not inspect:
            raise SpecError(
                "--into is missing: state the model repository to publish into, or --inspect to write nothing"
            )
        choice = {"output": output, "deterministic": deterministic, "sites": sites, "p": p}
        if spec.endswith(".onnx"):
            if weights or arg or min_depth is not None or log_variance is not None:
                raise SpecError(
                    "an ONNX file holds its weights: --weights, --arg, --min-depth, --log-variance are for torch"
                )
            graph = load_graph(Path(spec))
            fixed_size = replace_contract(draft, spatial=draft.nominal, maximum=draft.nominal)
            source: Source = OnnxSource(graph, fixed_size, {**choice, "dropout_at": dropout_at})
        else:
            if dropout_at is not None:
                raise SpecError("--dropout-at is for ONNX files: put nn.Dropout into the torch module")
            auto = _sizes(sizes, dynamic, fixed) is Sizes.AUTO
            if bundle is not None and not weights:
                weights = [bundle.stored_weights()]
            made = partial(load_module, spec) if bundle is None else bundle.module
            source = TorchSource(
                partial(made, arguments(arg or [])),
                distinct(tuple(weights or ())),
                draft,
                {**choice, "min_depth": min_depth, "log_variance": log_variance, "fall_back": auto},
            )
        if inspect:
            _inspect(source, console, as_json)
        else:
            assert into is not None
            _publish(source, into, replace, console, as_json)
    except (ExportError, ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]not exported[/red]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _given(value: _Value | None, option: str) -> _Value:
    if value is None:
        raise SpecError(f"{option} is missing: it is not stated anywhere else")
    return value


def _sizes(sizes: Sizes, dynamic: bool, fixed: bool) -> Sizes:
    if dynamic and fixed:
        raise SpecError("--dynamic and --fixed exclude each other: give one")
    return Sizes.DYNAMIC if dynamic else Sizes.FIXED if fixed else sizes


def contract_draft(
    *,
    name: str,
    task: Task,
    input_shape: str,
    classes: str,
    activation: Activation,
    preprocessing: Preprocessing,
    dynamic: bool,
    maximum: str | None = None,
    spacing: str | None = None,
    orientation: str | None = None,
    modalities: tuple[str, ...] = (),
    samples: int = 20,
    precision: Precision = Precision.FP32,
    states_moments: bool = False,
) -> Contract:
    """A contract without sites, from what the command line says."""
    channels, *nominal = _numbers(input_shape, "--input-shape")
    if len(nominal) not in _AXES:
        raise SpecError(f"--input-shape {input_shape} has {len(nominal)} spatial sizes; expected C,H,W or C,X,Y,Z")
    off = [size for size in nominal if size % preprocessing.multiple]
    if off:
        raise SpecError(
            f"--input-shape {input_shape}: {off[0]} is no multiple of {preprocessing.multiple} (--multiple)"
        )
    largest = _numbers(maximum, "--maximum") if maximum else [2 * size if dynamic else size for size in nominal]
    ranges = None
    if spacing is not None:
        ranges = tuple(_range(entry) for entry in spacing.split(","))
        if len(ranges) != len(nominal):
            raise SpecError(f"--spacing {spacing} describes {len(ranges)} axes; the image has {len(nominal)}")
    return Contract(
        name=name,
        task=task,
        activation=activation,
        classes=tuple(part.strip() for part in classes.split(",") if part.strip()),
        channels=channels,
        spatial=_AXES[len(nominal)] if dynamic else tuple(nominal),
        nominal=tuple(nominal),
        maximum=tuple(largest),
        preprocessing=preprocessing,
        sites=(),
        spacing=ranges,
        orientation=orientation,
        modalities=modalities,
        samples=samples,
        precision=precision,
        states_moments=states_moments,
    )


def arguments(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs; values that are not JSON are text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise SpecError(f"--arg {pair}: expected key=value")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SpecError(f"{option} {text}: expected positive whole numbers separated by commas, such as 1,256,256")
    return numbers


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise SpecError(f"--spacing {text}: expected mm or lowest:highest, such as 0.8:1.2") from error


def example_image(draft: Contract) -> torch.Tensor:
    """Two noise images of nominal size, within what normalisation gives."""
    generator = torch.Generator().manual_seed(0)
    unit = draft.preprocessing.normalisation is not Normalisation.ZSCORE
    shape = (2, draft.channels, *draft.nominal)
    image = torch.rand(shape, generator=generator) if unit else torch.randn(shape, generator=generator)
    return image.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)


def distinct(weights: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files, none of them twice by content: a member that only repeats another feigns agreement."""
    seen: dict[str, Path] = {}
    for path in weights:
        if not path.is_file():
            raise SpecError(f"there is no file {path}")
        twin = seen.setdefault(digest_of_file(path), path)
        if twin is not path:
            raise SpecError(f"--weights {path} is the same as {twin}: members of an ensemble must differ")
    return weights


class Source(Protocol):
    """What is exported, with its options: a torch module, one per file of weights, or an ONNX graph."""

    @property
    def draft(self) -> Contract: ...

    def compiled(self) -> Iterator[Compiled]: ...

    def unproven(self) -> Compilation: ...

    def one_pass(self) -> Callable[[], object]:
        """One plain pass over one image, as in somebody's loop."""
        ...


@dataclass(frozen=True)
class TorchSource:
    """`make` returns the module anew for every file of `weights`: without any, it is exported as made."""

    make: Callable[[], torch.nn.Module]
    weights: tuple[Path, ...]
    draft: Contract
    choice: dict[str, Any]

    def compiled(self) -> Iterator[Compiled]:
        for path in self.weights or (None,):
            yield compile_sampler(self._module(path), self.draft, example_image(self.draft), **self._options)

    def unproven(self) -> Compilation:
        path = self.weights[0] if self.weights else None
        compilation, _ = compile_unproven(self._module(path), self.draft, example_image(self.draft), **self._options)
        if len(self.weights) > 1:
            compilation.notes.append(f"the first of {len(self.weights)} members; the samples are shared out among them")
        return compilation

    def one_pass(self) -> Callable[[], object]:
        module, image = self._module(self.weights[0] if self.weights else None).eval(), example_image(self.draft)[:1]
        return torch.no_grad()(partial(module, image))

    def _module(self, weights: Path | None) -> torch.nn.Module:
        module = self.make()
        if weights is not None:
            load_weights(module, weights)
        return module

    @property
    def _options(self) -> dict[str, Any]:
        """A network without randomness samples all the same where there are several of it."""
        either = None if len(self.weights) > 1 else False
        return {**self.choice, "deterministic": self.choice["deterministic"] or either}


@dataclass(frozen=True)
class OnnxSource:
    graph: onnx.ModelProto
    draft: Contract
    choice: dict[str, Any]

    def compiled(self) -> Iterator[Compiled]:
        yield compile_onnx(self.graph, self.draft, example_image(self.draft).numpy(), **self.choice)

    def unproven(self) -> Compilation:
        return compile_onnx_unproven(self.graph, self.draft, **self.choice)[0]

    def one_pass(self) -> Callable[[], object]:
        plain = session(self.graph)
        feeds = {plain.get_inputs()[0].name: example_image(self.draft)[:1].numpy()}
        return partial(plain.run, None, feeds)


def _publish(source: Source, into: Path, replace: bool, console: Console, as_json: bool) -> None:
    from .measure import measure_gain
    from .proof.ensemble import check_members
    from .publish.repository import PROOF, publish
    from .publish.triton_config import sampler_names

    with shown(Console(stderr=True)):
        members = list(source.compiled())
        check_members(members, example_image(source.draft).numpy())
        gain = measure_gain(members[0], source.one_pass(), example_image(source.draft)[:1].numpy())
        folder = publish(members[0], into, replace=replace, further=members[1:])
    contract, cost = members[0].contract, members[0].cost
    samplers = sampler_names(contract, len(members))
    notes = list(dict.fromkeys(note for member in members for note in member.notes))
    if as_json:
        document = {
            "name": contract.name,
            "folder": str(folder),
            "digest": contract.digest,
            "bits": cost.bits,
            "notes": notes,
            "cost": {**cost.document(), "measured_gain": gain.document() if gain else None},
            "samplers": [
                {"name": name, "proof": json.loads((folder.parent / name / "1" / PROOF).read_text(encoding="utf-8"))}
                for name in samplers
            ],
        }
        print(json.dumps(document))
        return
    for member in members:
        console.print(member.proof)
    console.print(cost)
    if gain:
        console.print(str(gain))
    for note in notes:
        console.print(f"[yellow]note[/yellow]: {note}")
    console.print(f"published {folder} and {', '.join(samplers)}")


def _inspect(source: Source, console: Console, as_json: bool) -> None:
    with shown(Console(stderr=True)):
        compilation = source.unproven()
    cost = compilation.cost
    assert cost is not None
    if as_json:
        sites = [
            {"name": s.name, "kind": s.kind.value, "shape": list(s.shape), "p": s.p, "depth": round(depth, 4)}
            for s, depth in zip(cost.sites, cost.depths, strict=True)
        ]
        print(json.dumps({"sites": sites, "bits": cost.bits, "cost": cost.document()}))
        return
    console.print(cost)
    for note in compilation.notes:
        console.print(f"[yellow]note[/yellow]: {note}")


if __name__ == "__main__":
    app()
