"""Served, against what people would use instead: the same network, weights, image and T, all in one run.

    python -m tests.benchmarks.bench_serving [--size 128] [--rounds 3] [--seconds 3] [--json F] [--plot F.png]
    python -m tests.benchmarks.bench_serving --lone [--size 128] [--seconds 30] [--only tiny]

Every server is up the whole time. In each round the peers are asked in turn, so that a busy machine slows them alike;
medians over rounds are compared. Peers:

    equipoise     Triton, the public model, T named (all samples), mean, variance and route asked for
    in process    ONNX Runtime on the sampler's own graph, masks drawn for each image: the limit
    … by 8        both, asked about 8 images at a time, as many in one run as its memory allows; rates are of images
    bare          tiny only: a public model that does nothing but pass the image on to the sampler and back
    separate      Triton, the sampler asked T times with one sample each, averaged by the client
    loop          FastAPI and uvicorn, T PyTorch passes one after the other
    batch         FastAPI and uvicorn, one PyTorch batch of T copies
    copies        FastAPI and uvicorn, ONNX Runtime on T copies

Loads: closed loops of 1 and 8 clients; then, for what listens on a port, Poisson arrivals at 70 and 150 % of what each
did with 8 clients. Latencies of those count from when a request was due. The public models' queues are bounded to a
second of work, or 8 requests: 150 % is shed, and nobody who is let in should wait for more than twice the worst case of
a full queue, (queue + aggregators) / throughput.

`--lone`: one caller, who asks equipoise, in process and (tiny) bare in turn, request by request: a lone caller should
get the whole machine, and what Equipoise adds to the bare path is its own.

The tiny model does next to nothing: what is left is overhead. No figure is claimed that this run did not print.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("export", "client", "deploy"))]
sys.path.insert(0, str(ROOT / "model_repository" / "hippocampus" / "1"))

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import tritonclient.grpc as triton  # noqa: E402
from equipoise_client.transport import Retry  # noqa: E402
from equipoise_core.budget import at_once  # noqa: E402
from equipoise_core.contract import Contract, Task  # noqa: E402
from equipoise_core.masks import draw_masks, mask_layout  # noqa: E402
from equipoise_deploy.ports import Ports  # noqa: E402
from equipoise_deploy.serving.readiness import check_readiness  # noqa: E402
from equipoise_deploy.serving.server import TritonServer  # noqa: E402
from equipoise_deploy.serving.settings import Settings  # noqa: E402
from equipoise_deploy.serving.staging import aggregator_instances, available_cores  # noqa: E402
from equipoise_deploy.tune.tuning import queue_for  # noqa: E402
from equipoise_export.compile import compile_sampler  # noqa: E402
from equipoise_export.graph.session import OnnxSampler  # noqa: E402
from equipoise_export.publish.repository import publish_pair  # noqa: E402
from equipoise_export.publish.triton_config import aggregator_config, render  # noqa: E402
from equipoise_lab.reference.build import draft_contract  # noqa: E402
from equipoise_lab.reference.specs import HIPPOCAMPUS  # noqa: E402
from equipoise_load.arrivals import Arrivals, due_times  # noqa: E402
from equipoise_load.engine import Plan, run  # noqa: E402
from equipoise_load.mix import Payload  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import nn  # noqa: E402
from tritonclient.grpc import service_pb2  # noqa: E402

from ..support.networks import Tiny  # noqa: E402
from .bench_export_cost import cases  # noqa: E402

T = 20
TINY = 28  # rows and columns: what is left of a request without a network and without pixels
TOGETHER = 8  # images of one request
PATIENCE = 120.0  # seconds for one request
WAIT, LEAST = 1.0, 8  # a queue holds so many seconds of work, but all clients of the closed loops
OPEN, OPEN_ROUNDS = (("70 %", 0.7), ("150 %", 1.5)), 2

BARE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image")
            masks = pb_utils.Tensor("masks", np.full((1, 20, 2), 170, np.uint8))
            answer = pb_utils.InferenceRequest(
                model_name="tiny_sampler", inputs=[image, masks], requested_output_names=["probabilities"],
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            ).exec()
            p = pb_utils.get_output_tensor_by_name(answer, "probabilities").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("mean", p.mean(1))]))
        return responses
"""


@dataclass(frozen=True)
class Peer:
    """`ask` answers one image; each client thread makes its own by `connect`.

    Attributes:
        message: of a gRPC server at `url`, sent by the load generator instead of by threads.
        listens: there is a port, so that requests can come when they like.
        images: that each `ask` answers.
    """

    name: str
    connect: Callable[[], Callable[[], object]]
    url: str = ""
    message: bytes = b""
    listens: bool = True
    images: int = 1


def networks(size: int) -> dict[str, tuple[nn.Module, Contract]]:
    found = {name.replace(", ", "_").replace(" ", "_"): pair for name, pair in cases(size).items()}
    _, like = found["classifier_head"]
    small = (TINY, TINY)
    tiny = replace(like, name="tiny", classes=("0", "1"), spatial=small, nominal=small, maximum=small)
    hippocampus = HIPPOCAMPUS.trained(), draft_contract(HIPPOCAMPUS)
    return {"tiny": (Tiny(), tiny), **dict(reversed(found.items())), "hippocampus": hippocampus}


def closed_loop(peer: Peer, clients: int, seconds: float) -> tuple[float, float]:
    """Images per second, and a question's median latency in ms."""
    latencies: list[float] = []
    stop = threading.Event()
    barrier = threading.Barrier(clients + 1)

    def client() -> None:
        try:
            ask = peer.connect()
            ask()
        except BaseException:
            barrier.abort()  # who waits for this client would wait for ever
            raise
        barrier.wait()
        while True:  # at least once: a stalled machine is slow, not silent
            began = time.perf_counter()
            ask()
            latencies.append(time.perf_counter() - began)
            if stop.is_set():
                return

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(client) for _ in range(clients)]
        with suppress(threading.BrokenBarrierError):  # the client that failed says why, below
            barrier.wait()
        began = time.perf_counter()
        wait(asking, seconds, FIRST_EXCEPTION)
        stop.set()
        wait(asking)
        took = time.perf_counter() - began
    failures = [each for each in (done.exception() for done in asking) if each is not None]
    if failures:
        raise next((each for each in failures if not isinstance(each, threading.BrokenBarrierError)), failures[0])
    return peer.images * len(latencies) / took, statistics.median(latencies) * 1e3


def in_turn(peers: list[Peer], seconds: float) -> dict[str, float]:
    """Median latencies in ms of a lone caller, who asks one peer after the other: noise is the same for all."""
    asks = {peer.name: peer.connect() for peer in peers}
    latencies: dict[str, list[float]] = {name: [] for name in asks}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, ask in asks.items():
            began = time.perf_counter()
            ask()
            latencies[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(each[1:]) for name, each in latencies.items()}


def open_loop(peer: Peer, rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate`; milliseconds from when a request was due. What was refused has no latency."""
    if peer.message:
        return _by_generator(peer, rate, seconds)
    due = list(due_times(Arrivals.POISSON, rate, seconds, 0))
    latencies: list[float] = []
    numbers, lock = iter(due), threading.Lock()
    begin = time.perf_counter() + 0.5

    def sender() -> None:
        ask = peer.connect()
        while True:
            with lock:
                offset = next(numbers, None)
            if offset is None:
                return
            time.sleep(max(0.0, begin + offset - time.perf_counter()))
            ask()
            latencies.append(time.perf_counter() - begin - offset)

    threads = [threading.Thread(target=sender) for _ in range(min(64, len(due)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    milliseconds = np.array(latencies or [np.nan]) * 1e3
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {"rate": rate, "offered": len(due), "answered": len(latencies), "refused": 0, "p50": p50, "p99": p99}


def _by_generator(peer: Peer, rate: float, seconds: float) -> dict[str, float]:
    plan = Plan(peer.url, Arrivals.POISSON, rate, 1, 0.5, seconds, PATIENCE, Retry(1), 8)
    image = np.zeros(0, np.float32)
    tally = run(plan, [Payload(peer.name, peer.name, image, None, None, peer.message, 1.0)])
    assert set(tally.codes) <= {"OK", "UNAVAILABLE"}, tally.codes
    p50, p99 = (tally.latency.get_value_at_percentile(p) / 1e3 for p in (50.0, 99.0))
    refused = tally.codes["UNAVAILABLE"]
    return {
        "rate": rate, "offered": tally.total, "answered": tally.answered, "refused": refused, "p50": p50, "p99": p99
    }  # fmt: skip


@contextmanager
def fastapi_peer(kind: str, model: Path, shape: tuple[int, ...], threads: int, device: str = "cpu") -> Iterator[str]:
    port = Ports(0, 0, 0).chosen().http
    environment = {
        **os.environ, "PEER": kind, "MODEL": str(model), "SHAPE": ",".join(map(str, shape)), "SAMPLES": str(T),
        "THREADS": str(threads), "DEVICE": device, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.benchmarks.peers:app",
        "--port",
        str(port),
    ]
    with subprocess.Popen([*command, "--log-level", "error"], env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}/predict"
            _wait(url, process)
            yield url
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # as long as it takes: importing PyTorch on a busy machine takes minutes
        try:
            urllib.request.urlopen(url.replace("predict", "openapi.json")).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the peer at {url} ended with {process.returncode}")


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
    message = _message(name, image, ("mean", "variance", "route"))
    return Peer("equipoise", lambda: _asking(url, message), url, message)


def several(url: str, name: str, image: np.ndarray) -> Peer:
    """Our public model, asked about `TOGETHER` images at a time."""
    message = _message(name, image, ("mean", "variance", "route"), TOGETHER)
    return Peer(f"equipoise, by {TOGETHER}", lambda: _asking(url, message), listens=False, images=TOGETHER)


def bare(url: str, image: np.ndarray) -> Peer:
    """The public model's path without anything that decides: what Triton, its Python backend and gRPC cost by then."""
    message = _message("tiny_bare", image, ("mean",))
    return Peer("bare", lambda: _asking(url, message), listens=False)


def _message(name: str, image: np.ndarray, outputs: tuple[str, ...], images: int = 1) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=name)
    same = np.repeat(image[None], images, axis=0)
    for key, values, kind in (("image", same, "FP32"), ("samples", np.full((images, 1), T, np.int32), "INT32")):
        request.inputs.add(name=key, datatype=kind, shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    return request.SerializeToString()


def _asking(url: str, message: bytes) -> Callable[[], object]:
    """A connection of its own, and nothing of a client library between it and the wire: peers have plain HTTP."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    call = grpc.insecure_channel(url, options).unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return lambda: call(message)


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

    return Peer("separate", connect, listens=False)


def in_process(sampler: OnnxSampler, contract: Contract, image: np.ndarray, images: int = 1) -> Peer:
    layout = mask_layout(contract, contract.nominal)
    most = min(images, at_once(contract, contract.nominal, T))

    def ask() -> object:
        """As many at once as the server samples together: eight callers with eight volumes each took 12 GB."""
        for first in range(0, images, most):
            seeds = range(first, min(first + most, images))
            masks = np.stack([draw_masks(layout, seed, contract.digest, 0, T) for seed in seeds])
            answer = sampler(np.repeat(image[None], len(seeds), axis=0), masks)
        return answer

    name = "in process" if images == 1 else f"in process, by {images}"
    return Peer(name, lambda: ask, listens=False, images=images)


def _input(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def plain_onnx(network: nn.Module, image: torch.Tensor, file: Path) -> None:
    """The network as torch exports it with dropout left on: every copy draws masks of its own.

    ONNX has no channel dropout and torch refuses to export it: single units are dropped instead, at the same cost.
    """
    network = elementwise(copy.deepcopy(network))
    for module in network.modules():
        module.train(isinstance(module, nn.Dropout))
    torch.onnx.export(
        network, (image,), file, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        input_names=["image"], dynamic_axes={"image": {0: "N"}}, opset_version=18,
    )  # fmt: skip


def elementwise(network: nn.Module) -> nn.Module:
    """Dropout layers of whatever kind replaced by plain ones, in place."""
    for name, child in network.named_children():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            setattr(network, name, nn.Dropout(child.p))
        else:
            elementwise(child)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="networks by name")
    parser.add_argument("--closed-only", action="store_true", help="no open loops")
    parser.add_argument("--lone", action="store_true", help="a lone caller's latencies, and nothing else")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's older exporter is the one that keeps dropout
    console = Console(width=110)
    results: list[dict[str, object]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = {name: pair for name, pair in networks(given.size).items() if name in (given.only or [name])}
        images, contracts = _published(chosen, folder)
        settings = {} if given.lone else _bounded(folder / "models", contracts, images)
        console.print({name: str(each) for name, each in settings.items()})
        server = stack.enter_context(TritonServer(folder / "models", ports=Ports(0, 0, 0), settings=settings))
        check_readiness(server.grpc_url, server.models)
        if given.lone:
            table = Table("one caller", "equipoise, ms", "in process, ms", "×", "bare, ms", "bare's part")
            for name, contract in contracts.items():
                found = in_turn(
                    _lone_peers(name, contract, images[name], server.grpc_url, folder, given.threads), given.seconds
                )
                ours, theirs, least = (found.get(peer, math.nan) for peer in ("equipoise", "in process", "bare"))
                table.add_row(name, *(f"{each:.3g}" for each in (ours, theirs, ours / theirs, least, least / ours)))
            console.print(table)
            return
        for name, contract in contracts.items():
            with ExitStack() as own:  # its peers end with it: idle ones still hold memory
                peers = _peers(own, name, contract, images[name], server.grpc_url, folder, given.threads)
                rows = _measured(peers, given)
            results.append({"network": name, "settings": str(settings[contract.name]), "peers": rows})
            results[-1]["bound_ms"] = _bound(settings[contract.name], rows["equipoise"])
            console.print(_closed_table(name, rows), _open_table(name, rows, results[-1]["bound_ms"]))
            if given.json:  # after each network: a long run that is stopped has told something
                given.json.write_text(json.dumps(results, indent=1))
    if given.plot:
        _plot(results, given.plot)


def _published(
    chosen: dict[str, tuple[nn.Module, Contract]], folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, Contract]]:
    images, contracts = {}, {}
    for name, (network, draft) in chosen.items():
        network.eval()
        compiled = compile_sampler(network, draft, torch.randn(2, draft.channels, *draft.nominal))
        publish_pair(compiled, folder / "models")
        torch.save(network, folder / f"{name}.pt")
        plain_onnx(network, torch.randn(1, draft.channels, *draft.nominal), folder / f"{name}.onnx")
        images[name] = np.random.default_rng(0).standard_normal((draft.channels, *draft.nominal)).astype(np.float32)
        contracts[name] = compiled.contract
    if "tiny" in contracts:
        model = folder / "models" / "tiny_bare"
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.py").write_text(BARE)
        config = aggregator_config(contracts["tiny"])
        config.name = model.name
        del config.parameters["contract"]
        (model / "config.pbtxt").write_text(render(config))
    return images, contracts


def _bounded(repository: Path, contracts: dict[str, Contract], images: dict[str, np.ndarray]) -> dict[str, Settings]:
    """Queues of a second of work each: what a machine's operator would let `equipoise tune` choose."""
    found = {}
    with TritonServer(repository, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        for contract in contracts.values():
            image = images[next(name for name, each in contracts.items() if each is contract)]
            rate, _ = closed_loop(served(server.grpc_url, contract.name, image), 8, 3.0)
            each = queue_for(rate, WAIT, aggregator_instances(available_cores()))
            found[contract.name] = replace(each, queue=max(each.queue or 0, LEAST))
    return found


def _lone_peers(name: str, contract: Contract, image: np.ndarray, url: str, folder: Path, threads: int) -> list[Peer]:
    sampler = OnnxSampler(folder / "models" / f"{contract.name}_sampler" / "1" / "model.onnx", threads)
    peers = [served(url, contract.name, image), in_process(sampler, contract, image)]
    return [*peers, bare(url, image)] if name == "tiny" else peers


def _peers(
    stack: ExitStack, name: str, contract: Contract, image: np.ndarray, url: str, folder: Path, threads: int
) -> list[Peer]:
    sampler = OnnxSampler(folder / "models" / f"{contract.name}_sampler" / "1" / "model.onnx", threads)
    peers = [served(url, contract.name, image), several(url, contract.name, image)]
    peers += [in_process(sampler, contract, image, images) for images in (1, TOGETHER)]
    peers.append(separate(url, contract, image))
    if name == "tiny":
        peers.append(bare(url, image))
    for kind in ("loop", "batch", "copies"):
        model = folder / (f"{name}.onnx" if kind == "copies" else f"{name}.pt")
        address = stack.enter_context(fastapi_peer(kind, model, (contract.channels, *contract.nominal), threads))
        peers.append(Peer(kind, http(address, image).connect))
    return peers


Rows = dict[str, dict[str, dict[str, float]]]
"""Peer → load → figures."""


def _measured(peers: list[Peer], given: argparse.Namespace) -> Rows:
    """Medians over rounds. A first short round warms everybody up and tells what 70 and 150 % are."""
    rates = {peer.name: closed_loop(peer, max(given.clients), min(1.0, given.seconds))[0] for peer in peers}
    found: dict[str, dict[str, list[dict[str, float]]]] = {peer.name: {} for peer in peers}
    for number in range(given.rounds):
        for i in range(len(peers)):
            peer = peers[(number + i) % len(peers)]
            for clients in given.clients:
                rate, latency = closed_loop(peer, clients, given.seconds)
                found[peer.name].setdefault(f"{clients} clients", []).append({"rate": rate, "p50": latency})
                rates[peer.name] = rate
            if peer.listens and number < OPEN_ROUNDS and not given.closed_only:
                for label, share in OPEN:
                    load = open_loop(peer, share * rates[peer.name], max(given.seconds, LEAST / rates[peer.name]))
                    found[peer.name].setdefault(label, []).append(load)
    return {
        name: {
            load: {key: statistics.median(each[key] for each in figures) for key in figures[0]}
            for load, figures in loads.items()
        }
        for name, loads in found.items()
    }


def _bound(settings: Settings, rows: dict[str, dict[str, float]]) -> float:
    """Worst case in ms of a request that a full queue lets in."""
    last = [load for load in rows if load.endswith("clients")][-1]
    return 1e3 * ((settings.queue or 0) + aggregator_instances(available_cores())) / rows[last]["rate"]


def _closed_table(name: str, rows: Rows) -> Table:
    loads = [load for load in rows["equipoise"] if load.endswith("clients")]
    table = Table(
        "", *(f"{load}: {head}" for load in loads for head in ("per s", "p50 ms", "×")), title=f"{name}, T = {T}"
    )
    for peer, measured in rows.items():
        cells = []
        for load in loads:
            rate, latency = measured[load]["rate"], measured[load]["p50"]
            cells += [f"{rate:.4g}", f"{latency:.4g}", f"{rows['equipoise'][load]['rate'] / rate:.2f}"]
        table.add_row(peer, *cells)
    table.caption = "×: how many times as fast equipoise is"
    return table


def _open_table(name: str, rows: Rows, bound: object) -> Table:
    table = Table(
        "", "load", "offered per s", "answered", "refused", "p50 ms", "p99 ms", title=f"{name}, Poisson arrivals"
    )
    for peer, measured in rows.items():
        for load, _ in OPEN:
            if load in measured:
                each = measured[load]
                share = (f"{each[key] / each['offered']:.0%}" for key in ("answered", "refused"))
                table.add_row(peer, load, f"{each['rate']:.4g}", *share, f"{each['p50']:.4g}", f"{each['p99']:.4g}")
    table.caption = f"worst case of equipoise's full queue: {bound:.4g} ms"
    return table


_COLOURS = {
    "equipoise": "#1f5a92", f"equipoise, by {TOGETHER}": "#5b8fbf",
    "loop": "#8b4a3b", "batch": "#c08a2e", "copies": "#5d7f4e",
}  # fmt: skip


def _plot(results: list[dict[str, object]], file: Path) -> None:
    """Images per second of each peer with most clients, and latency by load."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(11, 2.3 * len(results) + 0.4), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False)
    for (left, right), result in zip(axes, results, strict=True):
        rows = result["peers"]
        assert isinstance(rows, dict)
        last = [load for load in rows["equipoise"] if load.endswith("clients")][-1]
        rates = {peer: measured[last]["rate"] for peer, measured in rows.items()}
        bars = left.barh(list(rates), list(rates.values()), color=[_COLOURS.get(peer, "#b9c4d0") for peer in rates])
        left.bar_label(bars, [f"{each:.0f}" if each >= 100 else f"{each:.3g}" for each in rates.values()], fontsize=7)
        left.set_xscale("log")
        left.set_xlim(min(rates.values()) / 2, 2 * max(rates.values()))
        left.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        left.xaxis.set_minor_formatter(NullFormatter())
        left.invert_yaxis()
        left.set_title(f"{result['network']}: images per second, {last}", fontsize=9)
        for peer, measured in rows.items():
            loads = [load for load, _ in OPEN if load in measured]
            for key, marker, line in (("p50", "o", "-"), ("p99", "^", "--")) if loads else ():
                values = [measured[load][key] for load in loads]
                right.plot(
                    loads, values, marker=marker, linestyle=line, color=_COLOURS[peer], label=f"{peer} {key}", lw=1
                )
        if not right.lines:
            right.set_axis_off()
            right.text(0.5, 0.5, "no open loops were run", ha="center", fontsize=9)
            continue
        right.set_yscale("log")
        right.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
        right.margins(x=0.2)
        right.set_title("ms from when a request was due, by share of own capacity", fontsize=9)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=7, ncols=len(handles), loc="outside lower center")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
