"""How long an export takes, by phase, and inspecting and calibrating: seconds of the clock and of the processor.

    python -m tests.benchmarks.bench_export [--networks small basic_unet …] [--rounds 1] [--against COMMIT] [--json F]

`small` is three layers from the command line, Python's start included. `basic_unet` is MONAI's with element dropout on
256² (6 M mask bits a sample); it is also inspected, and calibrated on 36 made-up images. `swin_unetr_2d` and `_3d` are
MONAI's of feature size 12 on 64² and 64³; they want `make zoo`'s packages. Each run is a process of its own. With
--against, an earlier commit takes turns with this one, and the medians of the ratios are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NETWORKS: dict[str, tuple[str, ...]] = {
    "small": ("small", "1,64,64", "1"),
    "basic_unet": ("basic_unet", "1,256,256", "16"),
    "swin_unetr_2d": ("swin_unetr_2d", "1,64,64", "32"),
    "swin_unetr_3d": ("swin_unetr_3d", "1,64,64,64", "32"),
}
"""Callable of this file, image and multiple."""
CASES = 36
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"}


# --- the networks ---


def small() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 2, 3, padding=1))


def basic_unet() -> Any:
    import torch
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    return BasicUNet(2, 1, 2, features=(16, 16, 32, 64, 128, 16), dropout=0.2)


def _swin_unetr(rank: int) -> Any:
    sys.path.append(os.environ.get("EQUIPOISE_ZOO", str(ROOT / "build" / "zoo")))
    import torch
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(0)
    return SwinUNETR(1, 2, feature_size=12, drop_rate=0.1, attn_drop_rate=0.1, dropout_path_rate=0.1, spatial_dims=rank)


def swin_unetr_2d() -> Any:
    return _swin_unetr(2)


def swin_unetr_3d() -> Any:
    return _swin_unetr(3)


# --- the runs ---


def cases(folder: Path) -> Path:
    """Discs in noise, and where they are."""
    import numpy as np

    random, (y, x) = np.random.default_rng(0), np.mgrid[:256, :256]
    discs = [
        (y - cy) ** 2 + (x - cx) ** 2 < r * r
        for cy, cx, r in zip(*random.integers((60, 60, 20), (196, 196, 60), (CASES, 3)).T, strict=True)
    ]
    images = [(2.0 * disc + random.normal(size=disc.shape)).astype(np.float32)[None] for disc in discs]
    file = folder / "cases.npz"
    np.savez(file, images=np.stack(images), labels=np.stack(discs).astype(np.uint8))
    return file


def commands(name: str, folder: Path) -> dict[str, list[str]]:
    """What is run of a network: verb → arguments."""
    made, shape, multiple = NETWORKS[name]
    repository, given = str(folder / "models"), [f"{__file__}:{made}", "--name", name, "--task", "segmentation"]
    given += ["--input-shape", shape, "--classes", "background,x", "--multiple", multiple]
    export = ["export", *given, "--replace", "--json", "--into", repository]
    if name != "basic_unet":
        return {"export": export}
    calibrate = [
        "calibrate", name, "--data", str(cases(folder)), "--repository", repository, "--json", "--spacing", "1,1",
        "--alpha", "0.4", "--delta", "0.4", "--acceptable-dice", "0.01",
    ]  # fmt: skip
    return {"export": export, "inspect": ["export", *given, "--json", "--inspect"], "calibrate": calibrate}


def run(root: Path, arguments: list[str], timings: bool) -> dict[str, Any]:
    """One command with the code of `root`, in a process of its own."""
    verb = "equipoise_export.command" if arguments[0] == "export" else "equipoise_export.calibration.command"
    parts = (root / "export", root / "client", root / "model_repository" / "hippocampus" / "1")
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", f"from {verb} import app; app()", *arguments[1:], *(["--timings"] if timings else [])],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, parts))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - began, os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    document = json.loads(done.stdout[done.stdout.index("{") :])
    return {"seconds": seconds, "processor_seconds": processor, "timings": document.get("timings")}


@contextmanager
def checked_out(commit: str | None) -> Iterator[Path | None]:
    """The packages as they were at a commit, in a folder of their own."""
    if commit is None:
        yield None
        return
    parts = ["export", "client", "model_repository/hippocampus", "model_repository/hippocampus_sampler"]
    archive = subprocess.run(["git", "archive", commit, *parts], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


def lines(phase: dict[str, Any], whole: float, depth: int = 0) -> Iterator[str]:
    """The table of phases; what takes less than a hundredth is left out."""
    for each in phase.get("phases", ()):
        if each["seconds"] >= whole / 100:
            name = "  " * depth + each["name"]
            seconds, processor = each["seconds"], each["processor_seconds"]
            yield f"    {name:44}{seconds:8.2f} s{seconds / whole:6.0%}{processor:9.2f} s of the processor"
            yield from lines(each, whole, depth + 1)


def _afresh(root: Path, arguments: list[str], folder: Path, timings: bool) -> dict[str, Any]:
    if arguments[0] == "export" and "--into" in arguments:  # of the same model again some is kept
        shutil.rmtree(folder / "models", ignore_errors=True)
    return run(root, arguments, timings)


def measure(name: str, before: Path | None, rounds: int) -> dict[str, Any]:
    """Per verb the medians, the phases of the last round, and how many times as fast as `before`."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for verb, arguments in commands(name, Path(folder)).items():
            now, then = [], []
            for _ in range(rounds):
                if before is not None:
                    then.append(_afresh(before, arguments, Path(folder), timings=False))
                now.append(_afresh(ROOT, arguments, Path(folder), timings=True))
            clocks = ("seconds", "processor_seconds")
            found[verb] = {clock: statistics.median(each[clock] for each in now) for clock in clocks}
            found[verb]["timings"] = now[-1]["timings"]
            for clock in clocks if then else ():
                ratios = [old[clock] / new[clock] for old, new in zip(then, now, strict=True)]
                found[verb][f"faster_{clock}"] = statistics.median(ratios)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["small", "basic_unet"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", metavar="COMMIT", help="an earlier commit that takes turns with this one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if given.against and shutil.which("git") is None:
        parser.error("--against needs git")
    found: dict[str, Any] = {}
    with checked_out(given.against) as before:
        for name in given.networks:
            found[name] = measure(name, before, given.rounds)
            for verb, each in found[name].items():
                print(f"{name}, {verb}: {each['seconds']:.1f} s, {each['processor_seconds']:.1f} s of the processor")
                for line in lines(each["timings"] or {}, each["seconds"]):
                    print(line)
                if "faster_seconds" in each:
                    clock, processor = each["faster_seconds"], each["faster_processor_seconds"]
                    print(f"  {clock:.1f} × as fast as {given.against}, with {processor:.1f} × less of the processor")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
