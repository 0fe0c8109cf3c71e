"""The process between `equipoise serve` and Triton; it outlives both for a moment to clean up after them.

Whatever ends first (the caller by any signal, even SIGKILL, or Triton itself), afterwards no process of the server, no
shared-memory file and no run directory is left. It runs as a script with the standard library only, so that it starts
in a few milliseconds. Closing its standard input, or SIGTERM, asks it to stop the server; its exit code is Triton's, or
128 plus the number of the signal that ended it. Where Triton cannot stop in order (a dead process of a model delays
that by half a minute), SIGUSR1 stops it within a few seconds and SIGUSR2 at once.

A Triton that is stopping refuses the sampler to the public models, so that every accepted request would fail.
Therefore it gets its SIGTERM only after these are answered (`Drain`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
STOPPING_FILE = "stopping"
"""In the run directory: while it exists, the public models refuse new requests."""

IN_FLIGHT_FILES = "in_flight-*-*"
"""Beside it: one of each public model's processes, its number and the model's name; see `in_flight`."""

BRIEFLY, AT_ONCE = signal.SIGUSR1, signal.SIGUSR2
_HURRIED = {BRIEFLY: 3.0, AT_ONCE: 0.0}  # seconds to answer accepted requests before everything is killed
_CHECK_EVERY = 0.05  # seconds between two checks of the metrics
_INSTANCES = 16  # at most so many requests per model are between its queue and the count of those begun
_UNSEEN = 10.0  # seconds to wait for an accepted request while nothing runs and no number changes
_ENDING = 10.0  # seconds that Triton has to end once all is answered; what it still waits for is no request
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX puts shared memory, not a temporary file


def main() -> int:
    arguments = _arguments()
    libc = ctypes.CDLL(None, use_errno=True)
    # Triton's stubs become this process's children when Triton dies: it can then see that all of them are gone.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = _signal_pipe(signal.SIGTERM, signal.SIGINT, *_HURRIED)
    server = subprocess.Popen(
        arguments.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal reaches the caller only, which stops the server in order
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
    )
    try:
        drain = Drain(arguments.metrics_port, arguments.directory / STOPPING_FILE, arguments.metrics_address)
        _watch(server, signals, drain, arguments.drain, arguments.grace)
    finally:
        _kill_group(server.pid)
        _reap()
        for file in _SHARED_MEMORY.glob(f"{arguments.prefix}*"):
            file.unlink(missing_ok=True)
        shutil.rmtree(arguments.directory, ignore_errors=True)
    code = server.returncode
    return 1 if code is None else code if code >= 0 else 128 - code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grace", type=float, required=True, help="seconds that Triton has to finish what it accepted")
    parser.add_argument("--prefix", required=True, help="prefix of the server's shared-memory files")
    parser.add_argument("--directory", required=True, type=Path, help="run directory, removed in the end")
    parser.add_argument("--metrics-port", required=True, type=int, help="where Triton's metrics are")
    parser.add_argument("--metrics-address", default="127.0.0.1")
    parser.add_argument(
        "--drain", type=float, required=True, help="seconds to answer what was accepted before the stop"
    )
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _signal_pipe(*numbers: int) -> int:
    """A descriptor that becomes readable when one of the signals arrives; the signals do nothing else."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reading


@dataclass
class _Load:
    """Of one public model: requests in its queue, being answered, and answered since it was loaded."""

    queued: float = 0.0
    running: float = 0.0
    answered: float = 0.0

    @property
    def begun(self) -> float:
        return self.running + self.answered


def in_flight(directory: Path) -> dict[str, tuple[int, int]]:
    """Public model → requests that its processes are answering, and sampler calls that these wait for.

    A model of an earlier release does not say how many calls: one for each request.
    """
    counts: dict[str, tuple[int, int]] = {}
    for file in directory.glob(IN_FLIGHT_FILES):
        _, process, model = file.name.split("-", 2)
        if not Path(f"/proc/{process}").exists():  # killed in the middle of a request, which Triton has failed
            continue
        with contextlib.suppress(FileNotFoundError):  # the server ends, and its directory with it
            content, (requests, calls) = file.read_bytes(), counts.get(model, (0, 0))
            answering, waiting = content[:4], content[4:] or content[:4]
            counts[model] = requests + int.from_bytes(answering, "little"), calls + int.from_bytes(waiting, "little")
    return counts


class Drain:
    """Whether every request that was accepted before the stop is answered, by Triton's metrics and the models' files.

    Queues are first-in-first-out: once as many requests have begun as were waiting at the stop, the file `flag` makes
    the public models refuse new ones, and the last accepted ones only have to finish.

    Between its model's queue and its model's process a request is counted nowhere, on a machine that stands still for
    as long as that lasts. So a model is idle when it has answered as many as it is known to have accepted. As Triton
    2.51 counts, each one ends in one count, cancelled or not; should one not, it is waited for `_UNSEEN` seconds. The
    same holds for one that stays in a queue although its model is free to take it: cancelled, as nobody takes it up.
    """

    def __init__(
        self,
        metrics_port: int,
        flag: Path,
        metrics_address: str = "127.0.0.1",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._port = metrics_address, metrics_port
        self._flag, self._clock = flag, clock
        self._known: dict[str, float] = {}  # model → so many it has accepted, at least
        self._still: dict[str, tuple[float, _Load]] = {}  # model → since when, and with which numbers, nothing moves
        self._targets: dict[str, float] = {}
        self._refusing = False
        self._quiet_checks = 0

    def done(self) -> bool:
        """Checks once; also True where nobody listens any more, since then there is nothing to wait for."""
        try:
            before, loads = self._loads(), self._loads()
        except TimeoutError:  # busy; the caller's deadline limits this
            self._quiet_checks = 0
            return False
        except OSError:
            return True
        for name, load in loads.items():
            self._targets.setdefault(name, load.begun + load.queued + _INSTANCES)
            # From two checks: within one a request can move on between two numbers and count twice. Answered, running
            # and waiting requests are read in this order, so over two checks it can only be missed.
            known = before[name].begun + load.queued if name in before else 0.0
            self._known[name] = max(self._known.get(name, 0.0), known)
        idle = {name for name, load in loads.items() if self._idle(name, load)}
        quiet = not any(load.running for load in loads.values()) if self._refusing else len(idle) == len(loads)
        # Twice in a row: a request that was just accepted may not be in any number yet.
        self._quiet_checks = self._quiet_checks + 1 if quiet else 0
        begun = all(name in idle or load.begun >= self._targets[name] for name, load in loads.items())
        if begun and not quiet and not self._refusing:
            with contextlib.suppress(OSError):  # no room, or the directory is gone: answers go on
                self._flag.touch()
            self._refusing = True
        return self._quiet_checks >= 2

    def _idle(self, name: str, load: _Load) -> bool:
        """Whether nothing waits, nothing runs, and nothing is on its way between the two."""
        since, before = self._still.setdefault(name, (self._clock(), load))
        if load.running or load != before:
            self._still[name] = since, _ = self._clock(), load
        if load.running:
            return False
        answered = not load.queued and load.answered >= self._known[name]
        return answered or self._clock() - since >= _UNSEEN

    def _loads(self) -> dict[str, _Load]:
        """Of the public models: those whose processes say how many requests they are answering."""
        page, loads = self._page(), {name: _Load(running=running) for name, running in self._in_flight().items()}
        for name, model, value in re.findall(r'^(\w+)\{[^}]*\bmodel="([^"]*)"[^}]*\} (\S+)$', page, re.MULTILINE):
            if (load := loads.get(model)) is None:
                continue
            if name == "nv_inference_pending_request_count":
                load.queued += float(value)
            elif name in ("nv_inference_request_success", "nv_inference_request_failure"):
                load.answered += float(value)
        return loads

    def _in_flight(self) -> dict[str, float]:
        return {model: requests for model, (requests, _) in in_flight(self._flag.parent).items()}

    def _page(self) -> str:
        import http.client  # not before it is needed: the start should be fast

        connection = http.client.HTTPConnection(self._address, self._port, timeout=2)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


def _watch(server: subprocess.Popen[bytes], signals: int, drain: Drain, patience: float, grace: float) -> None:
    """Passes the log on until Triton has ended, by itself or on request.

    On a request to stop, Triton gets `patience` seconds to answer what it accepted, then SIGTERM, and is killed when
    ending takes longer than `grace` seconds, or `_ENDING` where all was answered. On a request to hurry, before or
    after that, it gets less and is killed.
    """
    assert server.stdout is not None
    log = server.stdout.fileno()
    ended = os.pidfd_open(server.pid)
    selector = selectors.DefaultSelector()
    for descriptor in (sys.stdin.fileno(), signals, log, ended):
        selector.register(descriptor, selectors.EVENT_READ)
    deadline: float | None = None  # of draining, then of ending
    check_at: float | None = None  # when to check next whether it has drained
    while True:
        next_event = check_at if check_at is not None else deadline
        timeout = None if next_event is None else max(0.0, next_event - time.monotonic())
        ready = [key.fd for key, _ in selector.select(timeout)]
        if log in ready:
            block = os.read(log, 1 << 16)
            if block:
                _write(block)
            else:
                selector.unregister(log)
        elif ended in ready:
            server.wait()
            return
        elif ready:
            # The caller's end of standard input, or a signal. The first asks Triton to stop; later ones may hurry it.
            if sys.stdin.fileno() in ready:
                selector.unregister(sys.stdin.fileno())
            numbers = os.read(signals, 64) if signals in ready else b""
            hurried = [seconds for number, seconds in _HURRIED.items() if number in numbers]
            if hurried:
                patience, grace = min(hurried), 0.0
            if deadline is None or hurried:
                check_at = time.monotonic()
                deadline = check_at + patience
        now = time.monotonic()
        if check_at is not None and deadline is not None and now >= check_at:
            check_at = now + _CHECK_EVERY
            if (late := now >= deadline) or drain.done():
                server.terminate()
                grace = grace if late else min(grace, _ENDING)
                check_at, deadline = None, time.monotonic() + grace
        elif check_at is None and deadline is not None and now >= deadline:
            if grace:
                _write(f"Triton did not stop within {grace:g} s and is killed\n".encode())
            _kill_group(server.pid)
            server.wait()
            return


def _write(block: bytes) -> None:
    try:
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except OSError:
        # The caller is gone. Triton still has to end in order, so keep emptying its pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the ordinary case: everything has ended by itself
        os.killpg(group, signal.SIGKILL)


def _reap() -> None:
    """Waits until every process that descended from Triton has ended."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main())
