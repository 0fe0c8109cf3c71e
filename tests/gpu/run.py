"""Measures this machine's GPU, or says that there is none and runs on the CPU: `make gpu`.

    python -m tests.gpu.run [--small] [--into build/gpu] [--only parity …] [--seconds 480]

Nothing is fetched. Each step is a process of its own with a time of its own, so that one that fails, crashes or hangs
stops no other: smoke, parity, distribution (`answers.py`), rebuilds, throughput with the host's share (`speed.py`),
memory, recovery (`limits.py`). They write INTO/gpu.json, and INTO/gpu.html for people. What is served is the Triton of
the wheel on the device that EQUIPOISE_DEVICE chooses, or the one that EQUIPOISE_TRITON_BINARY names (see `engine`).

Exit code: 1 where a step that says whether answers are right failed or did not finish, else 0.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # as the server has it: single precision is single precision


@dataclass(frozen=True)
class Step:
    """One measurement: a function of (`Target`, `Note`) that returns what it found in a sentence.

    Attributes:
        seconds: that it may take; it should begin nothing new after three quarters of them.
        must: whether its failure is the run's.
    """

    function: str
    seconds: float
    must: bool = True

    def command(self, small: bool, seconds: float, into: Path) -> list[str]:
        words = [sys.executable, "-m", "tests.gpu.run", "--step", self.function, "--seconds", f"{seconds:g}"]
        return [*words, "--into", str(into), *(["--small"] if small else [])]


STEPS: Mapping[str, Step] = {
    "smoke": Step("tests.gpu.answers:smoke", 60.0),
    "parity": Step("tests.gpu.answers:parity", 100.0),
    "distribution": Step("tests.gpu.answers:distribution", 50.0),
    "rebuilds": Step("tests.gpu.speed:rebuilds", 60.0, must=False),
    "throughput": Step("tests.gpu.speed:throughput", 170.0, must=False),
    "memory": Step("tests.gpu.limits:memory", 60.0),
    "recovery": Step("tests.gpu.limits:recovery", 60.0),
}
"""In this order. Their sum is more than a run may take: hardly any needs all of its time."""
TOTAL = 480.0
ON_CPU = 3.0
"""How many times as long all of it may take where there is no GPU."""
LEAST = 10.0
"""Seconds without which no step is begun."""


def run_step(step: Step, small: bool, seconds: float) -> dict[str, Any]:
    """What came of it: `ok` (None: not run), `seconds`, `words`, `figures`, `must`."""
    entry: dict[str, Any] = {"must": step.must, "ok": None, "seconds": 0.0, "figures": {}}
    if seconds < LEAST:
        return {**entry, "words": "not run: the time of the whole run was over"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "result.json"
        process = subprocess.Popen(step.command(small, seconds, into), cwd=ROOT, start_new_session=True)
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
    words = entry.get("words", f"ended with exit code {code}, see its output")
    return {**entry, "ok": bool(entry["ok"]), "words": words}


def _end(process: subprocess.Popen[bytes]) -> None:
    """All of its session: a Triton's guardian sees that its starter is gone, and clears up."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _figures(into: Path) -> Path:
    return into.with_name("figures.json")


def one_step(function: str, small: bool, seconds: float, into: Path) -> int:
    """In a process of its own: runs it and writes what came of it."""
    from .target import Target, Wrong, noting

    module, name = function.split(":")
    begin, figures = time.monotonic(), dict[str, Any]()
    result: dict[str, Any] = {"ok": False}
    try:
        target = Target(small, 0.75 * seconds, begin)
        words = getattr(importlib.import_module(module), name)(target, noting(_figures(into), figures))
        result = {"ok": True, "words": words}
    except Wrong as wrong:
        result["words"] = str(wrong)
    except Exception as error:  # a step that fails in an unforeseen way is a result as well
        result["words"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        into.write_text(json.dumps({**result, "figures": figures}), encoding="utf-8")
    return 0 if result["ok"] else 1


def measure(small: bool, total: float, names: Sequence[str], steps: Mapping[str, Step] = STEPS) -> dict[str, Any]:
    """The steps in order, together within `total` seconds, each within the share of them that it has of `TOTAL`."""
    end, found = time.monotonic() + total, dict[str, Any]()
    for name in names:
        seconds = min(steps[name].seconds * total / TOTAL, end - time.monotonic())
        entry = found[name] = run_step(steps[name], small, seconds)
        print(f"{name}: {_VERDICT[entry['ok']]}, {entry['seconds']:g} s: {entry['words']}", flush=True)
    return found


_VERDICT = {True: "ok", False: "FAILED", None: "not run"}


def failed(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Steps that had to come out right and did not."""
    return [name for name, entry in steps.items() if entry["must"] and not entry["ok"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes of a test: figures mean nothing")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seconds", type=float, help=f"of the whole run; {TOTAL:g} on a GPU, more on the CPU")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        return one_step(given.step, given.small, given.seconds, given.into)
    from .page import write_page
    from .target import machine, on_gpu

    given.into.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "small": given.small,
        "machine": machine(on_gpu()),
    }
    print(f"device: {document['machine']['device']} ({document['machine']['processor']})", flush=True)
    total = given.seconds or (TOTAL if document["machine"]["device"] == "cuda" else ON_CPU * TOTAL)
    document["steps"] = measure(given.small, total, given.only)
    document["seconds"] = round(time.monotonic() - begin, 1)
    (given.into / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    write_page(document, given.into / "gpu.html")
    wrong = failed(document["steps"])
    print(f"{given.into / 'gpu.html'}: {document['seconds']:g} s in all; failed: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _commit() -> str:
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
