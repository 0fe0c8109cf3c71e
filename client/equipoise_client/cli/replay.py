"""The verb `equipoise replay`: does the service still decide as this record says?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_core.record import FORMAT, input_digest
from rich.console import Console
from rich.table import Table

from ..client import UncertaintyClient
from ..errors import InvalidInput
from ..images import fit, read_image
from ..images.prepare import with_spacing

TOLERANCE = 1e-5
"""Absolute for numbers below 1, relative above: what one model on one kind of machine keeps (DESIGN, invariant 1)."""

BINDING = ("model_digest", "policy_digest", "code_digest")
"""What must be the same for a replay to mean anything; another code may still decide alike, and it is said."""

_DECIDED = ("seed", "samples", "stopped", "score", "route", "reason", "threshold")
_MEASURED = ("case_score", "scores", "statistics", "strangeness", "volume_ml")

EPILOG = """[bold]Example[/]

equipoise predict hippocampus brain.nii.gz --json > decision.json; equipoise replay decision.json brain.nii.gz

Exit code: 0 the same route and numbers, 1 not."""


@dataclass(frozen=True)
class Difference:
    """Where the replay departs from the record."""

    what: str
    recorded: Any
    replayed: Any


def replay(
    record: Annotated[Path, typer.Argument(help="JSON: a record, or what `equipoise predict --json` printed.")],
    image: Annotated[Path, typer.Argument(help="The image that was decided on.")],
    url: Annotated[str, typer.Option(help="host:port of the server's gRPC service.")] = "localhost:8001",
    entry: Annotated[int, typer.Option(min=0, help="Which entry, where the file holds several.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Asks the server again and compares route and numbers with the record."""
    recorded = read_record(record, entry)
    with UncertaintyClient(url, timeout=timeout) as client:
        contract = client.contract(recorded["model"])
        stated = recorded["spacing"]
        prepared = fit(with_spacing(read_image(image), tuple(stated) if stated else None), contract)
        digest = input_digest(prepared.pixels)
        if digest != recorded["input_digest"]:
            raise InvalidInput(
                f"{image.name} is not the image of this record: its digest is {digest[:12]}, the record says "
                f"{str(recorded['input_digest'])[:12]}"
            )
        again = client.predict(
            recorded["model"],
            prepared.pixels,
            samples=recorded["samples_asked"] if recorded["samples_named"] else None,
            seed=int(recorded["seed"]) if recorded["seed_named"] else None,
            spacing=stated,
            outputs=(),
        ).record
    found = list(differences(recorded, again))
    if as_json:
        typer.echo(json.dumps({"same": not found, "differences": [vars(each) for each in found]}, indent=1))
    elif found:
        table = Table("what", "recorded", "replayed", title="not the same")
        for each in found:
            table.add_row(each.what, str(each.recorded), str(each.replayed))
        Console().print(table)
        if recorded.get("problems"):
            Console().print("the record notes trouble while sampling, which a replay does not repeat")
    else:
        Console().print(f"[green]the same[/]: {recorded['route']}, {recorded['score']} {recorded['case_score']:.6g}")
    if found:
        raise typer.Exit(1)


def read_record(path: Path, entry: int = 0) -> Mapping[str, Any]:
    """The record in a JSON file. Raises InvalidInput that says what was found."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} cannot be read as JSON: {type(error).__name__}") from error
    entries = document if isinstance(document, list) else [document]
    if entry >= len(entries):
        raise InvalidInput(f"{path.name} holds {len(entries)} entries; --entry {entry} is past the end")
    chosen = entries[entry]
    record = chosen.get("record", chosen) if isinstance(chosen, dict) else None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InvalidInput(f"{path.name} holds no record of format {FORMAT}")
    return record


def differences(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Difference]:
    """Digests, decision and numbers that are not the same; numbers within `TOLERANCE`."""
    for name in (*BINDING, *_DECIDED):
        if recorded.get(name) != again.get(name) and not _close(recorded.get(name), again.get(name)):
            yield Difference(name, recorded.get(name), again.get(name))
    for name in _MEASURED:
        yield from _numbers(name, recorded.get(name), again.get(name))


def _numbers(name: str, recorded: Any, again: Any) -> Iterator[Difference]:
    if isinstance(recorded, Mapping) and isinstance(again, Mapping):
        for key in sorted({*recorded, *again}):
            yield from _numbers(f"{name}.{key}", recorded.get(key), again.get(key))
    elif recorded != again and not _close(recorded, again):
        yield Difference(name, recorded, again)


def _close(recorded: Any, again: Any) -> bool:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, again)):
        return False
    return math.isclose(recorded, again, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
