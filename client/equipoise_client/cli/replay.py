"""The verb `equipoise replay`: does the service still make the decision of this record?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_core.reasons import near_limit, rendered
from equipoise_core.record import FORMAT, input_digest
from equipoise_core.tolerance import tolerance_between
from rich.console import Console
from rich.table import Table

from ..client import UncertaintyClient
from ..errors import InvalidInput
from ..images import fit, read_image
from ..images.prepare import with_spacing
from .options import Encrypt, FileTimeout, Json, TlsCert, TlsKey, TlsRoot, Url, encryption

BINDING = ("model_digest", "policy_digest", "code_digest")
"""What must be the same for a replay to mean anything. Other code may decide alike; the difference is still shown."""

_DECIDED = ("seed", "samples", "first_pass", "score", "route", "threshold")
_CIRCUMSTANCES = ("computed_by", "problems")
"""May differ without another decision. Everything else in a record is compared."""
_MEASURED = ("case_score", "scores", "statistics", "ood_distance", "volume_ml", "values")

EPILOG = """[bold]Example[/]

equipoise predict hippocampus brain.nii.gz --json > decision.json; equipoise replay decision.json brain.nii.gz

Numbers are compared within a tolerance that depends on what computed them, reasons by their code.

Exit code: 0 the same route and numbers, 1 not the same or it failed, 2 wrong usage."""


@dataclass(frozen=True)
class Difference:
    """Where the replay departs from the record."""

    what: str
    recorded: Any
    replayed: Any


@dataclass(frozen=True)
class RecordedRequest:
    """The request to repeat; None where the caller had named nothing."""

    model: str
    input_digest: str
    spacing: tuple[float, ...] | None
    samples: int | None
    seed: int | None
    group: str | None = None


def replay(
    record: Annotated[Path, typer.Argument(help="JSON: a record, or what `equipoise predict --json` printed.")],
    image: Annotated[Path, typer.Argument(help="The image that was decided on.")],
    url: Url = "localhost:8001",
    entry: Annotated[int, typer.Option(min=0, help="Which entry, where the file holds several.")] = 0,
    timeout: FileTimeout = 60.0,
    tls: Encrypt = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Json = False,
) -> None:
    """Decide a recorded case again, and compare route and numbers with the record."""
    recorded = read_record(record, entry)
    request = asked(recorded)
    with UncertaintyClient(url, timeout=timeout, tls=encryption(tls, tls_root, tls_cert, tls_key)) as client:
        contract = client.contract(request.model)
        prepared = fit(with_spacing(read_image(image), request.spacing), contract)
        digest = input_digest(prepared.pixels)
        if digest != request.input_digest:
            raise InvalidInput(
                f"{image.name} is not the image of this record: its digest is {digest[:12]}, the record says "
                f"{request.input_digest[:12]}"
            )
        again = client.predict(
            request.model,
            prepared.pixels,
            samples=request.samples,
            seed=request.seed,
            spacing=request.spacing,
            group=request.group,
            outputs=(),
        ).record
    found = list(differences(recorded, again))
    why = explanation(recorded, again) if found else None
    if as_json:
        document = {"same": not found, "differences": [vars(each) for each in found], "explanation": why}
        typer.echo(json.dumps(document, indent=1))
    elif found:
        table = Table("what", "recorded", "replayed", title="not the same")
        for each in found:
            table.add_row(each.what, str(each.recorded), str(each.replayed))
        Console().print(table)
        if why:
            Console().print(why)
        if recorded.get("problems"):
            Console().print("the record notes problems during sampling, which a replay does not repeat")
    else:
        score = recorded["case_score"]  # null where sampling gave none
        stated = "without a score" if score is None else f"{recorded['score']} {score:.6g}"
        Console().print(f"[green]the same[/]: {recorded['route']}, {stated}")
    if found:
        raise typer.Exit(1)


def read_record(path: Path, entry: int = 0) -> Mapping[str, Any]:
    """The record in a JSON file. Raises InvalidInput that says what was found."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read as JSON: {type(error).__name__}") from error
    entries = document if isinstance(document, list) else [document]
    if entry >= len(entries):
        raise InvalidInput(f"{path.name} holds {len(entries)} entries; --entry {entry} is past the end")
    chosen = entries[entry]
    record = chosen.get("record", chosen) if isinstance(chosen, dict) else None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        earlier = f"; this one is {found}: ask the version that wrote it" if str(found).startswith("equipoise-") else ""
        raise InvalidInput(f"{path.name} holds no record of format {FORMAT}{earlier}")
    return record


def asked(recorded: Mapping[str, Any]) -> RecordedRequest:
    """The request that the record describes. Raises InvalidInput where that is missing or impossible."""
    try:
        spacing, samples, seed = recorded["spacing"], recorded["samples_planned"], int(recorded["seed"])
        named = [recorded[name] for name in ("samples_named", "seed_named")]
        texts = [recorded[name] for name in ("model", "input_digest")]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in named):
            raise TypeError("model, input_digest, samples_named or seed_named is of another type")
        if type(samples) is not int or not 0 < samples < 2**31 or not 0 <= seed < 2**64:
            raise ValueError("samples_planned or seed is out of range")
        millimetres = None if spacing is None else tuple(float(mm) for mm in spacing)
        group = recorded.get("group")
        if not (group is None or isinstance(group, str)):
            raise TypeError("group is no text")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"the record is incomplete or malformed: {type(error).__name__}: {error}") from error
    model, digest = texts
    asked_for = (samples if named[0] else None), (seed if named[1] else None)
    return RecordedRequest(model, digest, millimetres, *asked_for, group)


def differences(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Difference]:
    """Digests, decision and numbers that are not the same; numbers within the tolerance of what computed them."""
    within = _tolerance(recorded, again)
    others = {*recorded, *again} - {*BINDING, *_DECIDED, *_MEASURED, *_CIRCUMSTANCES, "reason"}
    for name in (*BINDING, *_DECIDED, *sorted(others)):
        if recorded.get(name) != again.get(name) and not _close(recorded.get(name), again.get(name), within):
            yield Difference(name, recorded.get(name), again.get(name))
    yield from _reasons(_part(recorded, "reason"), _part(again, "reason"), within)
    for name in _MEASURED:
        yield from _numbers(name, recorded.get(name), again.get(name), within)


def _reasons(recorded: Mapping[str, Any], again: Mapping[str, Any], within: float) -> Iterator[Difference]:
    """Codes, their numbers, and whether the recorded text is what code and numbers say."""
    if recorded.get("code") != again.get("code"):
        yield Difference("reason", recorded.get("code"), again.get("code"))
        return
    yield from _numbers("reason", recorded.get("values"), again.get("values"), within)
    said = rendered(recorded)
    if recorded.get("text") != said:
        yield Difference("reason.text", recorded.get("text"), said)


def explanation(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> str | None:
    """Why one case may be routed differently: accept was closed, or on two devices a number that decided lies at its
    limit. None: neither."""
    if "closed" in {_part(record, "reason").get("code") for record in (recorded, again)}:
        when = "when this was recorded" if _part(recorded, "reason").get("code") == "closed" else "now"
        return f"accept is closed after an alarm {when}: `equipoise audit monitor` says why"
    within = _tolerance(recorded, again)
    near = (near_limit(_part(record, "reason"), within) for record in (recorded, again))
    found = next(filter(None, near), None)
    return None if found is None else f"a number that decides lies at its limit: {found}, the tolerance of the devices"


def _tolerance(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> float:
    return tolerance_between(_part(recorded, "computed_by"), _part(again, "computed_by"))


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _numbers(name: str, recorded: Any, again: Any, within: float) -> Iterator[Difference]:
    if isinstance(recorded, Mapping) and isinstance(again, Mapping):
        for key in sorted({*recorded, *again}):
            yield from _numbers(f"{name}.{key}", recorded.get(key), again.get(key), within)
    elif recorded != again and not _close(recorded, again, within):
        yield Difference(name, recorded, again)


def _close(recorded: Any, again: Any, within: float) -> bool:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, again)):
        return False
    try:
        return math.isclose(recorded, again, rel_tol=within, abs_tol=within)
    except OverflowError:  # a whole number beyond all floats
        return False
