"""Served, against what people would use instead: the same network, weights, image and T, all in one run.

    python tests/benchmarks/bench_serving.py [--size 128] [--rounds 5] [--seconds 3] [--clients 1 8] [--json F]

Every server is up the whole time. In each round the peers are asked in turn, in a closed loop of so many clients for a
few seconds each, so that a busy machine slows them alike; medians over rounds are compared. Peers:

    equipoise     Triton, the public model, T named (no early stopping), mean and variance asked for
    in process    ONNX Runtime on the sampler's own graph, masks drawn for each image: the limit
    separate      Triton, the sampler asked T times with one sample each, averaged by the client
    loop          FastAPI and uvicorn, T PyTorch passes one after the other
    batch         FastAPI and uvicorn, one PyTorch batch of T copies
    copies        FastAPI and uvicorn, ONNX Runtime on T copies

The tiny model does next to nothing: what is left is overhead. No figure is claimed that this run did not print.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("export", "client", "deploy"))]
sys.path.insert(0, str(ROOT / "model_repository" / "hippocampus" / "1"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import tritonclient.grpc as triton  # noqa: E402
from equipoise_core.contract import Contract, Task  # noqa: E402
from equipoise_core.masks import draw_masks, mask_layout  # noqa: E402
from equipoise_deploy.ports import Ports  # noqa: E402
from equipoise_deploy.readiness import check_readiness  # noqa: E402
from equipoise_deploy.server import TritonServer  # noqa: E402
from equipoise_export.compile import compile_sampler  # noqa: E402
from equipoise_export.repository import publish  # noqa: E402
from equipoise_export.runtime import OnnxSampler  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import nn  # noqa: E402

from tests.benchmarks.bench_export_cost import cases  # noqa: E402
from tests.export.networks import Tiny  # noqa: E402

T = 20


@dataclass(frozen=True)
class Peer:
    """`ask` answers one image; each client thread makes its own by `connect`."""

    name: str
    connect: Callable[[], Callable[[], object]]


def networks(size: int) -> dict[str, tuple[nn.Module, Contract]]:
    found = {name.replace(", ", "_").replace(" ", "_"): pair for name, pair in cases(size).items()}
    _, like = found["classifier_head"]
    found["tiny"] = (Tiny(), replace(like, name="tiny", classes=("0", "1")))
    return found


def closed_loop(peer: Peer, clients: int, seconds: float) -> tuple[float, float]:
    """Answers per second and the median latency in ms."""
    latencies: list[float] = []
    stop = threading.Event()
    barrier = threading.Barrier(clients + 1)

    def client() -> None:
        ask = peer.connect()
        ask()
        barrier.wait()
        while not stop.is_set():
            began = time.perf_counter()
            ask()
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies) * 1e3


@contextmanager
def fastapi_peer(kind: str, model: Path, shape: tuple[int, ...], threads: int) -> Iterator[str]:
    port = Ports(0, 0, 0).chosen().http
    environment = {
        **os.environ, "PEER": kind, "MODEL": str(model), "SHAPE": ",".join(map(str, shape)), "SAMPLES": str(T),
        "THREADS": str(threads), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.benchmarks.peers:app",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    with subprocess.Popen([*command, "--log-level", "error"], env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}/predict"
            _wait(url, process)
            yield url
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the peer at {url} ended with {process.returncode}")
        try:
            urllib.request.urlopen(url.replace("predict", "openapi.json")).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the peer at {url} did not start within a minute")


def http(url: str, image: np.ndarray) -> Peer:
    body = image.tobytes()

    def connect() -> Callable[[], object]:
        connection = HTTPConnection(url.split("/")[2])

        def ask() -> object:
            connection.request("POST", "/predict", body)
            return connection.getresponse().read()

        return ask

    return Peer("", connect)


def served(url: str, name: str, image: np.ndarray) -> Peer:
    def connect() -> Callable[[], object]:
        client = triton.InferenceServerClient(url)
        inputs = [_input("image", image[None], "FP32"), _input("samples", np.full((1, 1), T, np.int32), "INT32")]
        outputs = [triton.InferRequestedOutput(output) for output in ("mean", "variance", "route")]
        return lambda: client.infer(name, inputs, outputs=outputs)

    return Peer("equipoise", connect)


def separate(url: str, contract: Contract, image: np.ndarray) -> Peer:
    """The naive reading of "dynamic batching of T Monte Carlo samples"."""
    name = "probabilities" if contract.task is Task.CLASSIFICATION else "sum_p"
    layout = mask_layout(contract, contract.nominal)

    def connect() -> Callable[[], object]:
        client = triton.InferenceServerClient(url)
        outputs = [triton.InferRequestedOutput(name)]

        def ask() -> object:
            masks = draw_masks(layout, 0, contract.digest, 0, T)
            answers: list[np.ndarray] = []
            done = threading.Semaphore(0)

            def receive(result: triton.InferResult, error: Exception | None) -> None:
                if error is None:
                    answers.append(result.as_numpy(name))
                done.release()

            for mask in masks:
                inputs = [_input("image", image[None], "FP32"), _input("masks", mask[None, None], "UINT8")]
                client.async_infer(f"{contract.name}_sampler", inputs, receive, outputs=outputs)
            for _ in masks:
                done.acquire()
            p = np.concatenate(answers)
            assert len(p) == T
            return p.mean(0), p.var(0)

        return ask

    return Peer("separate", connect)


def in_process(sampler: OnnxSampler, contract: Contract, image: np.ndarray) -> Peer:
    layout = mask_layout(contract, contract.nominal)

    def ask() -> object:
        return sampler(image[None], draw_masks(layout, 0, contract.digest, 0, T)[None])

    return Peer("in process", lambda: ask)


def _input(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def plain_onnx(network: nn.Module, image: torch.Tensor, file: Path) -> None:
    """The network as torch exports it with dropout in training mode: every copy draws masks of its own."""
    training = torch.onnx.TrainingMode.TRAINING
    for module in network.modules():
        module.train(isinstance(module, nn.modules.dropout._DropoutNd))
    torch.onnx.export(
        network, (image,), file, dynamo=False, training=training, do_constant_folding=False,
        input_names=["image"], dynamic_axes={"image": {0: "N"}}, opset_version=18,
    )  # fmt: skip
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="networks by name")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    console = Console()
    results: list[dict[str, object]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ready: dict[str, list[Peer]] = {}
        images, contracts = {}, {}
        for name, (network, draft) in networks(given.size).items():
            if given.only and name not in given.only:
                continue
            network.eval()
            compiled = compile_sampler(network, draft, torch.randn(2, draft.channels, *draft.nominal))
            publish(compiled, folder / "models")
            torch.save(network, folder / f"{name}.pt")
            plain_onnx(network, torch.randn(1, draft.channels, *draft.nominal), folder / f"{name}.onnx")
            images[name] = np.random.default_rng(0).standard_normal((draft.channels, *draft.nominal)).astype(np.float32)
            contracts[name] = compiled.contract
        server = stack.enter_context(TritonServer(folder / "models", ports=Ports(0, 0, 0)))
        check_readiness(server.grpc_url, server.models)
        for name, contract in contracts.items():
            image, shape = images[name], (contract.channels, *contract.nominal)
            sampler = OnnxSampler(folder / "models" / f"{contract.name}_sampler" / "1" / "model.onnx", given.threads)
            peers = [
                served(server.grpc_url, contract.name, image),
                in_process(sampler, contract, image),
                separate(server.grpc_url, contract, image),
            ]
            for kind in ("loop", "batch", "copies"):
                model = folder / (f"{name}.onnx" if kind == "copies" else f"{name}.pt")
                url = stack.enter_context(fastapi_peer(kind, model, shape, given.threads))
                peers.append(Peer(kind, http(url, image).connect))
            ready[name] = peers
        for name, peers in ready.items():
            for clients in given.clients:
                measured: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
                for _ in range(given.rounds):
                    for peer in peers:
                        measured[peer.name].append(closed_loop(peer, clients, given.seconds))
                rows = {
                    peer: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
                    for peer, pairs in measured.items()
                }
                results.append({"network": name, "clients": clients, "peers": rows, "rounds": measured})
                console.print(_table(name, clients, rows))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    if given.plot:
        _plot(results, given.plot)


def _table(name: str, clients: int, rows: dict[str, tuple[float, float]]) -> Table:
    table = Table(
        "", "per second", "median ms", "equipoise is … times as fast", title=f"{name}, {clients} clients, T = {T}"
    )
    ours = rows["equipoise"][0]
    for peer, (rate, latency) in rows.items():
        table.add_row(peer, f"{rate:.4g}", f"{latency:.4g}", f"{ours / rate:.2f}")
    return table


def _plot(results: list[dict[str, object]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4 * len(results)), layout="constrained")
    for axes, result in zip(np.atleast_1d(figure.subplots(len(results), 1)), results, strict=True):
        rows = result["peers"]
        assert isinstance(rows, dict)
        axes.barh(list(rows), [rate for rate, _ in rows.values()], color="#1f5a92")
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_title(f"{result['network']}, {result['clients']} clients: images per second, T = {T}", fontsize=9)
    figure.savefig(file)


if __name__ == "__main__":
    main()
