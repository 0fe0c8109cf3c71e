"""The verb `equipoise predict`: files in, decisions out."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.decision import Route
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..client import UncertaintyClient
from ..errors import EquipoiseError, InvalidInput, UnknownModel
from ..extras import needs
from ..images import Prepared, fit, read_image
from ..images.maps import write_maps
from ..images.prepare import with_spacing
from ..images.read import is_picture
from ..prediction import Estimate, Prediction, Priority, in_words, number
from .options import Encrypt, FileTimeout, Spacing, TlsCert, TlsKey, TlsRoot, Url, encryption, parse_spacing, shown

ROUTE_COLOUR = {Route.ACCEPT: "green", Route.REVIEW: "yellow", Route.REJECT: "red"}

EPILOG = """[bold]Examples[/]

equipoise predict hippocampus brain.nii.gz

equipoise predict pneumonia *.dcm --json > decisions.json

equipoise predict hippocampus brain.nii.gz --out results   [dim]# picture, labels and uncertainty as NIfTI[/]

equipoise predict nuclei cells/ --out results   [dim]# each picture of a folder: masks as PNG, uncertainty as TIFF[/]

equipoise predict hippocampus study/ --out results   [dim]# DICOM: Segmentation, Parametric Maps and report[/]

equipoise predict hippocampus study/ --rules rules.toml --out results   [dim]# where the folder holds several series[/]

equipoise predict nuclei cells.png --url triton.hospital:443 --tls-root ca.pem --tls-cert me.pem --tls-key me.key

Exit code: 0 every file has a decision, 1 at least one has none (it goes to review), 2 wrong usage."""


class PriorityName(str, Enum):
    """`Priority` as it is spelt on the command line."""

    URGENT = "urgent"
    ROUTINE = "routine"


@dataclass(frozen=True)
class PredictedFile:
    """The outcome for one file; without a prediction it goes to review, with the error as the reason."""

    file: Path
    model: str
    contract: Contract | None = None
    prediction: Prediction | None = None
    error: str | None = None
    written: tuple[Path, ...] = ()

    @property
    def route(self) -> Route:
        return Route.REVIEW if self.prediction is None else self.prediction.route

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        decided = self.prediction.document() if self.prediction else _UNDECIDED
        return {
            "file": str(self.file),
            **decided,
            "model": self.model,
            **({"probability": self.probabilities()} if self.probabilities() else {}),
            **({"share": self.shares()} if self.shares() else {}),
            **({"written": [str(path) for path in self.written]} if self.written else {}),
            **({"error": self.error} if self.error else {}),
        }

    def probabilities(self) -> dict[str, dict[str, float | None]]:
        """Classification, else empty: class → its probability, recalibrated where the policy says how (`calibrated`),
        and `mean` and standard deviation (`sd`) over samples before that."""
        if self.prediction is None or self.contract is None or self.contract.task is not Task.CLASSIFICATION:
            return {}
        found = self.prediction
        return {
            name: {
                "calibrated": number(found.calibrated[k]),
                "mean": number(found.mean[k]),
                "sd": number(root(float(found.variance[k]))),
            }
            for k, name in enumerate(self.contract.classes)
        }

    def shares(self) -> dict[str, float]:
        """Segmentation without a scale in mm, else empty: foreground class → its share of the image, 0..1."""
        if self.prediction is None or self.contract is None or "labels" not in self.prediction.arrays:
            return {}
        volume, labels = self.prediction.volume, self.prediction.labels
        scaled = volume is not None and any(number(each.mean) is not None for each in volume.classes.values())
        if scaled and self.contract.spacing is not None:
            return {}
        exclusive = self.contract.activation is Activation.SOFTMAX
        return {
            self.contract.classes[k]: float(np.mean(labels[0] == k if exclusive else labels[k] > 0))
            for k in self.contract.foreground
        }


def root(variance: float) -> float:
    """Of a variance, which rounding may have taken below 0; NaN stays NaN."""
    return math.sqrt(0.0 if variance < 0.0 else variance)


_UNDECIDED: dict[str, Any] = {
    "route": Route.REVIEW.value,
    "reason": "there is no decision",
    **dict.fromkeys(("case_score", "samples_used", "volume", "volume_total", "record")),
}


def predict(
    name: Annotated[str, typer.Argument(help="The public model.", show_default=False)],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="PNG, JPEG, TIFF, NumPy, NIfTI or DICOM files, folders of them, or with a DICOM series each.",
            show_default=False,
        ),
    ],
    url: Url = "localhost:8001",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per image; for study, the route is then at most review.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Seed; for study, the route is then at most review.")
    ] = None,
    spacing: Spacing = None,
    group: Annotated[
        str | None, typer.Option(help="Scanner, site … of the images, for a policy that is certified by it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list with an object per file.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder for pictures and for results: masks and maps as NIfTI, PNG and TIFF, or DICOM objects.",
        ),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(dir_okay=False, help="TOML file that says which series of a DICOM folder to take.")
    ] = None,
    timeout: FileTimeout = 60.0,
    priority: Annotated[PriorityName | None, typer.Option(help="Place in the server's queue.")] = None,
    tls: Encrypt = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Ask a server about image files: results, uncertainty and a route for each.

    A file that cannot be read or answered goes to review and does not stop the others.
    """
    fallback = parse_spacing(spacing)
    try:
        chosen = None if rules is None else _series().rules_for(rules, name)
        client = UncertaintyClient(url, timeout=timeout, tls=encryption(tls, tls_root, tls_cert, tls_key))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except (InvalidInput, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    options = {
        "samples": samples,
        "seed": seed,
        "priority": None if priority is None else Priority[priority.name],
        "timeout": timeout,
        "group": group,
    }
    files = [each for given in files for each in _files_of(given)]
    progress = shown(files, len(files), "predicting", quiet=as_json or len(files) < 2)
    with client:
        outcomes = list(_cases(client, name, progress, fallback, out, chosen, options))
    if as_json:
        typer.echo(json.dumps([outcome.document() for outcome in outcomes], indent=1, allow_nan=False))
    else:
        wide_console().print(_table(name, outcomes))
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


def wide_console() -> Console:
    """As wide as the terminal; a pipe or a file gets room for whole reasons."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _cases(
    client: UncertaintyClient,
    name: str,
    files: Iterable[Path],
    spacing: tuple[float, ...] | None,
    out: Path | None,
    rules: Any,
    options: dict[str, Any],
) -> Iterator[PredictedFile]:
    try:
        contract = client.contract(name)
    except EquipoiseError as error:
        served = _served(client) if isinstance(error, UnknownModel) else ""
        yield from (PredictedFile(file, name, error=f"{error}{served}") for file in files)
        return
    taken: set[Path] = set()
    for file in files:
        outcome = PredictedFile(file, name, contract)
        try:
            if file.is_dir():
                yield _study(outcome, client, rules, None if out is None else free_place(out, file, taken), options)
                continue
            prepared = fit(with_spacing(read_image(file), spacing), contract)
            wanted = wanted_of(contract, prepared, out is not None)
            millimetres = prepared.spacing if contract.physical else None
            with _elapsed_shown(contract, prepared):
                answer = client.predict(name, prepared.pixels, spacing=millimetres, outputs=wanted, **options)
            outcome = replace(outcome, prediction=prepared.judge(answer))
            if out is not None:
                outcome = _with_results(outcome, prepared, free_place(out, file, taken))
        except EquipoiseError as error:
            outcome = _failed(outcome, str(error))
        except Exception as error:  # noqa: BLE001 (one file must not take the others with it; nothing is accepted)
            # Only the kind of error is shown: a library's message may quote what stands in the file.
            outcome = _failed(
                outcome, f"{file.name}: {type(error).__name__}: this is a fault of Equipoise, please report it"
            )
        yield outcome


def wanted_of(contract: Contract, prepared: Prepared, shown: bool) -> tuple[str, ...]:
    """The arrays that a result in words needs, or (`shown`) pictures and files as well."""
    if contract.targets:
        return ()
    if contract.task is Task.CLASSIFICATION:
        return ("calibrated", "mean", "variance")
    if shown:
        return ("labels", "epistemic")
    return () if contract.spacing is not None and prepared.spacing is not None else ("labels",)


def _files_of(given: Path) -> list[Path]:
    """The pictures of a folder that holds no DICOM at any depth; a folder that does is one series, and stays whole."""
    try:
        inside = sorted(each for each in given.rglob("*") if each.is_file()) if given.is_dir() else []
        dicom = any(map(_is_dicom, inside))
    except OSError:
        return [given]  # what cannot be read is said with that file's outcome
    pictures = [each for each in inside if each.parent == given and not each.name.startswith(".") and is_picture(each)]
    return pictures if pictures and not dicom else [given]


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _served(client: UncertaintyClient) -> str:
    """What the server serves, as an end of a message; empty where it does not say."""
    try:
        names = client.models()
    except EquipoiseError:
        return ""
    return f"; it serves {', '.join(names)}" if names else "; it serves no model of Equipoise"


@contextmanager
def _elapsed_shown(contract: Contract, prepared: Prepared) -> Iterator[None]:
    """The elapsed time on stderr while a large image is answered, on a terminal: no answer says how far it is."""
    if not (sys.stderr.isatty() and contract.in_windows(prepared.pixels.shape[1:])):
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task("waiting for the answer for a large image", total=None)
        yield


def _series() -> Any:
    """The reader of folders with a DICOM series: see `equipoise_clinic.dicom.predicting`. Raises InvalidInput."""
    for entry in entry_points(group="equipoise.series", name="dicom"):
        with needs("clinic", "reading DICOM series"):
            return entry.load()
    raise InvalidInput("a folder was given, and nothing is installed that reads DICOM series: reinstall equipoise")


def _study(
    outcome: PredictedFile, client: UncertaintyClient, rules: Any, place: Path | None, options: Any
) -> PredictedFile:
    """A folder with a DICOM series: its decision, and the objects that a PACS stores."""
    series = _series()
    found = series.analysed(outcome.file, outcome.model, client, rules, **options)
    outcome = replace(outcome, prediction=found.prediction)
    if place is None:
        return outcome
    try:
        written = series.write(found, outcome.file, place, outcome.model)
    except OSError as error:
        return _failed(outcome, f"{place.name}: its results cannot be written: {error}")
    return replace(outcome, written=written)


def _failed(outcome: PredictedFile, message: str) -> PredictedFile:
    held = None if outcome.prediction is None else outcome.prediction.at_most_review("its results could not be written")
    return replace(outcome, prediction=held, error=message)


def free_place(out: Path, file: Path, taken: set[Path]) -> Path:
    """`out/brain` for brain.nii.gz; `out/brain-2` for a second file of that name in the same run."""
    stem = Path(os.path.abspath(file)).name.removesuffix(".gz") or "study"  # noqa: PTH100 (`.` and `..`, not links)
    stem = stem.rsplit(".", 1)[0] if "." in stem.strip(".") else stem
    place, count = out / stem, 1
    while place in taken:
        count += 1
        place = out / f"{stem}-{count}"
    taken.add(place)
    return place


def _with_results(outcome: PredictedFile, prepared: Prepared, place: Path) -> PredictedFile:
    """Writes the picture, and for a segmentation its maps in the file's own grid."""
    assert outcome.prediction is not None and outcome.contract is not None
    from ..figure import write_figure

    maps: list[Path] = []
    try:
        picture = place.with_name(f"{place.name}.{outcome.model}.png")
        write_figure(picture, outcome.file.name, outcome.contract, prepared, outcome.prediction)
        if outcome.contract.per_voxel:
            stem = place.with_name(f"{place.name}.{outcome.model}")
            maps = write_maps(stem, outcome.contract, prepared, outcome.prediction)
    except OSError as error:
        return _failed(outcome, f"{place.name}: its results cannot be written: {error}")
    return replace(outcome, written=(picture, *maps))


def _table(model: str, outcomes: list[PredictedFile]) -> Table:
    table = Table(title=f"{model}: {len(outcomes)} file{'s' if len(outcomes) != 1 else ''}", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("route", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for outcome in outcomes:
        prediction = outcome.prediction
        table.add_row(
            escape(str(outcome.file)),
            f"[bold {ROUTE_COLOUR[outcome.route]}]{outcome.route.value}[/]",
            "–" if prediction is None or number(prediction.case_score) is None else f"{prediction.case_score:.4f}",
            "\n".join(_results(outcome)),
            "–" if prediction is None else str(prediction.samples_used or "first pass"),
            escape("; ".join(part for part in (prediction.reason if prediction else "", outcome.error or "") if part)),
        )
    return table


def _results(outcome: PredictedFile) -> Iterator[str]:
    """Volumes or numbers with their interval, shares where there is no scale, or the probability of each class."""
    for name, value in ((outcome.prediction.values if outcome.prediction else None) or {}).items():
        yield f"{escape(name)} {escape(str(value))}"
    for name, probability in outcome.probabilities().items():
        yield f"{escape(name)} {in_words(probability)}"
    for name, share in outcome.shares().items():
        yield f"{escape(name)} {share:.1%} of the image"
    volume = outcome.prediction.volume if outcome.prediction else None
    if volume is not None and outcome.contract is not None and outcome.contract.spacing is not None:
        parts = volume.classes.items() if len(volume.classes) > 1 else ()
        for name, estimate in (*parts, *([] if outcome.contract.overlapping else [("total", volume.total)])):
            yield f"{escape(name)} {_millilitres(estimate)}"


def _millilitres(estimate: Estimate) -> str:
    if number(estimate.mean) is None:
        return "– mL"
    return f"{estimate.mean:.3g} mL ({estimate.low:.3g} to {estimate.high:.3g})"
