"""What is sent: a weighted mix of requests, each built once and sent as bytes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import InvalidInput
from equipoise_client.images import fit, read_image
from equipoise_client.images.synthetic import synthetic_image
from equipoise_client.prediction import Priority
from equipoise_core.contract import Contract, Task
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

DECISION = ("case_score", "samples_used", "route")
"""What a decision alone needs back; the record is left out, nothing here reads it."""


@dataclass(frozen=True, eq=False)
class Payload:
    """One kind of request.

    Attributes:
        label: model, size, T and priority, for people.
        image: `[N, C, *S]`, N times the same; spacing and samples are of each.
        message: the serialized request, sent as it is.
        weight: how often it is sent, relative to the others.
    """

    label: str
    model: str
    image: NDArray[np.float32]
    spacing: tuple[float, ...] | None
    samples: int | None
    message: bytes
    weight: float


@dataclass(frozen=True)
class Wish:
    """What the caller wants mixed.

    Attributes:
        models: name → weight.
        images: files; each goes to every model that can read it. Empty: a synthetic image of each model's own size.
        samples: values of T to mix; empty: the policy's.
        urgent: share of urgent requests, 0 to 1.
        outputs: the arrays to ask for, besides the decision.
        timeout: seconds, after which the server's queue drops a request: nobody waits for it any more.
        per_request: N, images of each request.
    """

    models: dict[str, float]
    images: tuple[Path, ...]
    samples: tuple[int, ...]
    urgent: float
    outputs: tuple[str, ...]
    timeout: float
    per_request: int = 1


def build_mix(client: UncertaintyClient, wish: Wish) -> tuple[Payload, ...]:
    """All combinations. Raises InvalidInput where an image fits none of the models."""
    payloads: list[Payload] = []
    unused = {str(path): "" for path in wish.images}
    for name, weight in wish.models.items():
        contract = client.contract(name)
        pictures: list[tuple[str, NDArray[np.float32], tuple[float, ...] | None]] = []
        for path in wish.images:
            try:
                prepared = fit(read_image(path), contract)
            except InvalidInput as error:
                if unused.get(str(path)) == "":
                    unused[str(path)] = str(error)
                continue
            unused.pop(str(path), None)
            pictures.append((path.name, prepared.pixels[None], prepared.spacing))
        if not wish.images:
            spacing = None if contract.spacing is None else tuple((low + high) / 2 for low, high in contract.spacing)
            pictures.append(("synthetic", synthetic_image(contract), spacing))
        urgencies = [(Priority.URGENT, wish.urgent), (Priority.ROUTINE, 1.0 - wish.urgent)]
        kinds = list(itertools.product(pictures, wish.samples or (None,), [u for u in urgencies if u[1] > 0.0]))
        for (_, single, spacing), samples, (priority, share) in kinds:
            image = np.repeat(single, wish.per_request, axis=0)
            message = _message(contract, image, spacing, samples, priority, wish)
            size = (f"{len(image)} of " if len(image) > 1 else "") + "x".join(map(str, image.shape[2:]))
            label = (
                f"{name} {size}{'' if samples is None else f' T={samples}'}{' urgent' * (priority is Priority.URGENT)}"
            )
            each = weight * share / (len(pictures) * max(1, len(wish.samples)))
            payloads.append(Payload(label, name, image, spacing, samples, message, each))
    if unused:
        file, why = next(iter(unused.items()))
        raise InvalidInput(f"{file} fits none of {', '.join(wish.models)}: {why}")
    return tuple(payloads)


def shuffled(payloads: Sequence[Payload], seed: int) -> Iterator[int]:
    """Indices of payloads without end, drawn by weight."""
    source = random.Random(seed)  # noqa: S311 (mixes requests, guards nothing)
    weights = [payload.weight for payload in payloads]
    indices = range(len(payloads))
    while True:
        yield from source.choices(indices, weights, k=1024)


def _message(
    contract: Contract,
    image: NDArray[np.float32],
    spacing: tuple[float, ...] | None,
    samples: int | None,
    priority: Priority,
    wish: Wish,
) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=contract.name)
    tensors: dict[str, NDArray[np.generic]] = {"image": np.ascontiguousarray(image, np.float32)}
    if samples is not None:
        tensors["samples"] = np.full((len(image), 1), samples, np.int32)
    if spacing is not None:
        tensors["spacing"] = np.array([spacing] * len(image), np.float32)
    for name, tensor in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(tensor.dtype), shape=tensor.shape)
        request.raw_input_contents.append(tensor.tobytes())
    volumes = ("volume",) if contract.task is Task.SEGMENTATION else ()
    for output in (*DECISION, *volumes, *wish.outputs):
        request.outputs.add(name=output)
    request.parameters["priority"].uint64_param = int(priority)
    request.parameters["timeout"].int64_param = max(1, int(wish.timeout * 1e6))
    return request.SerializeToString()
