"""The verb `equipoise rank`: which unlabelled images an expert should label first."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client.cli.options import (
    Encrypt,
    FileTimeout,
    Json,
    Spacing,
    TlsCert,
    TlsKey,
    TlsRoot,
    Url,
    encryption,
    parse_spacing,
)
from equipoise_client.cli.predict import ROUTE_COLOUR, free_place, wide_console
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import EquipoiseError, InvalidInput
from equipoise_client.prediction import number
from equipoise_core.contract import Contract
from equipoise_core.decision import Route
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from . import pseudo
from .order import CANDIDATES, Ranked, Unlabelled, rank_images
from .survey import FailedImage, SurveyedImage, SurveyRequest, image_files, known_score, survey

EPILOG = """[bold]Examples[/]

equipoise rank nuclei unlabelled/ --count 20 --out ranking.csv

equipoise rank hippocampus scans/*.nii.gz --labelled training/   [dim]# unlike what is labelled already[/]

equipoise rank nuclei unlabelled/ --pseudo-labels guessed/   [dim]# labels of accepted images, for self-training[/]

equipoise rank nuclei --data cases/   [dim]# a folder with images/ (and labels/), class folders, or an .npz[/]

equipoise rank pneumonia xrays/ --score predictive_entropy --json > ranking.json

Exit code: 0 every image was ranked, 1 at least one was not (it goes to review), 2 wrong usage."""

COLUMNS = ("rank", "file", "score", "route", "reason", "distance", "proposed")


@dataclass(frozen=True)
class Row:
    """One image in the ranking; without a rank it is rejected or has no answer, and is not proposed.

    Attributes:
        distance: to the nearest image that is labelled or comes before; None where there is none.
    """

    rank: int | None
    file: str
    score: float | None
    route: Route
    reason: str
    distance: float | None = None
    proposed: bool = False
    failed: bool = False

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = {name: getattr(self, name) for name in COLUMNS}
        return {**plain, "route": self.route.value, **({"error": self.reason} if self.failed else {})}

    def cells(self) -> list[Any]:
        """In the order of `COLUMNS`, ready for CSV."""
        values = {**self.document(), "proposed": "yes" if self.proposed else "no"}
        return ["" if values[name] is None else values[name] for name in COLUMNS]


@dataclass(frozen=True)
class Seen:
    """An answer without its pixels.

    Attributes:
        stated: what the record says of model and policy.
        label: the pseudo-label that was made of it, if any.
    """

    file: Path
    score: float
    features: Mapping[str, float]
    route: Route
    reason: str
    stated: Mapping[str, Any]
    label: pseudo.PseudoLabel | None


@dataclass(frozen=True)
class Guessed:
    """The outcome of `--pseudo-labels`.

    Attributes:
        manifest: None where none was written.
        written, unsure: accepted images with a label, and accepted ones of which nothing is confident enough.
        why: in words, where there are none.
    """

    manifest: Path | None
    written: int
    unsure: int
    why: str

    def document(self) -> dict[str, Any]:
        return {**vars(self), "manifest": None if self.manifest is None else str(self.manifest)}


def rank(
    name: Annotated[str, typer.Argument(help="The public model.", show_default=False)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Unlabelled images, and folders of them (searched by the files' endings).", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Cases as `equipoise calibrate` takes them: their images; labels are not looked at."),
    ] = None,
    url: Url = "localhost:8001",
    count: Annotated[int, typer.Option(min=1, help="How many images to propose.")] = 20,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Choose from this many of the most uncertain ({CANDIDATES} × --count); --count: no diversity.",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="Case score to rank by; by default the epistemic one of the model, where it has one."),
    ] = None,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(help="Image or folder of images that are labelled already: similar ones rank lower."),
    ] = None,
    include_rejected: Annotated[
        bool, typer.Option("--include-rejected", help="Rank images that the model rejects as unsuitable, too.")
    ] = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the whole ranking as CSV.")] = None,
    pseudo_labels: Annotated[
        Path | None, typer.Option(file_okay=False, help="New folder for the model's own labels of what it accepts.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Less probable pseudo-labels are marked as ignored (255).")
    ] = 0.9,
    spacing: Spacing = None,
    as_json: Json = False,
    timeout: FileTimeout = 60.0,
    tls: Encrypt = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Say which images an expert should label first (active learning).

    The most uncertain image comes first. Each next one is, of the most uncertain ones, the least similar to those that
    are labelled or chosen already; copies are proposed once. Rejected images are listed and not proposed.
    """
    fallback = parse_spacing(spacing)
    try:
        unlabelled, known = image_files([*(files or ()), *(data or ())]), image_files(labelled or [])
        if not unlabelled:
            raise InvalidInput("no images are named: give files or folders, or --data")
        if candidates is not None and candidates < count:
            raise InvalidInput(f"--candidates {candidates} is fewer than --count {count}")
        client = UncertaintyClient(url, timeout=timeout, tls=encryption(tls, tls_root, tls_cert, tls_key))
        if pseudo_labels is not None:
            pseudo.new_folder(pseudo_labels)
    except (InvalidInput, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    with client:
        contract = client.contract(name)
        try:
            chosen = known_score(contract, score)
            if contract.targets and pseudo_labels is not None:
                raise InvalidInput(f"{name} answers numbers; pseudo-labels are classes: leave --pseudo-labels out")
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from error
        request = SurveyRequest(chosen, fallback, () if pseudo_labels is None else pseudo.OUTPUTS, timeout)
        every = [*known, *unlabelled]
        places = [*(None for _ in known), *_places(pseudo_labels, unlabelled)]
        answers = zip(_shown(survey(client, contract, every, request), len(every), as_json), places, strict=True)
        taken = [_take(contract, answer, confidence, place) for answer, place in answers]
    reference, found = _parted(taken[: len(known)]), _parted(taken[len(known) :])
    rows = _rows(found, reference[0], count, candidates, include_rejected)
    errors = [(str(each.file), each.error) for each in (*reference[1], *found[1])]
    guessed = None
    try:
        if out is not None:
            _write_csv(out, rows)
        if pseudo_labels is not None:
            guessed = _guessed(contract, found[0], confidence, pseudo_labels)
    except OSError as error:
        raise InvalidInput(f"the results cannot be written: {error}") from error
    if as_json:
        document = {
            "model": name,
            "model_digest": contract.model_digest,
            "score": chosen,
            "labelled": len(reference[0]),
            "ranking": [row.document() for row in rows],
            "pseudo_labels": None if guessed is None else guessed.document(),
            "errors": [{"file": file, "error": error} for file, error in errors],
        }
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        _print(name, chosen, rows, guessed, errors)
    if errors:
        raise typer.Exit(1)


def _shown(
    answers: Iterator[SurveyedImage | FailedImage], total: int, quiet: bool
) -> Iterator[SurveyedImage | FailedImage]:
    """The answers, with a progress bar on stderr, on a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as progress:
        yield from progress.track(answers, total=total, description="asking")


def _places(folder: Path | None, files: Sequence[Path]) -> list[Path | None]:
    """Where each file's pseudo-label goes, without its ending; no two in the same place."""
    taken: set[Path] = set()
    return [None if folder is None else free_place(folder, file, taken) for file in files]


def _take(
    contract: Contract, answer: SurveyedImage | FailedImage, confidence: float, place: Path | None
) -> Seen | FailedImage:
    """What is kept of an answer; an accepted one leaves its pseudo-label at `place`."""
    if isinstance(answer, FailedImage):
        return answer
    prediction, label = answer.prediction, None
    if place is not None and prediction.route is Route.ACCEPT and not pseudo.obstacle(contract, prediction.record):
        try:
            label = pseudo.pseudo_label(contract, answer, confidence, place)
        except (OSError, EquipoiseError) as error:
            return FailedImage(answer.file, f"{answer.file.name}: its pseudo-label cannot be written: {error}")
    stated = {name: prediction.record.get(name) for name in pseudo.STATED}
    return Seen(answer.file, answer.score, answer.features, prediction.route, prediction.reason, stated, label)


def _parted(taken: Sequence[Seen | FailedImage]) -> tuple[list[Seen], list[FailedImage]]:
    seen = [each for each in taken if isinstance(each, Seen)]
    return seen, [each for each in taken if isinstance(each, FailedImage)]


def _rows(
    found: tuple[list[Seen], list[FailedImage]],
    labelled: Sequence[Seen],
    count: int,
    candidates: int | None,
    include_rejected: bool,
) -> list[Row]:
    """The ranking; after it what is rejected, by score, and what has no answer."""
    seen, failures = found
    by_name = {str(each.file): each for each in seen}
    suitable = [each for each in seen if include_rejected or each.route is not Route.REJECT]
    images = [Unlabelled(str(each.file), each.score, each.features) for each in suitable]
    ranking = rank_images(images, count, candidates, [each.features for each in labelled])
    apart = sorted(
        (each for each in seen if not include_rejected and each.route is Route.REJECT),
        key=lambda each: (-each.score, str(each.file)),
    )
    return [
        *(_ranked(each, by_name[each.image.name]) for each in ranking),
        *(Row(None, str(each.file), each.score, each.route, each.reason) for each in apart),
        *(Row(None, str(each.file), None, each.route, each.error, failed=True) for each in failures),
    ]


def _ranked(ranked: Ranked, seen: Seen) -> Row:
    name, score = ranked.image.name, ranked.image.score
    return Row(ranked.rank, name, score, seen.route, seen.reason, number(ranked.distance), ranked.proposed)


def _guessed(contract: Contract, seen: Sequence[Seen], confidence: float, folder: Path) -> Guessed:
    """Writes the manifest where there are pseudo-labels, and says why where there are none."""
    labels = [each.label for each in seen if each.label is not None]
    if not labels:
        reasons = (pseudo.obstacle(contract, each.stated) for each in seen)
        why = next((reason for reason in reasons if reason), f"none of {len(seen)} images was accepted")
        return Guessed(None, 0, 0, why)
    stated = next(each.stated for each in seen if each.label is not None)
    unsure = sum(each.label is None for each in labels)
    manifest = pseudo.write_manifest(folder, contract, stated, confidence, labels)
    return Guessed(manifest, len(labels) - unsure, unsure, "")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names need not be text
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(row.cells() for row in rows)


def _print(
    name: str, score: str, rows: Sequence[Row], guessed: Guessed | None, errors: Sequence[tuple[str, str]]
) -> None:
    """The proposed images as a table, and a line each about the others."""
    proposed = [row for row in rows if row.proposed]
    table = Table(title=f"{name}: {len(proposed)} of {len(rows)} images to label first", title_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    table.add_column(score, justify="right", no_wrap=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("route", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in proposed:
        table.add_row(
            str(row.rank),
            escape(row.file),
            f"{row.score:.4f}",
            "–" if row.distance is None else f"{row.distance:.2f}",
            f"[bold {ROUTE_COLOUR[row.route]}]{row.route.value}[/]",
            escape(row.reason),
        )
    console = wide_console()
    console.print(table)
    apart = sum(row.rank is None and not row.failed for row in rows)
    if apart:
        console.print(f"{apart} rejected as unsuitable and not proposed; --include-rejected ranks them, too")
    if guessed is not None and guessed.manifest is not None:
        left_out = f"; {guessed.unsure} more are not confident enough" if guessed.unsure else ""
        where = escape(str(guessed.manifest.parent))
        console.print(f"{guessed.written} pseudo-labels in {where}{left_out}: {pseudo.WARNING}", soft_wrap=True)
    elif guessed is not None:
        console.print(f"no pseudo-labels: {escape(guessed.why)}", soft_wrap=True)
    for _, error in errors:
        console.print(f"[bold red]error:[/] {escape(error)}", highlight=False, soft_wrap=True)
