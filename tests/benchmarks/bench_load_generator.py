"""The load generator's own error: against a server whose latency is known, and against NVIDIA's perf_analyzer.

    python -m tests.benchmarks.bench_load_generator [--rounds 3] [--seconds 8] [--perf-analyzer FOLDER] [--json F]

Without `--perf-analyzer`, its binary is fetched from a tritonclient wheel that still carried it, and linked with the
libraries that the Triton wheel brings. Both send the same closed-loop load to the same embedded server, in turn; what
is compared is the median over rounds of p50. Exits with 1 unless the truth is met within 2 ms and perf_analyzer within
15 %; run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "deploy"), str(ROOT / "model_repository/hippocampus/1")]

from dataclasses import replace  # noqa: E402

from equipoise_client import UncertaintyClient  # noqa: E402
from equipoise_client.transport import Retry  # noqa: E402
from equipoise_deploy.ports import Ports  # noqa: E402
from equipoise_deploy.serving.server import TritonServer  # noqa: E402
from equipoise_load.analyzer import write_analyzer  # noqa: E402
from equipoise_load.arrivals import Arrivals  # noqa: E402
from equipoise_load.engine import Plan, run  # noqa: E402
from equipoise_load.mix import Wish, build_mix  # noqa: E402
from equipoise_load.tally import report_of  # noqa: E402

from ..load.test_truth import ONE, exact, plan  # noqa: E402

WHEEL = "tritonclient==2.48.0"  # a later wheel has no perf_analyzer any more


def truth(rounds: int, seconds: float) -> dict[str, float]:
    """p50 and p99 in ms of 500 requests a second against a server that answers in 20 ms."""
    found = []
    for _ in range(rounds):
        with exact(0.02) as url:
            asked = plan(url, 500.0, arrivals=Arrivals.POISSON, duration=seconds, warmup=1.0, connections=4)
            found.append(report_of(run(asked, [ONE]), ["one"], [1.0], True)["latency_ms"])
    p50, p99 = (statistics.median(each[name] for each in found) for name in ("p50", "p99"))
    print(f"500/s against 20 ms: p50 {p50:.2f} ms, p99 {p99:.2f} ms (median of {rounds}; within 2 ms of 20 is wanted)")
    return {"p50": p50, "p99": p99}


def fetch_analyzer(folder: Path) -> Path:
    """Downloads the wheel and lays the binary out with the libraries it was linked against."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--platform", "manylinux1_x86_64"]
    subprocess.run([*command, "--only-binary=:all:", WHEEL, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("tritonclient-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("data/bin/perf_analyzer")]
        (folder / "perf_analyzer").write_bytes(archive.read(name))
    (folder / "perf_analyzer").chmod(0o755)
    spec = find_spec("pytriton")
    assert spec is not None and spec.origin is not None
    libraries = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    for pattern, link in (("libb64-*", "libb64.so.0d"), ("libcudart-*", "libcudart.so.12")):
        (folder / link).symlink_to(next(libraries.glob(pattern)))
    return folder


def ratio(rounds: int, seconds: float, analyzer: Path, repository: Path = ROOT / "model_repository") -> float:
    """p50 of the same closed-loop load by ours, over theirs.

    Raises:
        CalledProcessError: perf_analyzer calls itself unstable.
    """
    ours, theirs = [], []
    with (
        tempfile.TemporaryDirectory() as scratch,
        TritonServer(repository, ports=Ports(0, 0, 0)) as server,
        UncertaintyClient(server.grpc_url) as client,
    ):
        mix = build_mix(client, Wish({"pneumonia": 1.0}, (), (20,), 0.0, ("mean", "variance"), 10.0))
        closed = Plan(server.grpc_url, Arrivals.CLOSED, 1.0, 4, 1.0, seconds, 10.0, Retry(1), 4)
        # perf_analyzer asks for every output: so do we.
        mix = tuple(replace(payload, message=_everything(payload.message)) for payload in mix)
        command = write_analyzer(closed, mix, Path(scratch))
        libraries = f"{analyzer}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        for turn in range(rounds):
            ours.append(report_of(run(closed, mix), ["one"], [1.0], False)["latency_ms"]["p50"])
            file = Path(scratch) / f"{turn}.csv"
            subprocess.run(
                [str(analyzer / "perf_analyzer"), *command[1:], "-f", str(file), "--stability-percentage", "50"],
                env={**os.environ, "LD_LIBRARY_PATH": libraries}, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            with file.open() as table:
                theirs.append(float(next(csv.DictReader(table))["p50 latency"]) / 1e3)
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"closed loop of 4: p50 {a:.2f} ms by equipoise load, {b:.2f} ms by perf_analyzer, ratio {a / b:.3f}")
    print(json.dumps({"ours": ours, "theirs": theirs}))
    return a / b


def agrees(ratio: float) -> bool:
    return abs(ratio - 1.0) <= 0.15


def agreement(rounds: int, seconds: float, analyzer: Path, repository: Path = ROOT / "model_repository") -> bool:
    return agrees(ratio(rounds, seconds, analyzer, repository))


def _everything(message: bytes) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest.FromString(message)
    del request.outputs[:]
    return request.SerializeToString()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--perf-analyzer", type=Path, help="folder with the binary and its libraries")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        known = truth(given.rounds, given.seconds)
        analyzer = given.perf_analyzer or fetch_analyzer(Path(scratch))
        found = ratio(given.rounds, given.seconds, analyzer)
    if given.json:
        given.json.write_text(json.dumps({"truth": known, "ratio": found}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(abs(ms - 20.0) <= 2.0 for ms in known.values()) and agrees(found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
