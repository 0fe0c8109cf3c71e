"""Runs the benchmarks one after the other and keeps what they measured: `make bench`.

    python -m tests.benchmarks.run [--quick] [--into build/benchmarks] [--only serving memory_flat …]

Each writes INTO/NAME.json; INTO/run.json says on what machine, which commit, when, with what result. `--quick` takes
small sizes and few rounds, and leaves out what cannot be short. `results.py` makes a page of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Benchmark:
    """A script and its arguments.

    Attributes:
        quick: the arguments of a quick run; None: left out of one.
        data: whether it needs the reference data, EQUIPOISE_DATA.
        root: whether it needs root.
    """

    script: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    data: bool = False
    root: bool = False

    def obstacle(self, quick: bool) -> str | None:
        """Why it cannot be run now."""
        if quick and self.quick is None:
            return "not in a quick run"
        if self.data and not os.environ.get("EQUIPOISE_DATA"):
            return "EQUIPOISE_DATA is not set"
        return "needs root" if self.root and os.geteuid() else None


BENCHMARKS = {
    "first_answer": Benchmark("bench_first_answer"),
    "export_cost": Benchmark("bench_export_cost", quick=("--size", "128", "--rounds", "3")),
    "export": Benchmark("bench_export", quick=("--networks", "small")),
    "serving": Benchmark("bench_serving", quick=("--size", "128", "--rounds", "1", "--seconds", "3", "--closed-only")),
    "load_generator": Benchmark("bench_load_generator", quick=("--rounds", "1", "--seconds", "3")),
    "memory_flat": Benchmark("bench_memory", ("flat",), ("flat", "--requests", "1000")),
    "memory_large": Benchmark("bench_memory", ("large",)),
    "memory_volume": Benchmark("bench_memory", ("volume",)),
    "masks": Benchmark("bench_masks", quick=("--rounds", "5")),
    "stages": Benchmark("bench_stages", quick=(), data=True),
    "aggregator": Benchmark("bench_aggregator", quick=("--cases", "2", "--rounds", "3"), data=True),
    "decisions": Benchmark("bench_decisions", quick=("--cases", "20"), data=True),
    "volumes": Benchmark("bench_volumes", data=True),
    "adapt": Benchmark("bench_adapt", quick=("pneumonia",), data=True),
    "active_learning": Benchmark("bench_active_learning", data=True),
    "faults": Benchmark("bench_faults", quick=("a killed Triton", "another version"), root=True),
    "soak": Benchmark("bench_soak", ("--minutes", "20"), ("--minutes", "2")),
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if "model name" in line),
        platform.machine(),
    )
    packages = ("torch", "onnxruntime", "nvidia-pytriton", "numpy")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    for old in options.into.glob("*.json"):
        old.unlink()  # one run, one page
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    done: dict[str, Any] = {}
    left_out: dict[str, str] = {name: "not asked for" for name in BENCHMARKS if name not in options.only}
    for name in options.only:
        benchmark = BENCHMARKS[name]
        obstacle = benchmark.obstacle(options.quick)
        if obstacle is not None:
            left_out[name] = obstacle
            print(f"{name} is left out: {obstacle}", flush=True)
            continue
        arguments = (benchmark.quick or ()) if options.quick else benchmark.full
        command = ["-m", f"tests.benchmarks.{benchmark.script}", *arguments]
        print(f"\n{name}: python {' '.join(command)}", flush=True)
        begun = time.monotonic()
        code = subprocess.run(
            [sys.executable, *command, "--json", str(options.into / f"{name}.json")], cwd=ROOT
        ).returncode
        done[name] = {"seconds": round(time.monotonic() - begun), "exit": code, "arguments": arguments}
        document = {
            "quick": options.quick,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": commit.strip(),
            "machine": machine(),
            "benchmarks": done,
            "left_out": left_out,
        }
        (options.into / "run.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, each in done.items() if each["exit"]]
    if failed:
        print(f"not kept or not finished: {', '.join(failed)}", file=sys.stderr)
    return 0  # a promise that was not kept belongs on the page, not in place of it


if __name__ == "__main__":
    raise SystemExit(main())
