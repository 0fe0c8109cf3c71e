"""Memory: flat over thousands of requests, independent of T for large images, and what a whole CT volume takes.

    python -m tests.benchmarks.bench_memory flat  [--requests 10000] [--json F]
    python -m tests.benchmarks.bench_memory large [--json F]
    python -m tests.benchmarks.bench_memory volume [--size 512 512 120] [--samples 4] [--json F]

flat    sums the proportional set size of the server and all its stubs, and what lies in /dev/shm, every 1000 requests
        after a warm-up of 2000; exits with 1 where either grows by more than 2 %.
large   the same volume with T = 5 and T = 20, a fresh server for each: the peaks (summed high-water marks of all
        processes, and of /dev/shm) may differ by 10 %; exits with 1 where they don't keep that.
volume  one request of that size to hippocampus's public model: time and peaks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("export", "client", "deploy"))]
sys.path.insert(0, str(ROOT / "model_repository" / "hippocampus" / "1"))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from equipoise_client import UncertaintyClient  # noqa: E402
from equipoise_client.images.synthetic import synthetic_image  # noqa: E402
from equipoise_deploy.ports import Ports  # noqa: E402
from equipoise_deploy.serving.readiness import check_readiness  # noqa: E402
from equipoise_deploy.serving.server import TritonServer  # noqa: E402
from equipoise_deploy.serving.settings import Settings  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

MB = 2**20
WARM_UP = 2000  # requests: until every stub has seen every model's batches
CONSOLE = Console(stderr=True)


def processes() -> list[psutil.Process]:
    """Everything that this process started: the guardian, Triton, its stubs."""
    return psutil.Process().children(recursive=True)


def proportional() -> float:
    """MB of all of them; shared pages are counted once."""
    return sum(process.memory_full_info().pss for process in processes()) / MB


def shared() -> float:
    """MB that our servers hold in /dev/shm."""
    files = Path("/dev/shm").glob(f"equipoise_{os.getpid()}_*")
    return sum(file.stat().st_blocks * 512 for file in files) / MB


def high_water() -> float:
    """MB: the sum of what each process held at its largest, shared memory apart."""
    total = 0.0
    for process in processes():
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        total += float(fields["VmHWM"].split()[0]) / 1024
    return total


class SharedPeak:
    """Watches /dev/shm while it is entered."""

    def __enter__(self) -> SharedPeak:
        self.peak, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, shared())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def flat(requests: int) -> tuple[dict[str, object], bool]:
    with (
        TritonServer(ROOT / "model_repository", ports=Ports(0, 0, 0)) as server,
        UncertaintyClient(server.grpc_url) as client,
        Progress(console=CONSOLE, transient=True) as progress,
    ):
        check_readiness(server.grpc_url, server.models)
        images = {name: synthetic_image(client.contract(name))[0] for name in server.models}
        spacing = {name: (1.0, 1.0, 1.0) if name == "hippocampus" else None for name in images}
        task = progress.add_task("requests", total=requests + WARM_UP)

        def ask(count: int) -> None:
            def some(first: int) -> None:
                for number in range(first, count, 4):
                    name = {0: "hippocampus", 1: "nuclei"}.get(number % 100, "pneumonia")
                    noisy = images[name] + np.random.default_rng(number).normal(0, 1, images[name].shape)
                    client.predict(name, noisy, spacing=spacing[name])
                    progress.advance(task)

            threads = [threading.Thread(target=some, args=(first,)) for first in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        ask(WARM_UP)
        memory, files = [proportional()], [shared()]
        for _ in range(requests // 1000):
            ask(1000)
            memory.append(proportional())
            files.append(shared())
    grown = memory[-1] / memory[0] - 1.0, files[-1] / files[0] - 1.0
    kept = grown[0] <= 0.02 and grown[1] <= 0.02
    found = {"requests": requests, "memory_mb": memory, "shared_mb": files, "grown": grown}
    print(f"{requests} requests: memory {memory[0]:.0f} → {memory[-1]:.0f} MB ({grown[0]:+.2%}), ", end="")
    print(f"/dev/shm {files[0]:.1f} → {files[-1]:.1f} MB ({grown[1]:+.2%})")
    return found, kept


def one(size: tuple[int, ...], samples: int) -> dict[str, float]:
    """Peaks and seconds of one request of this size, on a fresh server with as few processes as there can be."""
    settings = {"hippocampus": Settings(aggregators=1)}
    with (
        TritonServer(ROOT / "model_repository", ports=Ports(0, 0, 0), settings=settings) as server,
        UncertaintyClient(server.grpc_url, timeout=6 * 3600.0) as client,
        SharedPeak() as files,
    ):
        check_readiness(server.grpc_url, server.models)
        image = np.random.default_rng(0).normal(100.0, 30.0, (1, *size)).astype(np.float32)
        before, begun = high_water(), time.perf_counter()
        with CONSOLE.status(f"{size}, T = {samples}"):
            answer = client.predict("hippocampus", image, samples=samples, spacing=(1.0, 1.0, 1.0), outputs=("labels",))
        seconds = time.perf_counter() - begun
        assert answer.labels.shape == (1, *size) and answer.samples_used == samples
        found = {"samples": samples, "seconds": seconds, "high_water_mb": high_water(), "idle_mb": before}
    found["shared_mb"] = files.peak
    print(f"{size}, T = {samples}: {seconds:.0f} s, ", end="")
    print(f"peak {found['high_water_mb']:.0f} MB (idle {before:.0f}) and {files.peak:.0f} MB in /dev/shm", flush=True)
    return found


def large() -> tuple[dict[str, object], bool]:
    few, many = (one((160, 160, 80), samples) for samples in (5, 20))
    ratio = (many["high_water_mb"] + many["shared_mb"]) / (few["high_water_mb"] + few["shared_mb"])
    print(f"peak at T = 20 over peak at T = 5: {ratio:.3f}")
    return {"t5": few, "t20": many, "ratio": ratio}, 0.9 <= ratio <= 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flat", "large", "volume"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 120])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "flat":
        found, kept = flat(given.requests)
    elif given.what == "large":
        found, kept = large()
    else:
        found, kept = {"size": given.size, **one(tuple(given.size), given.samples)}, True
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
