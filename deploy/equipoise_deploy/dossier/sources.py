"""What a dossier is written from. Nothing is asked of a server, and nothing of a patient is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_client.errors import EquipoiseError
from equipoise_clinic.audit import AuditError, Entry, Kind, head, verify
from equipoise_clinic.audit.chain import entries
from equipoise_clinic.audit.monitor import monitor
from equipoise_clinic.audit.status import PolicyStatus
from equipoise_clinic.gateway.settings import Settings, load_settings
from equipoise_core.canonical import digest_of_file
from equipoise_core.case import Model
from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model

from ..bundle.making import SBOM
from ..errors import DeployError

HAZARDS = Path(__file__).parents[2] / "HAZARDS.md"
"""In a checkout."""

_ROW = re.compile(r"^\| (?P<hazard>[^|]+) \| (?P<control>[^|]+) \| (?P<shown>[^|]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Log:
    """An audit log, of decisions or of releases.

    Attributes:
        lines: how many; kinds: how many of each kind.
        faults: what is wrong with its chain, in words.
        anchor: the hash of its last line.
        first, last: UTC times.
        statuses: what the monitors say of each policy.
    """

    path: Path
    lines: int
    kinds: Mapping[str, int]
    faults: tuple[str, ...]
    anchor: str
    first: str
    last: str
    statuses: tuple[PolicyStatus, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Sources:
    """Attributes: what was given, read; None or empty where it was not.

    Attributes:
        folder: of the published pair, `<repository>/<name>/1`.
        proofs: sampler → its `proof.json`.
        hazards: (hazard, what stops it, tests that show it).
        sbom: the CycloneDX document.
    """

    name: str
    folder: Path
    model: Model
    proofs: Mapping[str, Mapping[str, Any]]
    releases: Log | None = None
    decisions: Log | None = None
    gateway: Settings | None = None
    hazards: tuple[tuple[str, str, str], ...] = ()
    hazards_file: Path | None = None
    sbom: Mapping[str, Any] | None = None
    sbom_file: Path | None = None

    @property
    def digests(self) -> dict[str, str]:
        """File → SHA-256 of what was read whole."""
        files = [self.folder / "contract.json", self.folder / "policy.json", self.hazards_file, self.sbom_file]
        repository = self.folder.parent.parent
        files += [repository / name / "1" / "proof.json" for name in self.proofs]
        return {str(file): digest_of_file(file) for file in files if file is not None and file.is_file()}


def read_sources(
    name: str,
    repository: Path,
    *,
    store: Path | None = None,
    audit: Path | None = None,
    gateway: Path | None = None,
    hazards: Path | None = None,
    sbom: Path | None = None,
) -> Sources:
    """Raises DeployError that names what cannot be read."""
    folder = repository / name / "1"
    if not folder.is_dir():
        raise DeployError(f"{repository} holds no published model {name}: expected the folder {folder}")
    try:
        model = load_model(folder)
        settings = None if gateway is None else load_settings(gateway)
        bill = None if sbom is None else json.loads(sbom.read_text(encoding="utf-8"))
    except (ContractError, EquipoiseError, OSError, ValueError) as error:
        raise DeployError(f"the dossier of {name} cannot be written: {error}") from error
    if bill is not None and bill.get("bomFormat") != "CycloneDX":
        raise DeployError(f"{sbom} is no CycloneDX bill of materials; `equipoise bundle make` writes one: {SBOM}")
    if audit is None and settings is not None:
        audit = settings.audit if settings.audit.is_file() else None
    file = hazards or (HAZARDS if HAZARDS.is_file() else None)
    releases = None if store is None else store / "log.jsonl"
    return Sources(
        name,
        folder,
        model,
        {each.name: _proof(repository / each.name / "1" / "proof.json") for each in model.contract.files},
        _log(releases, None) if releases is not None and releases.is_file() else None,
        _log(audit, name) if audit is not None else None,
        settings,
        _hazards(file),
        file,
        bill,
        sbom,
    )


def _proof(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DeployError(f"{path} cannot be read: {error}. Export the model again, which writes it") from error


def _log(path: Path, model: str | None) -> Log:
    """Raises DeployError where there is none, or it is damaged so that it cannot be read."""
    try:
        faults = tuple(fault.text(path) for fault in verify(path, None))
        read = tuple(entries(path)) if not faults else ()
        statuses = [] if model is None or faults else [each for each in monitor(path) if each.model == model]
        anchor = "" if faults else str(head(path).hash)
    except (AuditError, OSError) as error:
        raise DeployError(f"{path} cannot be read as an audit log: {error}") from error
    kinds = Counter(entry.kind.value for entry in read)
    times = [entry.at for entry in read] or [""]
    return Log(path, len(read), kinds, faults, anchor, times[0], times[-1], tuple(statuses), read)


def _hazards(path: Path | None) -> tuple[tuple[str, str, str], ...]:
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
    rows = [(m["hazard"].strip(), m["control"].strip(), m["shown"].strip()) for m in _ROW.finditer(text)]
    return tuple(row for row in rows if row[0] != "Hazard" and set(row[0]) != {"-"})


def releases_of(log: Log, name: str) -> Sequence[Entry]:
    """Lines about this model's releases, in order."""
    return [each for each in log.entries if each.kind is Kind.RELEASE and (each.body or {}).get("model") == name]
