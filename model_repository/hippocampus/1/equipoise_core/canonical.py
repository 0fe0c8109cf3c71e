"""One spelling for every JSON document that is hashed, so that a digest means the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar


class _Digested(Protocol):
    @property
    def digest(self) -> str: ...


Parsed = TypeVar("Parsed", bound=_Digested)
Value = TypeVar("Value")


def canonical_json(document: Any) -> str:
    """Sorted keys, no white space, ASCII; refuses NaN and infinities, which JSON cannot say."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(document: Any) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def digest_of_model(path: Path) -> str:
    """Of an ONNX file: SHA-256 of its bytes; where weights lie beside it (`….data`), of the digests of both."""
    data = path.with_name(f"{path.name}.data")
    if not data.exists():
        return digest_of_file(path)
    return digest_of({file.name: digest_of_file(file) for file in (path, data)})


def digest_of_code(directory: Path) -> str:
    """SHA-256 over the names and bytes of the Python files that lie in `directory` and below: which code decided."""
    files = {str(path.relative_to(directory)): digest_of_file(path) for path in sorted(directory.rglob("*.py"))}
    return digest_of(files)


def read_json(path: Path, error: type[ValueError]) -> Any:
    """A file's JSON document. Raises `error` that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path.name} cannot be read as JSON: {cause}") from cause


def optional(document: Any, parse: Callable[[Any], Value]) -> Value | None:
    """A part of a document that may be null, or missing."""
    return None if document is None else parse(document)


def parse_document(
    document: Any,
    what: str,
    expected: str,
    build: Callable[[Any], Parsed],
    error: type[ValueError],
    must_state: bool = False,
) -> Parsed:
    """What `build` makes of a document of the format `expected`; a digest that the document states must be its own.

    Args:
        must_state: whether it has to state one: without it nobody can tell that it was changed.

    Raises `error` that says what is wrong: another format, a missing or malformed part, another digest.
    """
    if not isinstance(document, dict) or document.get("format") != expected:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise error(f"expected a {what} of format {expected}; got {found} (`equipoise migrate` renews earlier pairs)")
    try:
        built = build(document)
        digest = built.digest  # numbers that JSON cannot say have none
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
        raise error(f"{what} is incomplete or malformed: {type(cause).__name__}: {cause}") from cause
    stated = document.get("digest", None if must_state else digest)
    if stated is None:
        raise error(f"{what} states no digest: it was changed")
    if stated != digest:
        raise error(f"{what} says its digest is {stated}, but it is {digest}: it was changed")
    return built
