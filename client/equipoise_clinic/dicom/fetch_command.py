"""The verb `equipoise fetch`: studies from a PACS into folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client.cli.options import PacsTimeout, TlsCert, TlsKey, TlsRoot, shown
from equipoise_client.errors import ServerFailure

from .send_command import AUTHORIZATION

EPILOG = f"""[bold]Examples[/]

equipoise fetch https://pacs.hospital/dicom-web --study 1.2.840.113619.2.1 --out studies

equipoise fetch https://pacs.hospital/dicom-web --query StudyDate=20240101-20240131 --query ModalitiesInStudy=MR --out studies

equipoise fetch https://pacs.hospital/dicom-web --query AccessionNumber=4711   [dim]# without --out: only lists studies[/]

equipoise fetch dicom://PACS@10.1.2.3:104 --query StudyDate=20240101 --move-to EQUIPOISE   [dim]# C-FIND, C-MOVE[/]

With dicom:// the PACS sends the studies itself, to an AE title that it knows, such as the gateway's.

Files go to OUT/study/series/instance.dcm, named by their UIDs. The Authorization header comes from {AUTHORIZATION}.

Exit code: 0 done, 1 it failed or nothing matched, 2 wrong usage."""  # noqa: E501


def fetch(
    url: Annotated[str, typer.Argument(help="https://host/dicom-web, or dicom://AET@host:port.", show_default=False)],
    study: Annotated[list[str] | None, typer.Option(help="Study Instance UID; may be repeated.")] = None,
    query: Annotated[list[str] | None, typer.Option(help="KEYWORD=VALUE as in QIDO-RS; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for the files.")] = None,
    move_to: Annotated[str, typer.Option(help="With dicom://: AE title that the PACS is to send to.")] = "",
    calling_aet: Annotated[str, typer.Option(help="This machine's AE title, with dicom://.")] = "EQUIPOISE",
    limit: Annotated[int, typer.Option(min=1, help="Largest number of studies that a query may return.")] = 100,
    timeout: PacsTimeout = 60.0,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list with an object per study.")] = False,
) -> None:
    """Fetch studies over DICOMweb, or have them sent by C-MOVE; by UID or by a query."""
    from .archive import Access, checked_aet, find, peer
    from .query import Pacs

    if bool(study) == bool(query):
        raise typer.BadParameter("expected --study UID or --query KEYWORD=VALUE")
    dimse = url.startswith("dicom://")
    if dimse and out is not None:
        raise typer.BadParameter("a PACS at dicom:// sends to an AE title: expected --move-to AET instead of --out")
    if move_to and not dimse:
        raise typer.BadParameter("--move-to is for dicom://AET@host:port; expected --out FOLDER")
    if study and not (out or move_to):
        raise typer.BadParameter(f"expected {'--move-to AET' if dimse else '--out FOLDER for the files'}")
    access = Access(os.environ.get(AUTHORIZATION), tls_root, tls_cert, tls_key, timeout)
    filters = dict(_pair(text) for text in query or [])
    pacs = Pacs(*peer(url), checked_aet(calling_aet), access) if dimse else None
    if study:
        studies = list(study)
    else:
        studies = pacs.studies(filters, limit) if pacs else find(url, filters, limit=limit, access=access)
    found: list[dict[str, Any]] = []
    failed = 0
    for uid in shown(studies, len(studies), "fetching", as_json or not (out or move_to)):
        found.append({"study_instance_uid": uid})
        if pacs is not None and move_to:
            moved = pacs.move(checked_aet(move_to), uid)
            found[-1] |= {"moved": moved.completed, "failed": moved.failed}
            failed += not moved.done
        elif out is not None:
            found[-1]["files"] = [str(file) for file in _fetched(url, uid, out, access)]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for each in found:
            brought = each.get("moved", len(each["files"]) if "files" in each else None)
            lost = f", {each['failed']} could not be sent" if each.get("failed") else ""
            lost = lost or (", the PACS has sent nothing: does it have that study?" if each.get("moved") == 0 else "")
            typer.echo(each["study_instance_uid"] + ("" if brought is None else f": {brought} instances{lost}"))
    if not found:
        typer.echo("no study matches", err=True)
    if failed or not found:
        raise typer.Exit(1)


def _fetched(url: str, uid: str, out: Path, access: Any) -> list[Path]:
    """The study's instances as files. An existing file is replaced once the new one is complete."""
    from equipoise_client.images.dicom import silence

    from .archive import fetch as instances

    files = []
    with silence():
        for dataset in instances(url, uid, access=access):
            # The archive is not trusted: an invalid UID could lead out of the folder.
            parts = [str(dataset[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
            if not all(part and set(part) <= set("0123456789.") and set(part) != {"."} for part in parts):
                raise ServerFailure("the archive sent an instance with invalid UIDs")
            file = out.joinpath(*parts[:2], f"{parts[2]}.dcm")
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            dataset.save_as(partial, enforce_file_format=True)
            files.append(partial.replace(file))
    return files


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise typer.BadParameter(f"{text!r}; expected KEYWORD=VALUE, as in StudyDate=20240101-")
    return name, value
