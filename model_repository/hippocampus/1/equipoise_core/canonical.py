"""One spelling for every JSON document that is hashed, so that a digest means the same on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


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
