"""The processes of a running Triton, as /proc shows them: which are there, which are stopped, what they have computed.

Triton keeps saying that it is ready when one of its Python processes (stubs) is dead; /proc tells at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STUB = "triton_python_b"  # of `triton_python_backend_stub`: the kernel keeps 15 characters
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process of a server; its start time tells it from a later one with the same number.

    Attributes:
        model: whose stub it is; empty for Triton itself.
    """

    pid: int
    started: str
    model: str

    def __str__(self) -> str:
        return f"a process of {self.model} ({self.pid})" if self.model else f"Triton ({self.pid})"


@dataclass(frozen=True)
class Glance:
    """A process at one moment.

    Attributes:
        stopped: it was told to pause (SIGSTOP, a debugger) and computes nothing.
        seconds: of processor time so far.
        waited: seconds that its main thread could have computed and had no processor, so far; 0 where the kernel does
            not say.
    """

    stopped: bool
    seconds: float
    waited: float


def server_processes(guardian: int) -> tuple[Process, ...]:
    """Triton and its stubs; Triton is the only child of its guardian. Empty where it has ended."""
    found = {int(entry.name): _stat(int(entry.name)) for entry in _PROC.glob("[0-9]*")}
    parents = {pid: int(fields[1]) for pid, fields in found.items() if fields}

    def of(pid: int, model: str) -> Process:
        return Process(pid, (found[pid] or [""] * 20)[19], model)

    servers = [pid for pid, parent in parents.items() if parent == guardian]
    stubs = [pid for pid, parent in parents.items() if parent in servers and _name(pid) == _STUB]
    return (*(of(pid, "") for pid in servers), *(of(pid, _model_of(pid)) for pid in stubs))


def glance(process: Process) -> Glance | None:
    """None: it has ended, or only waits for its parent to notice."""
    fields = _stat(process.pid)
    if fields is None or fields[19] != process.started or fields[0] in "ZX":
        return None
    return Glance(fields[0] in "Tt", (int(fields[11]) + int(fields[12])) / _TICKS, _waited(process.pid))


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: [0] state, [1] parent, [11] user and [12] system ticks, [19] start time."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _waited(pid: int) -> float:
    """/proc/PID/schedstat: nanoseconds on a processor, nanoseconds waiting for one, turns."""
    try:
        return int((_PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _model_of(pid: int) -> str:
    """The stub's first argument is its `model.py`: …/MODEL/VERSION/model.py."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    files = [Path(os.fsdecode(word)) for word in words[1:] if word.endswith(b"model.py")]
    return files[0].parents[1].name if files else "an unknown model"
