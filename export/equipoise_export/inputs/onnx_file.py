"""ONNX files from disk."""

from __future__ import annotations

from pathlib import Path

import onnx

from ..errors import SpecError


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file, with external data where it has any."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    try:
        return onnx.load(path)
    except Exception as error:
        raise SpecError(f"{path} cannot be read as ONNX: {error}") from error
