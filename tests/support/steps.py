"""A run of steps, each a process of its own with a time of its own: one that fails, crashes or hangs stops no other.

A step is a function of (target, `Note`) that returns what it found in a sentence; the script that has the steps says
what their target is. `make gpu` and `make containers` are such scripts.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LEAST = 10.0
"""Seconds without which no step is begun."""


class Wrong(AssertionError):
    """Something is not as it must be; the message says what."""


class Absent(Exception):
    """What the step needs cannot be had on this machine; the message says why. No fault of what is tried."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        function: `module:name`.
        seconds: that it may take; it should begin nothing new after three quarters of them.
        must: whether its failure is the run's.
    """

    function: str
    seconds: float
    must: bool = True


Note = Callable[[str, Any], None]
"""Called with a name and a figure as soon as it is known: a step that is stopped keeps what it had."""


def noting(file: Path, figures: dict[str, Any]) -> Note:
    """Each figure goes to `figures` and, with those before it, to a file."""

    def note(name: str, value: Any) -> None:
        figures[name] = value
        file.write_text(json.dumps(figures, indent=1), encoding="utf-8")

    return note


def run_step(script: str, step: Step, seconds: float, options: Sequence[str] = ()) -> dict[str, Any]:
    """What came of it: `ok` (None: not run, or it could not be had), `seconds`, `words`, `figures`, `must`.

    Args:
        script: the module that has the steps; it is started again with `--step`, `--seconds`, `--into` and `options`.
    """
    entry: dict[str, Any] = {"must": step.must, "ok": None, "seconds": 0.0, "figures": {}}
    if seconds < LEAST:
        return {**entry, "words": "not run: the time of the whole run was over"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "result.json"
        words = [sys.executable, "-m", script, "--step", step.function, "--seconds", f"{seconds:g}"]
        process = subprocess.Popen([*words, "--into", str(into), *options], cwd=ROOT, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        for part in (_figures(into), into):
            if part.exists():
                found = json.loads(part.read_text(encoding="utf-8"))
                entry |= found if part == into else {"figures": found}
    if code is None:
        return {**entry, "ok": False, "words": f"stopped after {seconds:.0f} s"}
    if "words" not in entry:  # it ended before it could say anything
        return {**entry, "ok": False, "words": f"ended with exit code {code}, see its output"}
    return entry


def _end(process: subprocess.Popen[bytes]) -> None:
    """All of its session: a Triton's guardian sees that its starter is gone, and clears up."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _figures(into: Path) -> Path:
    return into.with_name("figures.json")


def one_step(function: str, target: Callable[[], Any], into: Path) -> int:
    """In a process of its own: runs it and writes what came of it."""
    module, name = function.split(":")
    figures = dict[str, Any]()
    result: dict[str, Any] = {"ok": False}
    try:
        words = getattr(importlib.import_module(module), name)(target(), noting(_figures(into), figures))
        result = {"ok": True, "words": words}
    except Absent as absent:
        result = {"ok": None, "words": f"could not be had: {absent}", "must": False}
    except Wrong as wrong:
        result["words"] = str(wrong)
    except Exception as error:  # a step that fails in an unforeseen way is a result as well
        result["words"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        into.write_text(json.dumps({**result, "figures": figures}), encoding="utf-8")
    return 1 if result["ok"] is False else 0


def measure(
    script: str,
    steps: Mapping[str, Step],
    names: Sequence[str],
    total: float,
    share: float = 1.0,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """The named steps in order, together within `total` seconds, each within `share` of its own time."""
    end, found = time.monotonic() + total, dict[str, Any]()
    for name in names:
        seconds = min(steps[name].seconds * share, end - time.monotonic())
        entry = found[name] = run_step(script, steps[name], seconds, options)
        print(f"{name}: {VERDICT[entry['ok']]}, {entry['seconds']:g} s: {entry['words']}", flush=True)
    return found


VERDICT: Mapping[bool | None, str] = {True: "ok", False: "FAILED", None: "not run"}


def failed(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Steps that had to come out right and did not."""
    return [name for name, entry in steps.items() if entry["must"] and not entry["ok"]]
