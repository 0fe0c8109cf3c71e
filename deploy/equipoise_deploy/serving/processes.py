"""The processes of a running Triton: which there are, which are stopped, what they have computed.

Triton keeps saying that it is ready when one of its Python processes (stubs) is dead; the kernel shows it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_STUB = "triton_python_b"  # of `triton_python_backend_stub`: for a dead process the kernel keeps 15 characters


@dataclass(frozen=True)
class Process:
    """One process of a server.

    Attributes:
        handle: process number and start time, which distinguishes it from a later one with the same number.
        model: whose stub it is; empty for Triton itself.
    """

    handle: psutil.Process
    model: str

    @property
    def pid(self) -> int:
        return int(self.handle.pid)

    def __str__(self) -> str:
        return f"a process of {self.model} ({self.pid})" if self.model else f"Triton ({self.pid})"


@dataclass(frozen=True)
class Glance:
    """A process at one moment.

    Attributes:
        stopped: paused (SIGSTOP, a debugger); it computes nothing.
        seconds: of processor time so far.
        waited: seconds that its main thread could have computed and had no processor, so far; 0 where the kernel does
            not say.
    """

    stopped: bool
    seconds: float
    waited: float


def server_processes(guardian: int) -> tuple[Process, ...]:
    """Triton and its stubs; Triton is the only child of its guardian. Empty where it has ended."""
    servers = _children(guardian)
    children = (child for server in servers for child in _children(server.pid))
    stubs = [Process(child, model) for child in children if (model := _model_of(child))]
    return (*(Process(server, "") for server in servers), *stubs)


def glance(process: Process) -> Glance | None:
    """None: it has ended, or only waits for its parent to notice."""
    handle = process.handle
    try:
        with handle.oneshot():
            status, times = handle.status(), handle.cpu_times()
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) or not handle.is_running():
            return None
    except psutil.Error:
        return None
    stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return Glance(stopped, times.user + times.system, _waited(process.pid))


def _waited(pid: int) -> float:
    """/proc/PID/schedstat: nanoseconds on a processor, nanoseconds waiting for one, turns. psutil does not read it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def _model_of(child: psutil.Process) -> str:
    """The stub's first argument is its `model.py`: …/MODEL/VERSION/model.py. Empty: it is not a stub."""
    try:
        if not child.name().startswith(_STUB):
            return ""
        files = [Path(word) for word in child.cmdline()[1:] if word.endswith("model.py")]
    except psutil.ZombieProcess:  # a dead stub still counts: its death has to be seen
        files = []
    except psutil.NoSuchProcess:
        return ""
    return files[0].parents[1].name if files else "an unknown model"
