"""What a family of processes holds: memory, descriptors, threads, files in /dev/shm."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

MB = 2**20
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Usage:
    """Of one process or of several together.

    Attributes:
        pss: bytes, pages shared by n processes count 1/n; swapped-out ones included, those of mapped files (libraries)
            not: another test's server that ends makes this one's share of them grow.
        rss: bytes, shared pages count for each.
    """

    pss: int
    rss: int
    descriptors: int
    threads: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def usage_of(pid: int) -> Usage:
    """Raises OSError where there is no such process."""
    process = Path(f"/proc/{pid}")
    held = _fields(process / "smaps_rollup")
    status = _fields(process / "status")
    return Usage(
        pss=(held["Pss"] - held.get("Pss_File", 0) + held.get("SwapPss", 0)) * 1024,
        rss=held["Rss"] * 1024,
        descriptors=len(os.listdir(process / "fd")),  # noqa: PTH208 (iterdir would open the folder for longer)
        threads=status["Threads"],
    )


def usage(pids: Iterable[int]) -> Usage:
    """Of all of them together."""
    return sum((usage_of(pid) for pid in pids), Usage(0, 0, 0, 0))


def name_of(pid: int) -> str:
    """`guardian`, `tritonserver`, or `stub of MODEL`."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "triton_python_backend_stub" in words[0]:
        model = next((Path(word).parents[1].name for word in words if word.endswith("model.py")), "?")
        return f"stub of {model}"
    return next((name for name in ("guardian", "tritonserver") if any(name in word for word in words[:5])), "serve")


def shared_memory(prefix: str) -> tuple[int, int]:
    """Bytes and number of the files in /dev/shm whose names begin so."""
    sizes = [file.stat().st_blocks * 512 for file in _SHARED_MEMORY.glob(f"{prefix}*")]
    return sum(sizes), len(sizes)


def _fields(file: Path) -> dict[str, int]:
    """`Name:   123 kB` → {"Name": 123}; other lines are left out."""
    lines = (line.split() for line in file.read_text().splitlines() if ":" in line)
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
