"""What a bundle says about itself, and whether that is true."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
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
_LARGEST = 1 << 26  # bytes of either of the two: what comes before anything is verified is not trusted with memory


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        equipoise: version of our own package.
        python: `3.11`: the interpreter that its wheels are for.
        machine: `x86_64`.
        extras: of our own package, that are installed.
        serves: `models` (a plain repository) or `store` (releases).
        files: name of each other entry → what it has to be.
    """

    equipoise: str
    python: str
    machine: str
    extras: tuple[str, ...]
    serves: str
    files: Mapping[str, File]

    def dumps(self) -> str:
        return (
            json.dumps(
                {
                    "format": FORMAT,
                    "equipoise": self.equipoise,
                    "python": self.python,
                    "machine": self.machine,
                    "extras": list(self.extras),
                    "serves": self.serves,
                    "files": {name: dict(vars(file)) for name, file in sorted(self.files.items())},
                },
                indent=1,
            )
            + "\n"
        )


@dataclass(frozen=True)
class Verified:
    """A bundle that is what it says.

    Attributes:
        signed: it has a signature.
        trusted: and that is by the key that was given.
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

    What is written was verified in the same pass: nobody can change it in between.

    Args:
        into: an empty folder to unpack into; None: nothing is written.
        trust: public key that the manifest must be signed with.

    Raises TamperedError that names the entry; then nothing that was unpacked may be used.
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
        raise TamperedError(f"{bundle} is not signed, but --trust {trust} asks for it; take one that is")
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
        raise TamperedError(f"{entry.name} states {entry.size} bytes, which it cannot have; fetch the bundle again")
    return entry.content.read()
