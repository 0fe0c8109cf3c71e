"""What the sampler costs, in process: printed ratios are the claims of DESIGN's "Speed to reach".

    python -m tests.benchmarks.bench_export_cost [--size 256] [--rounds 6] [--threads 2] [--passes] [--json F]

All ways are run in turn within each round and medians compared, so that a busy machine slows them alike:
the sampler (N = 1, T = 20), its trunk alone and its suffix alone (the same graph cut in two), ONNX Runtime on 20 image
copies, and a PyTorch loop of 20 passes. Moments: the head's share of the run by ONNX Runtime's own profile.
With --passes instead: the sampler against the one that is compiled without the passes of `SPEED`, in wall and processor
time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "model_repository" / "hippocampus" / "1")]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from equipoise_core.contract import Activation, Contract, Task  # noqa: E402
from equipoise_core.masks import draw_masks, mask_layout  # noqa: E402
from equipoise_core.preprocessing import Preprocessing  # noqa: E402
from equipoise_core.steps import ZScore  # noqa: E402
from equipoise_export.capture.active import active_modules  # noqa: E402
from equipoise_export.capture.from_torch import capture  # noqa: E402
from equipoise_export.capture.prepare import Prepared  # noqa: E402
from equipoise_export.compile import compile_graph  # noqa: E402
from equipoise_export.graph.randomness import sampling  # noqa: E402
from equipoise_export.graph.session import session  # noqa: E402
from equipoise_export.passes import PASSES, run_passes  # noqa: E402
from equipoise_export.passes.compilation import Compilation  # noqa: E402
from torch import nn  # noqa: E402

from ..support.networks import UNet, double  # noqa: E402

T = 20
SPEED = ("take_difference", "merge_upsampling", "mask_weights")
"""Passes that change no number."""


class HeadClassifier(nn.Module):
    """Convolutions, dropout in the head only."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128, 256)
        blocks = [nn.Sequential(double(2, i, o), nn.MaxPool2d(2)) for i, o in pairwise(widths)]
        self.trunk = nn.Sequential(*blocks)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(256, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.trunk(image).mean((2, 3))))


def cases(size: int) -> dict[str, tuple[nn.Module, Contract]]:
    def contract(name: str, task: Task, classes: int) -> Contract:
        return Contract(
            name, task, Activation.SOFTMAX, tuple(map(str, range(classes))), 1, (size, size), (size, size), (size, size),  # noqa: E501
            Preprocessing((ZScore(),)), (),
        )  # fmt: skip

    widths = (16, 32, 64, 128, 256)
    return {
        "unet, bottleneck on": (UNet(2, 1, 2, widths, where="deep"), contract("deep", Task.SEGMENTATION, 2)),
        "unet, last two levels": (UNet(2, 1, 2, widths, where="late"), contract("late", Task.SEGMENTATION, 2)),
        "classifier, head": (HeadClassifier(), contract("head", Task.CLASSIFICATION, 4)),
    }


def run_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    runner = session(model, threads)
    return lambda: runner.run(None, feeds)


def cut(model: onnx.ModelProto) -> tuple[list[str], onnx.ModelProto, onnx.ModelProto]:
    """The sampler in two: what does not depend on the masks, and the rest with that as input."""
    sampled = {"masks"}
    for node in model.graph.node:
        if sampled & set(node.input):
            sampled.update(node.output)
    weights = {entry.name for entry in model.graph.initializer}
    edges = sorted(
        {
            name
            for node in model.graph.node
            if set(node.output) & sampled
            for name in node.input
            if name and name not in sampled and name not in weights and name != "image"
        }
    )
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    outputs = [output.name for output in model.graph.output]
    trunk = extractor.extract_model(["image"], edges)
    suffix = extractor.extract_model([*edges, "image", "masks"], outputs)
    return edges, trunk, suffix


def head_share(model: onnx.ModelProto, feeds: dict[str, np.ndarray], threads: int) -> float:
    """Share of the run spent in nodes behind the logits, by ONNX Runtime's profile (graph optimisations kept)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(3):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    last = max(
        index for index, node in enumerate(model.graph.node) if node.op_type in ("Conv", "ConvTranspose", "Gemm")
    )
    head = {node.name for node in model.graph.node[last + 1 :]}
    times: dict[bool, int] = {True: 0, False: 0}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time") in head] += event["dur"]
    return times[True] / max(sum(times.values()), 1)


def compare_passes(ways: dict[str, Callable[[], object]], rounds: int) -> str:
    """Medians of the ratio "without the passes" over "with them", of wall and of processor time."""
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, call in ways.items():
            began = time.perf_counter(), time.process_time()
            call()
            if turn:
                spent[way].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, processor = (
        statistics.median(old[clock] / new[clock] for old, new in zip(spent["plain"], spent["sampler"], strict=True))
        for clock in (0, 1)
    )
    best = {way: min(entry[0] for entry in entries) * 1e3 for way, entries in spent.items()}
    return (
        f"without the passes {best['plain']:.0f} ms, with {best['sampler']:.0f} ms at best; "
        f"medians of the ratio: wall {wall:.2f} ×, processor {processor:.2f} ×"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", action="store_true", help="only what the passes of SPEED bring")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"T = {T}, {given.size}², {given.threads} threads, medians of {given.rounds} interleaved rounds")
    if not given.passes:
        print(f"{'':24}{'sampler':>10}{'of parts':>10}{'copies':>9}{'loop':>9}{'predicted':>11}{'head':>7}")
    found: dict[str, dict[str, float]] = {}
    for name, (network, draft) in cases(given.size).items():
        network.eval()
        image = torch.randn(1, 1, given.size, given.size)
        pair = torch.randn(2, 1, given.size, given.size)
        active = active_modules(network, pair).names
        marked = capture(Prepared(network, network, active, pair), draft.spatial, 1)
        without = tuple(step for step in PASSES if step.__name__ not in SPEED)
        plainly = ir.to_proto(run_passes(Compilation(marked.clone(), draft), without).model)
        compilation = compile_graph(marked, draft)
        model = ir.to_proto(compilation.model)
        masks = draw_masks(mask_layout(compilation.contract, draft.nominal), 0, compilation.contract.digest, 0, T)[None]
        feeds = {"image": image.numpy(), "masks": masks}
        if given.passes:
            graphs = {"plain": plainly, "sampler": model}
            both = {way: run_of(graph, feeds, given.threads) for way, graph in graphs.items()}
            print(f"{name:24}{compare_passes(both, given.rounds)}", flush=True)
            continue
        edges, trunk, suffix = cut(model)
        parts = dict(zip(edges, session(trunk, given.threads).run(edges, {"image": image.numpy()}), strict=True))
        plain = torch.onnx.export(
            network, (pair,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("N", min=1)},), verbose=False
        )
        copies = {plain.model.graph.inputs[0].name: np.repeat(image.numpy(), T, 0)}

        def loop(network: nn.Module = network, active: tuple[str, ...] = active, image: torch.Tensor = image) -> None:
            with sampling(network, active), torch.no_grad():
                for _ in range(T):
                    network(image)

        ways = {
            "sampler": run_of(model, feeds, given.threads),
            "trunk": run_of(trunk, {"image": image.numpy()}, given.threads),
            "plain": run_of(plainly, feeds, given.threads),
            "suffix": run_of(suffix, {key: value for key, value in {**parts, **feeds}.items() if key in {i.name for i in suffix.graph.input}}, given.threads),  # noqa: E501
            "copies": run_of(plain.model_proto, copies, given.threads),
            "loop": loop,
        }  # fmt: skip
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(given.rounds + 1):
            for way, call in ways.items():
                began = time.perf_counter()
                call()
                if turn:  # the first warms up
                    times[way].append(time.perf_counter() - began)
        median = {way: statistics.median(values) for way, values in times.items()}
        # Round by round: what slows the machine for seconds then slows both sides of the ratio.
        rounds = zip(times["sampler"], times["trunk"], times["suffix"], strict=True)
        of_parts = statistics.median(whole / (trunk + suffix) for whole, trunk, suffix in rounds)
        assert compilation.cost is not None
        each = found[name] = {
            "sampler_ms": median["sampler"] * 1e3,
            "of_parts": of_parts,
            "copies": median["copies"] / median["sampler"],
            "loop": median["loop"] / median["sampler"],
            "predicted": compilation.cost.gain(T),
            "head": head_share(model, feeds, given.threads),
        }
        print(
            f"{name:24}{each['sampler_ms']:8.1f}ms{of_parts:10.2f}{each['copies']:8.1f}×"
            f"{each['loop']:8.1f}×{each['predicted']:10.1f}×{each['head']:7.1%}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps({"size": given.size, "networks": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
