"""What does it hold, and does it come back? Memory over growing requests; kill −9 of a sampler and of the server."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton
from equipoise_core.contract import Precision
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.processes import Process
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer

from ..support.asking import ask, picture
from ..support.processes import Serving, serving
from ..support.resources import MB, usage
from ..support.steps import Note, Wrong
from .target import REPOSITORY, Sampled, Target, nvidia_smi, provider_options

SAME = 1e-3
"""Largest difference of two answers to one image, before and after a restart on the same device."""


def memory(target: Target, note: Note) -> str:
    """More and larger images, then the first ones again: on a GPU its memory, on the CPU that of all processes."""
    with (
        TritonServer(REPOSITORY, ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        check_readiness(server.grpc_url, server.models)

        def held() -> float:
            """MB."""
            found = nvidia_smi("memory.used") if target.cuda else None
            return float(found[0]) if found else usage(each.pid for each in server.processes()).pss / MB

        rows: dict[str, float] = {"ready": held()}
        with Sampled(held) as peak:
            for name in target.models:
                contract = target.contract(name)
                larger = tuple(
                    min(2 * size, most) for size, most in zip(contract.nominal, contract.maximum, strict=True)
                )
                loads = [(1, contract.nominal), (2 if target.small else 8, contract.nominal)]
                loads += [] if target.small or larger == contract.nominal else [(1, larger)]
                for images, size in [*loads, loads[0]]:
                    if target.left < 0:
                        break
                    image = np.stack([picture(contract, size, seed) for seed in range(images)])
                    ask(client, name, {"image": image, "samples": np.full((images, 1), 20, np.int32)}, ("mean",))
                    rows[f"{len(rows)}: {name} N={images} {'×'.join(map(str, size))}"] = held()
    limit = provider_options(Precision.FP32).get("gpu_mem_limit")
    samplers = sum(path.parent.name not in server.models for path in REPOSITORY.glob("*/config.pbtxt"))
    note("MB held after each", rows)
    note("MB at most", peak.largest)
    note("limit of a sampler, MB", int(limit) / MB if limit else "none is configured")
    if target.cuda and limit and (peak.largest or 0.0) > rows["ready"] + samplers * int(limit) / MB:
        raise Wrong(f"{peak.largest:.0f} MB of the GPU are held, more than {samplers} samplers may together")
    kind = "of the GPU" if target.cuda else "of all processes"
    return f"{rows['ready']:.0f} MB {kind} when ready, {peak.largest or 0.0:.0f} at most"


def recovery(target: Target, note: Note) -> str:
    """`equipoise serve` restarts what was killed; afterwards the answer is the one from before."""
    contract, said = target.contract("pneumonia"), []
    image = {"image": picture(contract, contract.nominal, seed=1)[None]}

    def answer(server: Serving) -> Any:
        with triton.InferenceServerClient(server.urls["grpc"]) as client:
            return ask(client, "pneumonia", image, ("mean",), client_timeout=30)["mean"]

    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(REPOSITORY, Path(scratch), os.environ, ("--drain-seconds=0",)) as server,
    ):
        before = answer(server)
        for what, chosen in (("sampler", _sampler_process), ("tritonserver", _triton_process)):
            begin = time.monotonic()
            psutil.Process(chosen(server).pid).kill()
            until(lambda: server.health()[0] != 200, target, f"the killed {what} is noticed")
            noticed = time.monotonic() - begin
            until(lambda: server.health()[0] == 200, target, f"it serves again after the {what} was killed")
            seconds = time.monotonic() - begin
            far = float(np.abs(answer(server) - before).max())
            note(what, {"noticed after s": noticed, "serving after s": seconds, "difference": far})
            said.append(f"{what} back after {seconds:.1f} s")
            if not far <= SAME:
                raise Wrong(f"after the {what} was killed the answer differs by {far:.2g}")
    return "; ".join(said)


def until(asked: Callable[[], bool], target: Target, what: str) -> None:
    """Waits for it. Raises Wrong when the step's time is over."""
    while not asked():
        if target.left < 0:
            raise Wrong(f"within {target.seconds:.0f} s not seen: {what}")
        time.sleep(0.1)


def _sampler_process(server: Serving) -> Process:
    """The stand-in's; the native backend has none: then one of the public model's."""
    named = {each.model: each for each in server.processes()}
    return named.get("pneumonia_sampler") or named["pneumonia"]


def _triton_process(server: Serving) -> Process:
    return next(each for each in server.processes() if not each.model)
