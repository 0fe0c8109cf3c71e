"""What a started server consists of, and what of it is left: processes, shared memory, its run directory."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from equipoise_deploy.serving.processes import Process, server_processes


def descendants(pid: int) -> set[psutil.Process]:
    """All that `pid` started, directly or not, and itself."""
    process = psutil.Process(pid)
    return {process, *process.children(recursive=True)}


def alive(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; one that has ended and only waits to be asked for its exit code does not."""
    return {process for process in processes if _runs(process)}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Serving:
    """A running `equipoise serve`.

    Attributes:
        process: the command.
        urls: where it listens: `grpc`, `http`, `metrics`, `health`.
        temporary: where its run directory lies.
        family: every process it started so far.
    """

    process: subprocess.Popen[str]
    urls: Mapping[str, Any]
    temporary: Path
    family: set[psutil.Process] = field(default_factory=set)

    def health(self) -> tuple[int, dict[str, Any]]:
        """What its health port says: HTTP status and details; (0, {}) where nobody answers."""
        try:
            with urllib.request.urlopen(self.urls["health"], timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)
        except OSError:
            return 0, {}

    def processes(self) -> tuple[Process, ...]:
        """Triton and its stubs as they are now."""
        guardians = psutil.Process(self.process.pid).children()
        return tuple(each for guardian in guardians for each in server_processes(guardian.pid))

    def pid_of(self, model: str) -> int:
        """Of one process of a model, or of Triton (""), in which samplers of the native backend run."""
        pids = {each.model: each.pid for each in self.processes()}
        return pids.get(model, pids[""])

    def remains(self) -> dict[str, list[str]]:
        """What is left of it, by kind; empty: nothing."""
        others = {process for process in self.family if process.pid != self.process.pid}
        left = {
            "processes": [str(process.pid) for process in alive(others)],
            "shared memory": [path.name for path in Path("/dev/shm").glob(f"equipoise_{self.process.pid}_*")],
            "directories": [path.name for path in self.temporary.iterdir()],
        }
        return {kind: names for kind, names in left.items() if names}


@contextmanager
def serving(
    repository: Path,
    temporary: Path,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
    inside: Sequence[str] = (),
) -> Iterator[Serving]:
    """`equipoise serve` as a user starts it, ready; what a test leaves running is killed, its guardian cleans up.

    Args:
        inside: words that a command begins with to run somewhere else, as in a network namespace.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("equipoise")), "serve", str(repository), "--json", "--quiet"]
    ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics", "health")]
    process = subprocess.Popen(
        [*inside, *command, *ports, "--engine=embedded", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "TMPDIR": str(temporary)},
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        server = Serving(process, json.loads(line), temporary, descendants(process.pid))
        assert server.remains(), "a running server that leaves no trace: this would prove nothing"
        yield server
    finally:
        process.kill()
        process.communicate()
