"""What requests feel while something dies, hangs, is cut off or is replaced: the faults of tests/support/faults.py.

    python tests/benchmarks/bench_faults.py [--rate 15] [--rounds 3] [--report faults.json] [NAME…]

Two `equipoise serve` of a tiny model behind HAProxy with mutual TLS on this machine; latency counts from when a request
was due. Needs root (a network namespace).
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from equipoise_export.publish.repository import publish_pair  # noqa: E402

from ..support.faults import APART, FAULTS, MODEL, fleet, suffered  # noqa: E402
from ..support.repositories import with_policy  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(FAULTS)}; default all")
    parser.add_argument("--rate", type=float, default=15.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write JSON here")
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
    if arguments.report:
        arguments.report.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def _versions(folder: Path) -> tuple[Path, Path]:
    """The same model with a policy and without one."""
    spec = importlib.util.spec_from_file_location("tiny_models", ROOT / "tests" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name in ("one", "two"):
        publish_pair(module.tiny_classifier.__wrapped__(), folder / name)
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
