"""How fast is it? What another shape costs, and what is served against what people serve today on the same device."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness, synthetic_image
from equipoise_deploy.serving.server import TritonServer
from equipoise_lab.reference.specs import REFERENCES

from ..benchmarks.bench_serving import (
    TOGETHER,
    Peer,
    T,
    closed_loop,
    fastapi_peer,
    http,
    in_process,
    plain_onnx,
    served,
    several,
)
from ..support.resources import name_of
from ..support.steps import Note
from .answers import feeds_of, threads
from .target import REPOSITORY, Sampled, Target, busy, torch_device

FEW, MANY = 8, 20  # T of a chunk, and of everything
CLIENTS = (1, 8)


def rebuilds(target: Target, note: Note) -> str:
    """The first and the next runs after a change of shape: cuDNN keeps the plans of the last shape alone."""
    worst = 0.0
    for name in target.models:
        contract = target.contract(name)
        smaller = tuple(max(contract.preprocessing.multiple, size // 2) for size in contract.nominal)
        sizes = [contract.nominal] if contract.spatial == contract.nominal else [contract.nominal, smaller]
        if target.small:
            sizes = [sizes[-1]]
        images = (1, 2) if target.small else (1, 2, 4, 8)
        shapes = [(1, samples, sizes[0]) for samples in (MANY, FEW, MANY)]
        shapes += [(n, FEW, size) for size in sizes for n in images] + [(1, FEW, sizes[0])]
        session, rows = target.session(target.sampler(name)), []
        for n, samples, size in shapes:
            if target.left < 0:
                break
            feeds = feeds_of(contract, n, samples, size)
            first, *others = [_milliseconds(partial(session.run, None, feeds)) for _ in range(3)]
            shape = f"N={n} T={samples} {'×'.join(map(str, size))}"
            rows.append({"shape": shape, "first ms": first, "then ms": min(others)})
            worst = max(worst, first - min(others))
        note(name, {f"{number}: {row.pop('shape')}": row for number, row in enumerate(rows, 1)})
    return f"a first run of a shape takes up to {worst:.0f} ms longer than the next"


def _milliseconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def throughput(target: Target, note: Note) -> str:
    """Images per second and median latency, all samples named; and what the host does meanwhile."""
    if target.cuda and torch_device() == "cpu":
        note("unequal", "this PyTorch is a CPU build: loop and batch ran on the processor, not on the GPU")
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's older exporter is the one that keeps dropout
    seconds, said = 0.4 if target.small else 2.0, []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(TritonServer(REPOSITORY, ports=Ports(0, 0, 0)))
        check_readiness(server.grpc_url, server.models)
        for name in target.models[:1] if target.small else target.models:
            if target.left < 0:
                said.append(f"{name}: no time left")
                continue
            contract = target.contract(name)
            image = synthetic_image(contract)[0]
            rows: dict[str, Any] = {}
            ours = served(server.grpc_url, name, image)
            closed_loop(ours, CLIENTS[-1], seconds / 2)  # plans and caches
            rows["equipoise"] = _loads(ours, seconds)
            rows[f"equipoise, by {TOGETHER}"] = _loads(several(server.grpc_url, name, image), seconds)
            note(f"{name}, host", _host(server, ours, seconds))
            normalised = contract.preprocessing.normalise(image)
            rows["in process"] = _loads(in_process(target.runner(name), contract, normalised), seconds)
            note(name, rows)
            network = REFERENCES[name].trained()
            torch.save(network, folder / "network.pt")
            plain_onnx(network, torch.from_numpy(image[None]), folder / "network.onnx")
            for kind, file, device in (
                ("loop", "network.pt", torch_device()),
                ("batch", "network.pt", torch_device()),
                ("copies", "network.onnx", "cuda" if target.cuda else "cpu"),
            ):
                with fastapi_peer(kind, folder / file, image.shape, threads(), device) as url:
                    peer = Peer(kind, http(url, image).connect)
                    closed_loop(peer, 1, seconds / 2)
                    rows[kind] = _loads(peer, seconds)
                note(name, rows)
            last = f"{CLIENTS[-1]} clients"
            rate = {peer: row[last]["per s"] for peer, row in rows.items()}
            ratios = {peer: rate["equipoise"] / rate[peer] for peer in rate if peer != "equipoise"}
            note(f"{name}, equipoise is × as fast as", ratios)
            said.append(f"{name}: {ratios['loop']:.3g} × the loop, {ratios['copies']:.3g} × copies")
    return "; ".join(said)


def _loads(peer: Peer, seconds: float) -> dict[str, dict[str, float]]:
    found = {}
    for clients in CLIENTS:
        rate, latency = closed_loop(peer, clients, seconds)
        found[f"{clients} clients"] = {"per s": rate, "p50 ms": latency}
    return found


def _host(server: TritonServer, ours: Peer, seconds: float) -> dict[str, Any]:
    """Processor time per request of each kind of process, and how long the GPU had nothing to do."""
    processes = {psutil.Process(each.pid): name_of(each.pid) for each in server.processes()}
    before = {each: _processor(each) for each in processes}
    with Sampled(busy) as used:
        rate, _ = closed_loop(ours, CLIENTS[-1], seconds)
    answered = rate * seconds + CLIENTS[-1]  # each client begins with one that is not timed
    spent: dict[str, float] = {}
    for each, kind in processes.items():
        spent[kind] = spent.get(kind, 0.0) + 1e3 * (_processor(each) - before[each]) / answered
    return {
        "wall ms per request": 1e3 / rate,
        "processor ms per request": {kind: value for kind, value in spent.items() if value > 0},
        "GPU idle, %": None if used.mean is None else 100.0 - used.mean,
        "T": T,
    }


def _processor(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)
