"""The manifest of a bundle, and its verification."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import ReleaseError, TamperedError
from ..releases.release import File
from ..releases.signing import verify_signature
from .archive import Entry, read_archive

FORMAT = "equipoise-bundle/1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_LARGEST = 1 << 26  # bytes of either of the two, which are read into memory before anything is verified


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle.

    Attributes:
        equipoise: version of the package `equipoise`.
        python: `3.11`: the interpreter that its wheels are for.
        machine: `x86_64`.
        extras: of that package, which are installed.
        serves: `models` (a plain repository) or `store` (releases).
        files: name of each other entry → its digest and size.
    """

    equipoise: str
    python: str
    machine: str
    extras: tuple[str, ...]
    serves: str
    files: Mapping[str, File]

    def dumps(self) -> str:
        files = {name: asdict(file) for name, file in sorted(self.files.items())}
        return json.dumps({"format": FORMAT, **asdict(self), "files": files}, indent=1) + "\n"


@dataclass(frozen=True)
class Verified:
    """A verified bundle.

    Attributes:
        signed: it has a signature.
        trusted: the signature is by the given key.
    """

    manifest: Manifest
    signed: bool
    trusted: bool


def parse_manifest(content: bytes) -> Manifest:
    """Raises TamperedError where it is not as it was written."""
    try:
        document: Any = json.loads(content)
        manifest = Manifest(
            str(document["equipoise"]),
            str(document["python"]),
            str(document["machine"]),
            tuple(str(extra) for extra in document["extras"]),
            str(document["serves"]),
            {str(name): File(str(each["sha256"]), int(each["bytes"])) for name, each in document["files"].items()},
        )
        if manifest.dumps().encode() != content:
            raise ValueError("it is not as `bundle make` writes it")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise TamperedError(
            f"{MANIFEST} of the bundle was changed: {type(error).__name__}: {str(error)[:200]}; fetch the bundle again"
        ) from error
    return manifest


def unpack(bundle: Path, into: Path | None = None, trust: Path | None = None) -> Verified:
    """Reads a bundle once: the manifest and its signature first, then every entry against the manifest.

    Each entry is verified in the pass that writes it: nobody can change it in between.

    Args:
        into: an empty folder to unpack into; None: nothing is written.
        trust: public key that the manifest must be signed with.

    Raises TamperedError that names the entry; then do not use anything that was unpacked.
    """
    with read_archive(bundle) as entries:
        head = next(entries, None)
        if head is None or head.name != MANIFEST:
            raise ReleaseError(f"{bundle} is not a bundle: it does not begin with {MANIFEST}")
        content, signature = _whole(head), b""
        manifest = parse_manifest(content)
        following = next(entries, None)
        if following is not None and following.name == SIGNATURE:
            signature = _whole(following)
            following = next(entries, None)
        _check_signature(bundle, content, signature, trust)
        if into is not None:
            (into / MANIFEST).write_bytes(content)
            if signature:
                (into / SIGNATURE).write_bytes(signature)
        seen = {MANIFEST, SIGNATURE}
        for entry in chain([following] if following else [], entries):
            if entry.name in seen:
                raise TamperedError(f"{bundle} holds {entry.name} twice; fetch it again")
            _check_entry(bundle, entry, manifest, into)
            seen.add(entry.name)
    if missing := sorted(set(manifest.files) - seen):
        raise TamperedError(f"{bundle} lacks {missing[0]}, which its manifest lists; fetch it again")
    return Verified(manifest, bool(signature), trust is not None)


def _check_signature(bundle: Path, manifest: bytes, signature: bytes, trust: Path | None) -> None:
    if trust is None:
        return
    if not signature:
        raise TamperedError(f"{bundle} is not signed, but --trust {trust} requires it; take a signed one")
    with tempfile.TemporaryDirectory() as scratch:
        what, signed = Path(scratch) / MANIFEST, Path(scratch) / SIGNATURE
        what.write_bytes(manifest)
        signed.write_bytes(signature)
        try:
            verify_signature(what, signed, trust)
        except TamperedError as error:
            raise TamperedError(f"{bundle}: {str(error).replace(f'{scratch}/', '')}") from error


def _check_entry(bundle: Path, entry: Entry, manifest: Manifest, into: Path | None) -> None:
    expected = manifest.files.get(entry.name)
    if expected is None:
        raise TamperedError(f"{bundle} holds {entry.name}, which its manifest does not list; fetch it again")
    if entry.size != expected.bytes:  # before anything is written: an archive cannot fill the disk
        raise TamperedError(
            f"{bundle}: {entry.name} was changed: it has {entry.size} bytes, expected {expected.bytes}; fetch the "
            "bundle again"
        )
    target = Path(os.devnull) if into is None else into / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in entry.chunks():
            sha.update(chunk)
            file.write(chunk)
    if sha.hexdigest() != expected.sha256:
        raise TamperedError(
            f"{bundle}: {entry.name} was changed: it has SHA-256 {sha.hexdigest()}, expected {expected.sha256}; fetch "
            "the bundle again"
        )


def _whole(entry: Entry) -> bytes:
    if entry.size > _LARGEST:
        raise TamperedError(f"{entry.name} states {entry.size} bytes, which is too many; fetch the bundle again")
    return entry.content.read()
