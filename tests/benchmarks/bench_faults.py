"""What requests feel while something dies, hangs, is cut off or is replaced: the faults of tests/support/faults.py.

    python -m tests.benchmarks.bench_faults [--rate 15] [--rounds 3] [--json F] [NAME…]

Two `equipoise serve` of a tiny model behind HAProxy with mutual TLS on this machine; latency counts from when a request
was due. Needs root (a network namespace).
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from equipoise_export.publish.repository import publish_pair  # noqa: E402

from ..conftest import tiny_classifier  # noqa: E402
from ..support.faults import APART, FAULTS, MODEL, fleet, suffered  # noqa: E402
from ..support.repositories import with_policy  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(FAULTS)}; default all")
    parser.add_argument("--rate", type=float, default=15.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as temporary:
        versions = _versions(Path(temporary))
        for number in range(arguments.rounds):
            for name in arguments.names or FAULTS:
                folder = (
                    Path(temporary) / f"{number}_{name.replace(' ', '_')}"
                )  # Triton cannot start a stub where a path has spaces
                folder.mkdir()
                with fleet(versions, folder, apart=name in APART) as made:
                    reports.append(suffered(made, name, arguments.rate))
                _show(reports[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def _versions(folder: Path) -> tuple[Path, Path]:
    """The same model with a policy and without one."""
    for name in ("one", "two"):
        publish_pair(tiny_classifier.__wrapped__(), folder / name)
    with_policy(folder / "one" / MODEL)
    return folder / "one", folder / "two"


def _show(report: dict) -> None:
    times = ", ".join(f"{name} after {value:.1f} s" for name, value in report["seconds"].items())
    p99 = " / ".join(f"{report[f'ms {part}'].get('p99', float('nan')):.0f}" for part in ("before", "during", "after"))
    proxy = report["sent again by the reverse proxy"]
    again = f"{report['sent again by the client']} by the client, {proxy} by the reverse proxy"
    bad = f"{len(report['lost'])} lost, {report['wrong']} wrong, {report['accepted wrongly']} accepted wrongly"
    print(f"{report['fault']:30} {report['requests']} requests: {bad}; sent again {again}")
    print(
        f"{'':30} p99 before / during / after {p99} ms, longest {report['ms during'].get('max')} ms; {times}",
        flush=True,
    )


if __name__ == "__main__":
    main()
