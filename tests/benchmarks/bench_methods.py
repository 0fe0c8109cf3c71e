"""What single-pass methods cost, served, against a plain deterministic pass of the same network.

    python -m equipoise_lab.methods.command --into build/methods
    python -m tests.benchmarks.bench_methods --repository build/methods [--rounds 15] [--json FILE]

One real Triton, one client, the same image for all models of a data set, in turns; the median over rounds of the time
of a request for mean, epistemic map, labels and route, and the median ratio to the deterministic model. Promised: at
most 1.3 for SegWithU and the student.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import tritonclient.grpc as triton
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_lab.reference.data import load, reference_split
from rich.console import Console
from rich.progress import track
from rich.table import Table

DATA_SETS = ("hippocampus", "nuclei")
BASE = "deterministic"
METHODS = (BASE, "student", "segwithu", "calibrated", "ensemble", "mc_dropout")
OUTPUTS = ("mean", "epistemic", "labels", "route")


def linked(repository: Path, target: Path, names: list[str]) -> Path:
    """A repository of only these models: others would take memory."""
    for name in names:
        for folder in (*repository.glob(f"{name}_sampler*"), repository / name):
            (target / folder.name).symlink_to(folder.resolve())
    return target


def asked(client: triton.InferenceServerClient, model: str, image) -> float:
    given = triton.InferInput("image", [1, *image.shape], "FP32").set_data_from_numpy(image[None])
    began = time.perf_counter()
    client.infer(model, [given], outputs=[triton.InferRequestedOutput(name) for name in OUTPUTS])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("build/methods"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [f"{data}_{method}" for data in DATA_SETS for method in METHODS]
    names = [name for name in names if (options.repository / name).is_dir()]
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = linked(options.repository, Path(folder), names)
        with TritonServer(repository, ports=Ports(0, 0, 0)) as server:
            check_readiness(server.grpc_url, server.models)
            with triton.InferenceServerClient(server.grpc_url) as client:
                for data in DATA_SETS:
                    models = [name for name in names if name.startswith(data)]
                    cases = load(data)
                    image = cases.select(reference_split(data, cases.ids).test[:1]).images[0]
                    took: dict[str, list[float]] = {name: [] for name in models}
                    for turn in track(range(options.rounds + 2), data, console=Console(stderr=True)):
                        for name in models:
                            seconds = asked(client, name, image)
                            if turn >= 2:  # the first ones warm up
                                took[name].append(seconds)
                    base = took[f"{data}_{BASE}"]
                    for name in models:
                        ratios = [own / plain for own, plain in zip(took[name], base, strict=True)]
                        milliseconds = 1000 * statistics.median(took[name])
                        report[name] = {"milliseconds": milliseconds, "ratio": statistics.median(ratios)}
    shown = Table("model", "ms", "of a plain pass")
    for name, row in report.items():
        shown.add_row(name, f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}")
    Console().print(shown)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
