"""Deploys for real, in containers on this machine: `make containers`.

    python -m tests.containers.run [--into build/containers] [--only compose …]

Each step is a process of its own (tests/support/steps.py); once the images are there, two run side by side. Base
images are stand-ins (`bases`), since no registry can be reached; images and containers live in a storage of their own
(`engine`), networks in a namespace of their own, so that the published ports are free and nothing outside can be
reached. Needs root. What cannot be had is said, and is no failure. Writes INTO/containers.json and prints a table.

Exit code: 1 where a step failed or did not finish, else 0.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.table import Table

from ..support.steps import VERDICT, Step, failed, measure, one_step
from .engine import BUILD, clean, missing

SCRIPT = "tests.containers.run"
STEPS: Mapping[str, Step] = {
    "front": Step("tests.containers.front:front", 500.0),
    "bases": Step("tests.containers.images:stand_ins", 900.0),
    "server image": Step("tests.containers.images:server", 400.0),
    "gateway image": Step("tests.containers.images:gateway", 400.0),
    "compose": Step("tests.containers.compose:compose", 300.0),
    "study": Step("tests.containers.studies:study_abroad", 400.0),
    "disk full": Step("tests.containers.studies:disk_full", 300.0),
    "watching": Step("tests.containers.watched:watching", 500.0),
    "stops": Step("tests.containers.stops:stops", 900.0),
    "chart": Step("tests.containers.chart:played", 600.0),
    "bundles": Step("tests.containers.installed:bundles", 900.0),
    "installed": Step("tests.containers.installed:installed", 1500.0),
}
"""In this order: each needs what those before it made."""
IMAGES = ("front", "bases", "server image", "gateway image")
BESIDE = ("bundles", "installed")
"""These need `IMAGES` and no other step, so they run beside the others."""
TOTAL = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=BUILD)
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of the whole run")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        return one_step(given.step, lambda: None, given.into)
    given.into.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if why := missing():
        found = {name: {"must": False, "ok": None, "seconds": 0.0, "words": why, "figures": {}} for name in given.only}
    else:
        try:
            found = run_steps(given.only, begin + given.seconds)
        finally:
            clean()
    seconds = round(time.monotonic() - begin, 1)
    document = {"seconds": seconds, "steps": found}
    (given.into / "containers.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = Table("step", "result", "s", "what was seen, or why not", title=f"{seconds:g} s", title_justify="left")
    for name, entry in found.items():
        table.add_row(name, VERDICT[entry["ok"]], f"{entry['seconds']:.0f}", entry["words"])
    Console(width=140).print(table)
    return 1 if failed(found) else 0


def run_steps(names: Sequence[str], end: float) -> dict[str, Any]:
    """What came of each, in their order; `end` is of time.monotonic()."""
    images = [name for name in names if name in IMAGES]
    beside = [name for name in names if name in BESIDE]
    others = [name for name in names if name not in (*IMAGES, *BESIDE)]
    found, given_up = dict[str, Any](), Event()

    def these(which: Sequence[str]) -> None:
        for name in which:
            if not given_up.is_set():
                found.update(measure(SCRIPT, STEPS, [name], end - time.monotonic()))

    with ThreadPoolExecutor(1) as pool:
        these(images)
        later = pool.submit(these, beside)
        try:
            these(others)
            later.result()
        except BaseException:  # such as Ctrl-C: what runs beside ends with its containers
            given_up.set()
            clean()
            raise
    return {name: found[name] for name in names}


if __name__ == "__main__":
    raise SystemExit(main())
