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
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..support.steps import Step, failed, one_step
from ..support.steps import measure as run_all

ROOT = Path(__file__).parents[2]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # as the server has it: single precision is single precision


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
SCRIPT = "tests.gpu.run"


def measure(small: bool, total: float, names: Sequence[str], steps: Mapping[str, Step] = STEPS) -> dict[str, Any]:
    """The steps in order, together within `total` seconds, each within the share of them that it has of `TOTAL`."""
    return run_all(SCRIPT, steps, names, total, total / TOTAL, ["--small"] if small else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes of a test: figures mean nothing")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seconds", type=float, help=f"of the whole run; {TOTAL:g} on a GPU, more on the CPU")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    begin = time.monotonic()
    if given.step:
        from .target import Target

        return one_step(given.step, lambda: Target(given.small, 0.75 * given.seconds, begin), given.into)
    from .page import write_page
    from .target import machine, on_gpu

    given.into.mkdir(parents=True, exist_ok=True)
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
