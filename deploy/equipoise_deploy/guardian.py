"""Stands between `equipoise serve` and Triton, and outlives both for a moment to clean up after them.

Whatever ends first (the caller by any signal, even SIGKILL, or Triton itself), afterwards no process of the server, no
shared-memory file and no run directory is left. Run as a script, with the standard library only, so that it starts in
a few milliseconds. Closing its standard input, or SIGTERM, asks it to stop the server; its exit code is Triton's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX puts shared memory, not a temporary file


def main() -> int:
    arguments = _arguments()
    libc = ctypes.CDLL(None, use_errno=True)
    # Triton's stubs become this process's children when Triton dies: it can then see that all of them are gone.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = _signal_pipe(signal.SIGTERM, signal.SIGINT)
    server = subprocess.Popen(
        arguments.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C in the terminal is for the caller, who then stops the server in order
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
    )
    try:
        _watch(server, signals, arguments.grace)
    finally:
        _kill_group(server.pid)
        _reap()
        for file in _SHARED_MEMORY.glob(f"{arguments.prefix}*"):
            file.unlink(missing_ok=True)
        shutil.rmtree(arguments.directory, ignore_errors=True)
    return server.returncode if server.returncode is not None and server.returncode >= 0 else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grace", type=float, required=True, help="seconds that Triton has to finish what it accepted")
    parser.add_argument("--prefix", required=True, help="prefix of the server's shared-memory files")
    parser.add_argument("--directory", required=True, help="run directory, removed in the end")
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


def _watch(server: subprocess.Popen[bytes], signals: int, grace: float) -> None:
    """Passes the log on until Triton has ended, by itself or because it was asked to."""
    assert server.stdout is not None
    log = server.stdout.fileno()
    ended = os.pidfd_open(server.pid)
    selector = selectors.DefaultSelector()
    for descriptor in (sys.stdin.fileno(), signals, log, ended):
        selector.register(descriptor, selectors.EVENT_READ)
    deadline: float | None = None
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
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
            # The caller's end of standard input, or a signal. The first asks Triton to stop; later ones change nothing.
            if sys.stdin.fileno() in ready:
                selector.unregister(sys.stdin.fileno())
            if signals in ready:
                os.read(signals, 64)
            if deadline is None:
                server.terminate()
                deadline = time.monotonic() + grace
        else:
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
