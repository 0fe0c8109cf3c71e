"""Asks a server as anybody's tritonclient would: no code of ours between the test and the wire."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc
import tritonclient.http
from equipoise_core.contract import Contract
from equipoise_deploy.serving.readiness import synthetic_image
from equipoise_lab.reference.specs import REFERENCES
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

T = TypeVar("T")

Tensors = Mapping[str, NDArray[Any]]

MODELS = tuple(REFERENCES)
"""The reference models: all of them are committed, so all of them are served."""

CLIENTS: Mapping[str, ModuleType] = MappingProxyType({"grpc": tritonclient.grpc, "http": tritonclient.http})

SMALL: Mapping[str, tuple[tuple[int, ...], ...]] = MappingProxyType(
    {"hippocampus": ((16, 16, 16), (24, 16, 20)), "nuclei": ((32, 32), (40, 24)), "pneumonia": ((28, 28),)}
)
"""Sizes of images that are answered quickly; one of each network is not a multiple of what its pooling asks for."""


def picture(contract: Contract, size: Sequence[int], seed: int) -> NDArray[np.float32]:
    """`[C, *size]`: a bright ball among waves under noise of its own, in the range that the contract expects."""
    clean = synthetic_image(replace(contract, nominal=tuple(size)))[0]
    noise = np.random.default_rng(seed).normal(0.0, 0.1 * float(np.ptp(clean)), clean.shape)
    return (clean + noise).astype(np.float32)


def ask(client: Any, model: str, tensors: Tensors, outputs: Sequence[str], **options: Any) -> dict[str, NDArray[Any]]:
    """One request through tritonclient, gRPC or HTTP as `client` is; outputs by name."""
    kind = kind_of(client)
    inputs = inputs_of(kind, tensors)
    answer = client.infer(model, inputs, outputs=[kind.InferRequestedOutput(name) for name in outputs], **options)
    return {name: answer.as_numpy(name) for name in outputs}


def kind_of(client: Any) -> ModuleType:
    """tritonclient.grpc or tritonclient.http."""
    return next(kind for kind in CLIENTS.values() if isinstance(client, kind.InferenceServerClient))


def inputs_of(kind: ModuleType, tensors: Tensors) -> list[Any]:
    """tritonclient's inputs; the shape and type are the arrays' own, right or wrong."""
    return [
        kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in tensors.items()
    ]


def case(
    image: NDArray[np.float32],
    *,
    samples: int | None = None,
    seed: int | None = None,
    spacing: Sequence[float] | None = None,
) -> dict[str, NDArray[Any]]:
    """The public model's inputs for one image `[C, *S]`."""
    tensors: dict[str, NDArray[Any]] = {"image": image[None]}
    if samples is not None:
        tensors["samples"] = np.array([[samples]], np.int32)
    if seed is not None:
        tensors["seed"] = np.array([[seed]], np.uint64)
    if spacing is not None:
        tensors["spacing"] = np.array([spacing], np.float32)
    return tensors


def text(values: NDArray[Any]) -> str:
    """The one string of a BYTES output."""
    (value,) = values.reshape(-1)
    return value.decode() if isinstance(value, bytes) else str(value)


def poll(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Waits until `condition` returns something true, and returns it; fails saying what was waited for."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        pause.wait(0.01)
    return value


def settled(read: Callable[[], T], seconds: float = 60.0) -> T:
    """What is read once two looks a second apart are equal: Triton counts, and tells, some time after it answered."""
    looks, pause = [read()], threading.Event()

    def same() -> bool:
        pause.wait(1.0)
        looks.append(read())
        return looks[-1] == looks[-2]

    poll(same, "nothing changes any more", seconds)
    return looks[-1]


def metric(url: str, name: str, *labels: str) -> float:
    """The sum over all series of that name which carry these labels, on a server's page of metrics."""
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    series = [line for line in lines if line.startswith(name + "{") and all(label in line for label in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in series)
