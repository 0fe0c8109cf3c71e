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

from equipoise_deploy.serving.processes import Process, server_processes

Identity = tuple[int, str]
"""Process id and start time: together they never come back, a process id alone does."""


def descendants(pid: int) -> set[Identity]:
    """All that `pid` started, directly or not, and itself."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        found = _stat(int(directory.name))
        if found is not None:
            children.setdefault(int(found[1]), []).append(int(directory.name))
    family, waiting = set(), [pid]
    while waiting:
        one = waiting.pop()
        found = _stat(one)
        if found is not None:
            family.add((one, found[19]))
        waiting += children.get(one, [])
    return family


def alive(processes: set[Identity]) -> set[Identity]:
    """Those that still run; one that has ended and only waits to be asked for its exit code does not."""
    stats = {process: _stat(process[0]) for process in processes}
    return {process for process, found in stats.items() if found and found[19] == process[1] and found[0] != "Z"}


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: [0] state, [1] parent, [19] start time; None: no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


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
    family: set[Identity] = field(default_factory=set)

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
        guardians = [
            pid for pid, _ in descendants(self.process.pid) if (_stat(pid) or ["", ""])[1] == str(self.process.pid)
        ]
        return tuple(each for pid in guardians for each in server_processes(pid))

    def remains(self) -> dict[str, list[str]]:
        """What is left of it, by kind; empty: nothing."""
        others = {process for process in self.family if process[0] != self.process.pid}
        left = {
            "processes": [str(pid) for pid, _ in alive(others)],
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
