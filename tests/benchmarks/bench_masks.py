"""How long masks take to draw: the generator of new contracts against the one that older contracts name, T = 20.

    python -m tests.benchmarks.bench_masks [--p 0.2] [--rounds 15] [--bits 136 600 …] [--json F]

Layouts of one site. 136 and 600 bits are a small network's channels, 1.5 M the 30 M bits of MONAI's U-Net with its
default element dropout on 256² and T = 20. Rounds take turns; medians. `threads` is the new generator with as many
threads as it takes by itself; the other two columns are of one thread. Exits with 1 where a large layout is not 6 times
as fast, or a small one slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "model_repository" / "hippocampus" / "1"))

from equipoise_core.contract import BYTEWISE, PHILOX, Site, SiteKind  # noqa: E402
from equipoise_core.masks import MaskLayout, draw_masks  # noqa: E402

T = 20
DIGEST = "0123456789abcdef" * 4
BITS = (136, 600, 10_000, 1_000_000, 1_500_000, 7_000_000)
LARGE = 1_000_000
NOISE = 1.1  # two measurements of the same code differ by so much on a busy machine


def drawing(bits: int, p: float, generator: str, threads: int | None) -> Callable[[], object]:
    layout = MaskLayout((Site("site", SiteKind.ELEMENT, (bits,), p),), ((bits,),), generator)
    return lambda: draw_masks(layout, 1, DIGEST, 0, T, threads)


def nanoseconds(run: Callable[[], object], repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begun) / repeats * 1e9


def measure(bits: int, p: float, rounds: int) -> dict[str, float]:
    """Nanoseconds a bit and sample, and how many times as fast as before."""
    plans = {
        "before": drawing(bits, p, PHILOX, 1),
        "new": drawing(bits, p, BYTEWISE, 1),
        "threads": drawing(bits, p, BYTEWISE, None),
    }
    repeats = max(1, 200_000 // bits)
    for run in plans.values():
        run()  # tables, caches
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name, run in plans.items():
            taken[name].append(nanoseconds(run, repeats) / (bits * T))
    found = {name: median(each) for name, each in taken.items()}
    return {**found, **{f"faster_{name}": found["before"] / found[name] for name in ("new", "threads")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    print("     bits   before      new   threads   ns a bit and sample")
    found = {}
    for bits in options.bits:
        found[str(bits)] = each = measure(bits, options.p, options.rounds)
        print(
            f"{bits:9d}  {each['before']:7.3f}  {each['new']:7.3f}   {each['threads']:7.3f}   "
            f"{each['faster_new']:.2f} × and {each['faster_threads']:.2f} × as fast",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"p": options.p, "bits": found}, indent=1) + "\n", encoding="utf-8")
    return int(any(each["faster_new"] < (6 if int(bits) >= LARGE else 1 / NOISE) for bits, each in found.items()))


if __name__ == "__main__":
    raise SystemExit(main())
