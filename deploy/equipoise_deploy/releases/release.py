"""A release: one version of a published model, with the digest of every file of it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from equipoise_core.canonical import digest_of, digest_of_file

from ..errors import ReleaseError, TamperedError
from .signing import verify_signature

FORMAT = "equipoise-release/1"
DOCUMENT = "release.json"
SIGNATURE = "release.sig"
REPORT = "report.html"
_ADVICE = "Do not serve it: publish it again from its source, or restore the folder from a backup"


@dataclass(frozen=True)
class File:
    """Digest and size that one file must have."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Release:
    """What `release.json` says.

    Attributes:
        name, version: the public model, and which release of it, from 1.
        files: path below the release's folder, with `/` → digest and size; all files but `release.json` and its
            signature.
        contract_digest, model_digest: `Contract.digest` and `Contract.model_digest`.
        policy_digest: `Policy.digest`, or None: everything goes to review.
        code_digest: of the code that decides, as in records.
        published_at: UTC, ISO 8601.
        published_by: who, by the publisher's own statement.
        previous: the newest release before this one, or None.
    """

    name: str
    version: int
    files: Mapping[str, File]
    contract_digest: str
    model_digest: str
    policy_digest: str | None
    code_digest: str
    published_at: str
    published_by: str
    previous: int | None

    @cached_property
    def digest(self) -> str:
        """Of all the above."""
        return digest_of(self.document())

    def document(self) -> dict[str, Any]:
        files = {path: asdict(file) for path, file in sorted(self.files.items())}
        return {"format": FORMAT, **asdict(self), "files": files}

    def dumps(self) -> str:
        return json.dumps({**self.document(), "digest": self.digest}, indent=1) + "\n"


def read_release(folder: Path) -> Release:
    """What `release.json` in `folder` says. Raises ReleaseError (there is none), TamperedError (not as written)."""
    path = folder / DOCUMENT
    if not path.is_file():
        raise ReleaseError(f"{folder} has no {DOCUMENT}; make a release of a model with `equipoise publish`")
    try:
        content = path.read_bytes()
        document = json.loads(content)
        release = Release(
            name=_text(document["name"]),
            version=_number(document["version"]),
            files={
                _text(name): File(_text(file["sha256"]), _number(file["bytes"]))
                for name, file in document["files"].items()
            },
            contract_digest=_text(document["contract_digest"]),
            model_digest=_text(document["model_digest"]),
            policy_digest=None if document["policy_digest"] is None else _text(document["policy_digest"]),
            code_digest=_text(document["code_digest"]),
            published_at=_text(document["published_at"]),
            published_by=_text(document["published_by"]),
            previous=None if document["previous"] is None else _number(document["previous"]),
        )
        if release.dumps().encode() != content:
            raise ValueError(f"it states the digest {document.get('digest')}, its content has {release.digest}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TamperedError(
            f"{path} is not as it was published: {type(error).__name__}: {str(error)[:300]}. {_ADVICE}"
        ) from error
    return release


def verify_release(folder: Path, trust: Path | None = None) -> Release:
    """Compares every file of a release with its digest, and the whole with its signature where a key is given.

    Args:
        folder: `STORE/models/NAME/VERSION`, or a copy of it.
        trust: public key, PEM; None: only digests are checked, which shows damage but not forgery.

    Raises TamperedError that names the file, what was expected and what to do.
    """
    release = read_release(folder)
    found = dict(_files(folder))
    for path, expected in sorted(release.files.items()):
        if path not in found:
            raise TamperedError(
                f"{folder / path} is missing; release {release.name} {release.version} has it. {_ADVICE}"
            )
        if not found[path]:
            raise TamperedError(f"{folder / path} is a link or a device, not a file. {_ADVICE}")
        file = folder / path
        size, digest = file.stat().st_size, digest_of_file(file)
        if (size, digest) != (expected.bytes, expected.sha256):
            raise TamperedError(
                f"{file} was changed: it has {size} bytes with SHA-256 {digest}, expected {expected.bytes} with "
                f"{expected.sha256}. {_ADVICE}"
            )
    for path in sorted(set(found) - set(release.files) - {DOCUMENT, SIGNATURE}):
        raise TamperedError(f"{folder / path} does not belong to release {release.name} {release.version}. {_ADVICE}")
    if trust is not None:
        verify_signature(folder, folder / SIGNATURE, trust)
    return release


def digests(folder: Path) -> dict[str, File]:
    """Of every file in a folder that becomes a release. Raises ReleaseError for a link or a device."""
    files = {}
    for path, plain in _files(folder):
        if not plain:
            raise ReleaseError(f"{folder / path} is a link or a device; a release consists of files")
        files[path] = File(digest_of_file(folder / path), (folder / path).stat().st_size)
    return files


def _files(folder: Path) -> Iterator[tuple[str, bool]]:
    """Every entry below `folder` but directories, and whether it is a plain file. Links are not followed."""
    pending = [folder]
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            mode = entry.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append(entry)
            else:
                yield entry.relative_to(folder).as_posix(), stat.S_ISREG(mode)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"expected a whole number from 0, got {value!r}")
    return value
