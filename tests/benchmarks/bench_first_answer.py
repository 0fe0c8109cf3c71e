"""From nothing to a served answer, as the first pages of the READMEs go: a fresh environment, ten lines, a server.

    python -m tests.benchmarks.bench_first_answer [--environment FOLDER] [--json F]

Installs Equipoise with MONAI and timm by pip into an environment of its own (from pip's cache where wheels are there),
exports a MONAI UNet and a timm ResNet by the ten lines below, serves both, and asks for one image each. `--environment`
takes one that is there already, and leaves the installation out.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]

MONAI = """
import torch
from monai.networks.nets import UNet
from equipoise_export import export
---
network = UNet(2, 1, 2, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2, dropout=0.2)
export(
    network, name="lesion", task="segmentation", classes=("background", "lesion"),
    example=torch.randn(2, 1, 128, 128), multiple=16, into="models",
)
"""
TIMM = """
import timm
import torch
from equipoise_export import export
---
network = timm.create_model("resnet18", num_classes=2, drop_rate=0.2)
export(
    network, name="chest", task="classification", classes=("normal", "pneumonia"),
    example=torch.randn(2, 3, 224, 224), preprocess="rgb divide:255 imagenet", into="models",
)
"""
NETWORKS = {
    "MONAI UNet, 128²": ("lesion", MONAI, (1, 128, 128)),
    "timm ResNet-18, 224²": ("chest", TIMM, (1, 224, 224)),
}

TIMED = """
import json, sys, time
seconds = {}
for name, part in zip(json.loads(sys.argv[1]), sys.stdin.read().split("---\\n")):
    begun = time.perf_counter()
    exec(compile(part, name, "exec"))
    seconds[name] = time.perf_counter() - begun
print(json.dumps(seconds))
"""
"""Runs parts of a script, which see each other's names, and says how long each took."""

ASK = """
import numpy as np
from equipoise_client import UncertaintyClient
---
client = UncertaintyClient("{url}")
image = np.random.default_rng(0).integers(0, 255, {shape}).astype(np.float32)
answer = client.predict("{name}", image)
assert answer.route.value == "review", answer.reason  # there is no policy yet
---
client.predict("{name}", image + 1)
"""


def timed(python: Path, names: list[str], script: str, folder: Path) -> dict[str, float]:
    """Seconds of each part of a script, parted by lines of `---`."""
    done = subprocess.run(
        [python, "-c", TIMED, json.dumps(names)], input=script, cwd=folder, text=True, capture_output=True
    )
    if done.returncode:
        raise SystemExit(f"{script}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def install(environment: Path) -> float:
    """Seconds, as the README says it."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    wanted = [f"{ROOT}[client,embedded,export]", "monai", "timm"]
    constraint = ["--constraint", str(ROOT / "deploy" / "locks" / "constraints.txt")]
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", *wanted, *constraint], check=True)
    return time.monotonic() - begun


def serve(environment: Path, folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The server, its address, and seconds until every model has answered a health probe."""
    begun = time.monotonic()
    ports = [word for kind in ("grpc", "http", "metrics", "health") for word in (f"--{kind}-port", "0")]
    command = [environment / "bin" / "equipoise", "serve", "models", *ports, "--json", "--quiet"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise SystemExit("the server did not start")
    return server, str(json.loads(line)["grpc"]), time.monotonic() - begun


def measure(environment: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Network → step → seconds. Serving is that of both models together."""
    python, found = environment / "bin" / "python", {}
    for title, (_, script, _) in NETWORKS.items():
        found[title] = timed(python, ["imports", "export"], script, folder)
    server, url, ready = serve(environment, folder)
    try:
        for title, (name, _, shape) in NETWORKS.items():
            script = ASK.format(url=url, shape=shape, name=name)
            steps = timed(python, ["imports of the client", "first answer", "next answer"], script, folder)
            found[title] |= {"serve": ready, **steps}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = (options.environment or folder / "environment").absolute()
        installed = None if options.environment else install(environment)
        steps = measure(environment, folder)
    found: dict[str, Any] = {"install": installed, "networks": steps}
    table = Table("step, s", *steps, title="from nothing to a served answer")
    if installed is not None:
        table.add_row("install", *(f"{installed:.1f}" for _ in steps))
    for step in next(iter(steps.values())):
        table.add_row(step, *(f"{each[step]:.2f}" for each in steps.values()))
    Console(stderr=True).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
