"""Public model's tensors: arrays → request, answer → Predictions. Pure functions, no connection here.

One rule above all: whatever is missing, unknown or contradictory in an answer is never routed to `accept`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import tritonclient.grpc
from equipoise_core.contract import Contract, ContractError, Task, parse_contract
from equipoise_core.decision import Route
from numpy.typing import ArrayLike, NDArray

from .errors import BadAnswer, InvalidInput, UnknownModel
from .prediction import Estimate, Prediction, Priority, Value, Volume
from .transport import MESSAGE_LIMIT

MAPS = ("calibrated", "mean", "variance", "aleatoric", "epistemic", "labels")
"""The arrays that come unless other outputs are named: those of them that the model has."""

RETRY_AFTER_PARAMETER = "retry_after_ms"
"""In a public model's configuration: when to ask again after it refused a request because its queue was full."""

_ARRAYS = (*MAPS, "variance_corrected", "labels_sensitive")
_OF_CLASSES = frozenset({"calibrated", "labels", "labels_sensitive"})  # a regression has none
_LONGEST_RETRY = 60_000  # ms: what a server asks for beyond is not believed
_PER_DECISION = ("aleatoric", "epistemic", "labels", "labels_sensitive")  # E entries, the others have K
_VERDICT = ("case_score", "samples_used", "route", "reason", "record")


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked about N images, checked against the contract.

    Attributes:
        images: float32 `[N, C, *S]`, finite.
        outputs: names of the arrays wanted.
        samples, seeds, spacing: INT32 `[N, 1]`, UINT64 `[N, 1]`, FP32 `[N, rank]`, or None.
        priority: as Triton numbers it; 0 is the server's default.
        group: of cases that all images are of, or None.
    """

    images: NDArray[np.float32]
    outputs: tuple[str, ...]
    samples: NDArray[np.int32] | None
    seeds: NDArray[np.uint64] | None
    spacing: NDArray[np.float32] | None
    priority: int
    group: str | None = None


def contract_of(name: str, config: Any) -> Contract:
    """The contract in a model's configuration (`ModelConfigResponse`)."""
    parameters = config.config.parameters
    if "contract" not in parameters:
        raise UnknownModel(
            f"{name} is served, but carries no Equipoise contract; name the public model, not its sampler or another's"
        )
    try:
        return parse_contract(json.loads(parameters["contract"].string_value))
    except (ValueError, ContractError) as error:
        raise BadAnswer(f"{name}: the contract in its configuration cannot be used: {error}") from error


def retry_after_of(config: Any) -> float:
    """Seconds that the model's configuration asks refused clients to wait; 0 where it asks for nothing."""
    stated = config.config.parameters
    text = stated[RETRY_AFTER_PARAMETER].string_value if RETRY_AFTER_PARAMETER in stated else "0"
    return min(int(text), _LONGEST_RETRY) / 1e3 if text.isdigit() else 0.0


def build_request(
    contract: Contract,
    images: Sequence[ArrayLike] | NDArray[Any],
    samples: int | None,
    seeds: Sequence[int] | None,
    spacing: ArrayLike | None,
    outputs: Sequence[str],
    priority: Priority | int | None,
    group: str | None = None,
) -> Request:
    """Raises InvalidInput that says what was given, what is expected and what to do.

    Args:
        images: `[N, C, *S]` or a sequence of `[C, *S]`, all of one size.
        seeds: one per image.
        spacing: mm per spatial axis, `[rank]` for all images or `[N, rank]`.
    """
    batch = _checked_images(contract, images)
    count = len(batch)
    known = [name for name in _ARRAYS if not contract.targets or name not in _OF_CLASSES]
    known += ["uncertainty"] if contract.states_moments else []
    outputs = [name for name in outputs if name in known] if tuple(outputs) == MAPS else outputs
    unknown = sorted(set(outputs) - set(known))
    if unknown:
        raise InvalidInput(f"outputs {unknown} do not exist; choose from {', '.join(known)}")
    if samples is not None and (isinstance(samples, bool) or not 1 <= int(samples) == samples < 2**31):
        raise InvalidInput(f"samples is a whole number of at least 1; got {samples!r}")
    if seeds is not None and len(seeds) != count:
        raise InvalidInput(f"{len(seeds)} seeds for {count} images; give one for each")
    for seed in seeds or ():
        if isinstance(seed, bool) or not 0 <= int(seed) == seed < 2**64:
            raise InvalidInput(f"seed is a whole number from 0 to 2**64 - 1; got {seed!r}")
    if group is not None and not isinstance(group, str):
        raise InvalidInput(f"group is {group!r}; expected a text, such as a scanner's name")
    return Request(
        batch,
        tuple(dict.fromkeys(outputs)),
        None if samples is None else np.full((count, 1), samples, np.int32),
        None if seeds is None else np.array([[int(seed)] for seed in seeds], np.uint64),
        None if spacing is None else _checked_spacing(contract, spacing, count),
        0 if priority is None else _checked_priority(priority),
        group,
    )


def _checked_images(contract: Contract, images: Sequence[ArrayLike] | NDArray[Any]) -> NDArray[np.float32]:
    axes = ", ".join(["C", *(str(extent) for extent in contract.spatial)])
    expected = f"{contract.name} expects [{axes}] with C = {contract.image_channels}"
    try:
        given = np.asarray(images)
    except ValueError as error:
        raise InvalidInput(f"the images have different shapes; send them one by one, or padded: {expected}") from error
    if given.dtype.kind not in "biuf":
        raise InvalidInput(f"image has values of type {given.dtype}; expected real numbers that fit float32")
    if given.ndim != contract.rank + 2:
        raise InvalidInput(f"image has shape {list(given.shape[1:])}; {expected}")
    if given.size == 0:
        raise InvalidInput(f"image is empty, its shape is {list(given.shape[1:])}; {expected}, no size 0")
    if given.shape[1] != contract.image_channels:
        raise InvalidInput(f"image has {given.shape[1]} channels, its shape is {list(given.shape[1:])}; {expected}")
    if given.size * 4 > MESSAGE_LIMIT:
        raise InvalidInput(
            f"{given.size * 4 / 2**30:.1f} GiB of image; one request carries less than 2 GiB: crop it, or send fewer"
        )
    with np.errstate(over="ignore"):
        batch = np.ascontiguousarray(given, np.float32)
    bad = batch.size - int(np.count_nonzero(np.isfinite(batch)))
    if bad:
        raise InvalidInput(
            f"image has {bad} of {batch.size} values that are NaN, infinite or beyond float32; "
            "expected finite intensities: replace them by what the scanner would have given for air"
        )
    return batch


def _checked_spacing(contract: Contract, spacing: ArrayLike, count: int) -> NDArray[np.float32]:
    try:
        millimetres = np.asarray(spacing, np.float32)
        rows = np.broadcast_to(millimetres, (count, contract.rank))
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"spacing is {spacing!r}; expected {contract.rank} numbers in mm, one for each spatial axis"
        ) from error
    if millimetres.ndim == 0 or not (np.isfinite(rows) & (rows > 0)).all():
        raise InvalidInput(f"spacing is {spacing!r}; expected {contract.rank} finite numbers above 0, in mm")
    return np.ascontiguousarray(rows)


def _checked_priority(priority: Priority | int) -> int:
    try:
        return int(Priority(priority))
    except ValueError as error:
        known = ", ".join(f"{each.value} ({each.name.lower()})" for each in Priority)
        raise InvalidInput(f"priority is {priority!r}; expected one of {known}") from error


def arguments_of(contract: Contract, request: Request, headers: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """tritonclient's arguments for `infer`; `seconds` are left, for the client and for the server's queue."""
    inputs = [_tensor("image", request.images, "FP32")]
    optional = (("samples", request.samples, "INT32"), ("seed", request.seeds, "UINT64"))
    for name, values, datatype in (*optional, ("spacing", request.spacing, "FP32")):
        if values is not None:
            inputs.append(_tensor(name, values, datatype))
    estimates = {Task.SEGMENTATION: ("volume", "volume_total"), Task.REGRESSION: ("values",)}.get(contract.task, ())
    return {
        "model_name": contract.name,
        "inputs": inputs,
        "outputs": [tritonclient.grpc.InferRequestedOutput(n) for n in (*request.outputs, *estimates, *_VERDICT)],
        "priority": request.priority,
        "timeout": max(1, int(seconds * 1e6)),
        "headers": dict(headers) or None,
        **({} if request.group is None else {"parameters": {"group": request.group}}),
    }


def _tensor(name: str, values: NDArray[Any], datatype: str) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput(name, list(values.shape), datatype)
    return tensor.set_data_from_numpy(values)


Lookup = Callable[[str], NDArray[Any] | None]
"""Output name → tensor with leading N, or None where the server did not send it (`InferResult.as_numpy`)."""


def decided_by(lookup: Lookup) -> str | None:
    """Digest of the model that answered, where the first record states it."""
    records = lookup("record")
    digest = _record(records.reshape(-1)[0]).get("model_digest") if records is not None and records.size else None
    return digest if isinstance(digest, str) else None


def read_answer(contract: Contract, request: Request, lookup: Lookup) -> tuple[Prediction, ...]:
    """One Prediction per image. Raises BadAnswer where numbers are missing or of another shape than promised."""
    count = len(request.images)
    classes, decisions = len(contract.answers), contract.decisions
    spatial = request.images.shape[2:] if contract.per_voxel else ()

    def tensor(name: str, *shape: int) -> NDArray[Any]:
        values = lookup(name)
        if values is None or values.shape != (count, *shape):
            found = "nothing" if values is None else f"shape {list(values.shape)}"
            raise BadAnswer(f"{contract.name}: output {name} should be {[count, *shape]}; the server sent {found}")
        values.setflags(write=False)
        return values

    channels = {"uncertainty": 1, **dict.fromkeys(_PER_DECISION, decisions)}
    arrays = {name: tensor(name, channels.get(name, classes), *spatial) for name in request.outputs}
    scores, drawn = tensor("case_score", 1), tensor("samples_used", 1)
    volumes = totals = None
    numbers = tensor("values", classes, 4) if contract.targets else None
    if contract.per_voxel:
        volumes, totals = tensor("volume", classes, 4), tensor("volume_total", 4)
    texts = {name: _texts(lookup(name), count) for name in ("route", "reason", "record")}
    return tuple(
        _judged(
            Prediction(
                model=contract.name,
                route=Route.REVIEW,
                reason=texts["reason"][i] or "the server gave no reason",
                case_score=float(scores[i, 0]),
                samples_used=int(drawn[i, 0]),
                volume=None if volumes is None or totals is None else _volume(contract, volumes[i], totals[i]),
                record=MappingProxyType(_record(texts["record"][i])),
                arrays=MappingProxyType({name: values[i] for name, values in arrays.items()}),
                values=None if numbers is None else _values(contract, numbers[i]),
            ),
            texts["route"][i],
        )
        for i in range(count)
    )


def _judged(prediction: Prediction, stated: str | None) -> Prediction:
    """The prediction with the server's route, unless something speaks against believing it."""
    try:
        route = Route(stated)
    except ValueError:
        return prediction.at_most_review("no route came" if stated is None else f"the route {stated!r} is unknown")
    routed = replace(prediction, route=route)
    if not math.isfinite(prediction.case_score):
        return routed.at_most_review("the case score is not a finite number")
    if any(
        not math.isfinite(end)
        for each in (prediction.values or {}).values()
        for end in (each.mean, each.low, each.high)
    ):
        return routed.at_most_review("a number or its interval is not finite")
    if prediction.samples_used < 1 and prediction.record.get("first_pass") is not True:
        return routed.at_most_review("no samples were drawn")
    if prediction.record.get("route") != route.value:
        return routed.at_most_review("the record is missing or states another route")
    return routed


def _volume(contract: Contract, rows: NDArray[Any], total: NDArray[Any]) -> Volume:
    estimates = {contract.classes[k]: Estimate(*(float(value) for value in rows[k])) for k in contract.foreground}
    return Volume(MappingProxyType(estimates), Estimate(*(float(value) for value in total)))


def _values(contract: Contract, rows: NDArray[Any]) -> Mapping[str, Value]:
    pairs = zip(contract.targets, rows.tolist(), strict=True)
    return MappingProxyType(
        {target.name: Value(mean, sd, low, high, target.unit) for target, (mean, sd, low, high) in pairs}
    )


def _texts(values: NDArray[Any] | None, count: int) -> list[str | None]:
    if values is None or values.shape != (count, 1):
        return [None] * count
    return [_text(value) for value in values[:, 0]]


def _text(value: Any) -> str | None:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        return None


def _record(value: Any) -> dict[str, Any]:
    """The record as a dictionary; empty where there is none that can be read."""
    text = _text(value) if value is not None else None
    try:
        document = json.loads(text) if text else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
