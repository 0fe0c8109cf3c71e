"""Which operators CUDA and TensorRT have kernels for: the table in `gpu_kernels.json`, and how to renew it.

    python -m equipoise_export.proof.gpu_kernels --onnxruntime 1.27.0 OperatorKernels.md \\
        --tensorrt 10.1 operators.md --date 2026-11-30

reads `docs/OperatorKernels.md` of ONNX Runtime and `docs/operators.md` of onnx-tensorrt, as they are at the releases
that Triton's image carries; nothing is downloaded. Of ONNX Runtime only ONNX's own operators are kept: the optimiser
writes others only where its provider has them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("gpu_kernels.json")
_TENSORRT_TYPES = {
    "FP32": "float", "FP16": "float16", "BF16": "bfloat16", "DOUBLE": "double", "FP8": "float8e4m3fn", "BOOL": "bool",
    "INT4": "int4", "INT8": "int8", "INT32": "int32", "INT64": "int64", "INF64": "int64", "UINT8": "uint8",
}  # fmt: skip  # INF64: so misspelt at the source


@dataclass(frozen=True)
class Kernel:
    """One kernel of the CUDA provider.

    Attributes:
        first, last: the operator's versions that it implements; `last` is None for a kernel without an end.
        types: type parameter (`T`) or name of an input or output → the element types that it takes there.
    """

    first: int
    last: int | None
    types: Mapping[str, frozenset[str]]

    def implements(self, version: int) -> bool:
        """Without an end it serves no later version of the operator: ONNX Runtime cannot know what that changes."""
        return version == self.first or (self.last is not None and self.first < version <= self.last)


@dataclass(frozen=True)
class Kernels:
    """The table.

    Attributes:
        cuda: operator → its kernels.
        tensorrt: operator → the element types of its data that TensorRT takes.
        onnxruntime_version, tensorrt_version: what the table was read from.
    """

    cuda: Mapping[str, tuple[Kernel, ...]]
    tensorrt: Mapping[str, frozenset[str]]
    onnxruntime_version: str
    tensorrt_version: str


@cache
def kernels() -> Kernels:
    """The table as it is installed."""
    document = json.loads(TABLE.read_text(encoding="utf-8"))
    cuda, tensorrt = document["cuda"], document["tensorrt"]
    sets = [frozenset(entry.split()) for entry in cuda["types"]]
    return Kernels(
        {
            operator: tuple(
                Kernel(first, last, {name: sets[index] for name, index in types.items()})
                for first, last, types in entries
            )
            for operator, entries in cuda["operators"].items()
        },
        {operator: frozenset(types.split()) for operator, types in tensorrt["operators"].items()},
        cuda["version"],
        tensorrt["version"],
    )


def read_onnxruntime(markdown: str) -> dict[str, Any]:
    """The CUDA provider's part of `docs/OperatorKernels.md`: `types` and `operators` of the table.

    Raises:
        ValueError: the text has no such part, or a row of it is not understood.
    """
    _, found, rest = markdown.partition("## Operators implemented by CUDAExecutionProvider")
    if not found:
        raise ValueError("no section «Operators implemented by CUDAExecutionProvider»: expected OperatorKernels.md")
    rows = re.findall(r"^\|(.*)\|$", rest.partition("\n## ")[0], re.MULTILINE)
    sets: dict[str, int] = {}
    operators: dict[str, list[Any]] = {}
    domain = operator = ""
    for row in rows:
        if header := re.match(r"\*\*Operator Domain:\*\* \*(.*?)\*", row):
            domain = header[1]
        cells = row.split("|")
        version = re.fullmatch(r"\[(\d+), (\d+)\]|(\d+)(\+?)", cells[-2].strip()) if len(cells) == 4 else None
        if domain != "ai.onnx" or version is None:
            continue
        operator = cells[0] or operator
        first = int(version[1] or version[3])
        last = None if version[4] else int(version[2] or version[3])
        types = {}
        for name, listed in re.findall(r"\*\*(\w+)\*\* = (.*?)(?=<br/?>|$)", cells[3]):
            plain = " ".join(sorted(entry.strip().replace("tensor(", "", 1)[:-1] for entry in listed.split(",")))
            types[name] = sets.setdefault(plain, len(sets))
        operators.setdefault(operator, []).append([first, last, types])
    if not operators:
        raise ValueError("the CUDA provider's section lists no kernel: has the page another form now?")
    return {"types": list(sets), "operators": {name: operators[name] for name in sorted(operators)}}


def read_tensorrt(markdown: str) -> dict[str, Any]:
    """The matrix of `docs/operators.md`: `operators` of the table, those that are supported.

    Raises:
        ValueError: it holds none, or a type that is not known here.
    """
    operators = {}
    for name, listed in re.findall(r"^\| (\w+) +\| Y +\| ([^|]*)", markdown, re.MULTILINE):
        stated = [entry.strip() for entry in listed.split(",") if entry.strip()]
        if unknown := set(stated) - set(_TENSORRT_TYPES):
            raise ValueError(f"{name}: unknown types {sorted(unknown)}; known are {sorted(_TENSORRT_TYPES)}")
        operators[name] = " ".join(dict.fromkeys(_TENSORRT_TYPES[entry] for entry in stated))
    if not operators:
        raise ValueError("no supported operator found: expected onnx-tensorrt's docs/operators.md")
    return {"operators": operators}


def written(document: Mapping[str, Any]) -> str:
    """The table as JSON, one operator a line, so that a renewal reads as a difference."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\n {4,}|\n {3}(?=[\]}])", lambda found: " " if len(found[0]) > 4 else "", text) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes `gpu_kernels.json` anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--onnxruntime", nargs=2, metavar=("VERSION", "MARKDOWN"), required=True)
    parser.add_argument("--tensorrt", nargs=2, metavar=("VERSION", "MARKDOWN"), required=True)
    parser.add_argument("--date", required=True, help="when they were read, YYYY-MM-DD")
    given = parser.parse_args(arguments)
    document = {
        name: {"source": source, "version": version, "date": given.date, **read(Path(page).read_text(encoding="utf-8"))}
        for name, source, (version, page), read in (
            ("cuda", "onnxruntime: docs/OperatorKernels.md", given.onnxruntime, read_onnxruntime),
            ("tensorrt", "onnx-tensorrt: docs/operators.md", given.tensorrt, read_tensorrt),
        )
    }
    TABLE.write_text(written(document), encoding="utf-8")


if __name__ == "__main__":
    main()
