"""An hour under half of what the server can do: memory, descriptors, threads and /dev/shm flat, p99 where it was.

    python -m tests.benchmarks.bench_soak [--minutes 60] [--json F] [--plot F.png]

`tests/support/soak.py` says what is run, looked at and promised. The first fifth of the time is for settling.
Compared are the medians of the first and of the last third of what is left: memory may grow by 3 %, /dev/shm not at
all, p99 may drift by 10 % either way. Exit code 1 where a promise was not kept, or a request got no answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("export", "client", "deploy"))]
sys.path.insert(0, str(ROOT / "model_repository" / "hippocampus" / "1"))

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402

from ..support.resources import MB  # noqa: E402
from ..support.soak import Soak, soak, verdicts  # noqa: E402

CONSOLE = Console()


def tables(found: Soak) -> tuple[Table, Table]:
    """By role at the beginning and at the end, and the promises."""
    first, last = found.steady[0], found.steady[-1]
    held = Table("", "MB (PSS)", "descriptors", "threads", title="after settling → at the end")
    for role in sorted(first.roles):
        a, b = first.roles[role], last.roles.get(role)
        if b is not None:
            memory = f"{a.pss / MB:.1f} → {b.pss / MB:.1f}"
            held.add_row(role, memory, f"{a.descriptors} → {b.descriptors}", f"{a.threads} → {b.threads}")
    held.add_row("/dev/shm", f"{first.shared / MB:.1f} → {last.shared / MB:.1f}", "", "")
    promises = Table("promise", "measured", "allowed", "kept", title="promises")
    for each in verdicts(found):
        promises.add_row(each.what, f"{each.measured:.3g}", f"{each.bound:g}", "yes" if each.kept else "[red]no[/]")
    return held, promises


def plot(found: Soak, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    step = 60.0 * found.minutes / max(1, len(found.latency))
    minutes = [(index + 0.5) * step / 60.0 for index in range(len(found.latency))]
    for column, name, colour in ((1, "p99", "#b5442e"), (0, "p50", "#1f5a92")):
        values = [each[column] if each else float("nan") for each in found.latency]
        above.plot(minutes, values, label=name, color=colour)
    above.set_ylabel("latency, ms")
    below.plot([look.second / 60.0 for look in found.looks], [look.total.pss / MB for look in found.looks], label="PSS")
    below.plot(
        [look.second / 60.0 for look in found.looks], [look.shared / MB for look in found.looks], label="/dev/shm"
    )
    below.set_ylabel("MB")
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory() as temporary,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("starting", total=1.0)
        found = soak(
            given.minutes,
            min(60.0, 2.0 * given.minutes),  # each minute, or thirty times
            Path(temporary),
            lambda share, words: progress.update(task, completed=share, description=words),
        )
    load = f"{found.rate:.1f} a second, half of {found.capacity:.1f}"
    CONSOLE.print(f"{found.minutes:g} minutes at {load}: {found.answered} answered, {found.lost} not")
    for table in tables(found):
        CONSOLE.print(table)
    if given.json:
        given.json.write_text(json.dumps(found.document(), indent=1))
    if given.plot:
        plot(found, given.plot)
    return 0 if all(each.kept for each in verdicts(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
