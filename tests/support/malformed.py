"""Malformed inference requests, and a judge of answers that shares no code with what decides.

A case is made from its number alone (see `fuzzing`). It begins as a request that is accepted as it is, so that an
`accept` which should not be is within reach; one to three things of it are then changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from .fuzzing import change_a_field, damaged, number_in
from .studies import PLANTED

Request = service_pb2.ModelInferRequest
OUTPUTS = ("route", "reason", "record", "case_score", "samples_used")
FIELDS = {"FP32": "fp32_contents", "INT32": "int_contents", "UINT64": "uint64_contents"}
KINDS = {"image": "FP32", "spacing": "FP32", "samples": "INT32", "seed": "UINT64"}
TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES", "", "fp32", "float", "TYPE_FP32", "FP32 ", "FP128",
)  # fmt: skip
PARAMETERS = (
    "timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "shared_memory_region",
    "shared_memory_offset", "shared_memory_byte_size", "binary_data", "binary_data_size", "binary_data_output",
    "classification", "headers", "triton_enable_empty_final_response", "triton_", "route", "samples",
)  # fmt: skip
WORDS = (
    *OUTPUTS, *KINDS, *TYPES[:14], *PARAMETERS, *PLANTED.values(), "pneumonia", "pneumonia_sampler", "hippocampus",
    "nuclei", "masks", "accept", "1", "2", "region", "mean",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A public model as the judge knows it: written down here, not read from what is tested.

    Attributes:
        extents: of the image's axes after N; 0 is free.
        spacing: range in mm that can be accepted on every axis; None: any, and none is needed.
        samples: T of its policy.
    """

    name: str
    extents: tuple[int, ...]
    size: tuple[int, ...]
    spacing: tuple[float, float] | None
    samples: int

    @property
    def rank(self) -> int:
        return len(self.extents) - 1


SAMPLES = 4
MODELS = {
    "pneumonia": Model("pneumonia", (1, 28, 28), (28, 28), None, SAMPLES),
    "hippocampus": Model("hippocampus", (1, 0, 0, 0), (16, 16, 16), (0.9, 1.1), SAMPLES),
    "nuclei": Model("nuclei", (1, 0, 0), (32, 32), None, SAMPLES),
}


def picture(model: Model, number: int = 0) -> NDArray[np.float32]:
    """`[1, *S]`: a bright block on noise; the same for the same number."""
    image = np.random.default_rng(number).normal(100.0, 10.0, (1, *model.size))
    image[(slice(None), *(slice(size // 4, size // 2) for size in model.size))] += 300.0
    return image.astype(np.float32)


def valid(model: Model, number: int = 0) -> Request:
    """What is accepted unless it is changed."""
    request = Request(model_name=model.name, id=str(number))
    image = picture(model, number)[None]
    _put(request, "image", image)
    if model.spacing is not None:
        _put(request, "spacing", np.ones((1, model.rank), np.float32))
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return request


def _put(request: Request, name: str, values: NDArray[Any], datatype: str | None = None) -> None:
    request.inputs.add(name=name, datatype=datatype or KINDS[name], shape=values.shape)
    request.raw_input_contents.append(values.tobytes())


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        changes: what was done to it, for people.
    """

    number: int
    changes: tuple[str, ...]
    message: bytes

    def __str__(self) -> str:
        return f"case {self.number} ({', '.join(self.changes)})"


def by_field(seed: int, number: int) -> Case:
    """One to three changes of fields: those that are aimed at something, or any along the descriptors."""
    random = Random(f"{seed}:{number}")
    request = valid(_some_model(random), number % 8)
    changes = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if random.random() < 0.35:
            change_a_field(random, request, WORDS)
            changes.append("any field")
        else:
            aimed = random.choice(AIMED)
            aimed(random, request)
            changes.append(aimed.__name__.strip("_"))
    return Case(number, tuple(changes), request.SerializeToString())


def by_bytes(seed: int, number: int) -> Case:
    """The serialised message damaged, mostly where its structure is and not in its pixels."""
    random = Random(f"{seed}:{number}")
    content = valid(_some_model(random), number % 8).SerializeToString()
    return Case(number, ("bytes",), damaged(random, content, hot=140))


def _some_model(random: Random) -> Model:
    return MODELS[random.choices(("pneumonia", "nuclei", "hippocampus"), (18, 1, 1))[0]]


# Aimed changes. Each takes the request as it is, which an earlier change may have emptied.


def _input(random: Random, request: Request, name: str = "") -> Any:
    """An input, that of the name where there is one."""
    named = [each for each in request.inputs if each.name == name]
    return random.choice(named or list(request.inputs) or [request.inputs.add(name="image", datatype="FP32")])


def _raw(request: Request, name: str) -> int | None:
    """Index of an input's bytes."""
    for index, each in enumerate(request.inputs):
        if each.name == name and index < len(request.raw_input_contents):
            return index
    return None


def _pixels(request: Request) -> NDArray[np.float32] | None:
    index = _raw(request, "image")
    if index is None or len(request.raw_input_contents[index]) % 4:
        return None
    return np.frombuffer(request.raw_input_contents[index], "<f4").copy()


def _model(random: Random, request: Request) -> None:
    names = ("", "pneumoni", "pneumonia_sampler", "../pneumonia", "pneumonia\0", "x" * 4000, "PNEUMONIA")
    request.model_name = random.choice(names)


def _version(random: Random, request: Request) -> None:
    request.model_version = random.choice(("0", "1", "2", "-1", "1.0", "01", "a", " 1", "9" * 40, "\0"))


def _identity(random: Random, request: Request) -> None:
    request.id = random.choice((*PLANTED.values(), "x" * (1 << 20), "\0", "<script>", ""))


def _a_dimension(random: Random, request: Request) -> None:
    shape = _input(random, request, random.choice(("image", "image", "spacing"))).shape
    if shape:
        shape[random.randrange(len(shape))] = number_in(random, -(2**63), 2**63 - 1)


def _overflowing_shape(random: Random, request: Request) -> None:
    """The number of bytes is 0, or that of the image, modulo 2⁶⁴ or 2³²."""
    each = _input(random, request, "image")
    tail = list(each.shape[1:])
    first = random.choice((2**62, 2**61, 2**60, 2**58, 2**32 + 1, 2**30, 2**62 + 1, 2**63 - 1))
    if random.random() < 0.3:
        tail = [random.choice((2**16, 2**20, 2**31, 2**32)) for _ in tail]
    each.shape[:] = [first, *tail]
    index = _raw(request, "image")
    if index is not None and random.random() < 0.5:
        request.raw_input_contents[index] = b""


def _rank(random: Random, request: Request) -> None:
    shape = _input(random, request, "image").shape
    shape[:] = random.choice(([], [*shape, 1], [1, *shape], shape[1:], shape[:-1], [1] * 200, [-1] * len(shape)))


def _same_elements_other_shape(random: Random, request: Request) -> None:
    shape = _input(random, request, "image").shape
    if random.random() < 0.5:
        random.shuffle(shape)
    else:
        shape[:] = [max(1, math.prod(max(1, abs(size)) for size in shape) % 2**31)]


def _more_images_than_bytes(random: Random, request: Request) -> None:
    shape = _input(random, request, "image").shape
    if shape:
        shape[0] = random.choice((0, 2, 3, 1000, 2**31))


def _two_images(random: Random, request: Request) -> None:
    """Right where everything has two rows, wrong where something has one."""
    for name in ("image", "spacing"):
        index = _raw(request, name)
        if index is not None and request.inputs[index].shape and random.random() < 0.9:
            request.inputs[index].shape[0] = 2
            request.raw_input_contents[index] *= 2


def _datatype(random: Random, request: Request) -> None:
    _input(random, request, random.choice(("image", "spacing", "image"))).datatype = random.choice(TYPES)


def _datatype_and_bytes(random: Random, request: Request) -> None:
    """The same numbers in another type."""
    pixels, kinds = _pixels(request), {"FP64": "<f8", "INT32": "<i4", "FP16": "<f2", "UINT8": "u1", "INT64": "<i8"}
    if pixels is not None:
        name = random.choice(sorted(kinds))
        index = _raw(request, "image")
        request.inputs[index].datatype = name
        with np.errstate(all="ignore"):
            request.raw_input_contents[index] = pixels.astype(kinds[name]).tobytes()


def _bytes_elements(random: Random, request: Request) -> None:
    """Strings, with true and false lengths before them."""
    each, index = _input(random, request, "image"), _raw(request, "image")
    each.datatype = "BYTES"
    length = random.choice((0, 4, 2**31, 2**32 - 1, 2**16))
    content = length.to_bytes(4, "little") + random.choice(sorted(PLANTED.values())).encode()
    if index is not None:
        request.raw_input_contents[index] = content * random.choice((1, 2, 784))


def _raw_length(random: Random, request: Request) -> None:
    if request.raw_input_contents:
        index = random.randrange(len(request.raw_input_contents))
        content = request.raw_input_contents[index]
        by = random.choice((1, 2, 3, 4, 112))
        request.raw_input_contents[index] = random.choice(
            (content[:-by], content + bytes(by), b"", content * 2, bytes(1 << 20), content[: len(content) // 2])
        )


def _raw_count(random: Random, request: Request) -> None:
    given = list(request.raw_input_contents)
    request.raw_input_contents[:] = random.choice(([], given[1:], [*given, b""], [*given, *given], given[::-1]))


def _typed_contents(random: Random, request: Request) -> None:
    """Numbers in the field of their type instead of bytes: right, unless something else is wrong."""
    given, request_raw = list(request.raw_input_contents), request.raw_input_contents
    kinds = {"FP32": "<f4", "INT32": "<i4", "UINT64": "<u8"}
    for each, content in zip(request.inputs, given, strict=False):
        if each.datatype in kinds and len(content) % 8 in (0, 4) and len(content) < 1 << 16:
            with np.errstate(all="ignore"):
                values = np.frombuffer(content[: len(content) // 8 * 8] if each.datatype == "UINT64" else content,
                                       kinds[each.datatype])  # fmt: skip
            getattr(each.contents, FIELDS[each.datatype])[:] = values.tolist()
    if random.random() < 0.8:
        del request_raw[:]  # else: both, which contradict each other


def _typed_contents_of_another_type(random: Random, request: Request) -> None:
    each = _input(random, request, "image")
    field = random.choice([field.name for field in each.contents.DESCRIPTOR.fields])
    getattr(each.contents, field)[:] = [b"x"] * 784 if field == "bytes_contents" else [1] * 784
    if random.random() < 0.7:
        del request.raw_input_contents[:]


def _typed_contents_of_another_length(random: Random, request: Request) -> None:
    _typed_contents(random, request)
    values = _input(random, request, "image").contents.fp32_contents
    del values[random.choice((0, 1, len(values) // 2)) :]
    if random.random() < 0.3:
        values.extend([1.0] * 2000)


def _pixels_not_finite(random: Random, request: Request) -> None:
    pixels = _pixels(request)
    if pixels is not None and pixels.size:
        pixels[random.randrange(pixels.size)] = random.choice((math.nan, math.inf, -math.inf))
        if random.random() < 0.3:
            pixels[:] = math.nan
        request.raw_input_contents[_raw(request, "image")] = pixels.tobytes()


def _odd_pixels(random: Random, request: Request) -> None:
    """Finite all the same: nothing is malformed here."""
    pixels = _pixels(request)
    if pixels is not None and pixels.size:
        value = random.choice((0.0, -0.0, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e30, 255.0))
        pixels[random.randrange(pixels.size) if random.random() < 0.7 else slice(None)] = value
        request.raw_input_contents[_raw(request, "image")] = pixels.tobytes()


def _spacing(random: Random, request: Request) -> None:
    index, rank = _raw(request, "spacing"), MODELS.get(request.model_name, MODELS["pneumonia"]).rank
    rank = random.choice((rank, rank, rank, 1, 7))
    odd = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, 1e-38, 3e38, 0.89, 1.0, 1.1, 5.0)
    values = np.array([[random.choice((1.0, *odd)) for _ in range(rank)]] * random.choice((1, 1, 1, 2)), np.float32)
    if index is None:
        _put(request, "spacing", values)
    else:
        request.inputs[index].shape[:] = values.shape
        request.raw_input_contents[index] = values.tobytes()


def _without_spacing(random: Random, request: Request) -> None:
    index = _raw(request, "spacing")
    if index is not None:
        del request.inputs[index]
        del request.raw_input_contents[index]


def _samples(random: Random, request: Request) -> None:
    count = random.choice((0, -1, 1, 2, SAMPLES, SAMPLES + 1, 20, 1001, 2**31 - 1, -(2**31)))
    rows = random.choice((1, 1, 1, 0, 2))
    _put(request, "samples", np.full((rows, 1), count, np.int32))


def _seed(random: Random, request: Request) -> None:
    _put(request, "seed", np.full((random.choice((1, 1, 2, 0)), 1), number_in(random, 0, 2**64 - 1), np.uint64))


def _parameter(random: Random, request: Request) -> None:
    """Of the request, an input or an output, of every kind, what is known and what is not."""
    holders = [request, request, *request.inputs, *request.outputs]
    parameter = random.choice(holders).parameters[random.choice(PARAMETERS)]
    match random.randrange(6):
        case 0:
            parameter.bool_param = random.random() < 0.5
        case 1:
            parameter.int64_param = number_in(random, -(2**63), 2**63 - 1)
        case 2:
            parameter.uint64_param = number_in(random, 0, 2**64 - 1)
        case 3:
            parameter.string_param = random.choice(WORDS)
        case 4:
            parameter.double_param = random.choice((0.0, -1.0, 1e308, math.nan, math.inf))
        case _:
            parameter.SetInParent()


def _deadline(random: Random, request: Request) -> None:
    request.parameters["timeout"].int64_param = random.choice((1, 2, 100, 1000, 10_000, 2**62, 2**63 - 1, -1, -(2**63)))


def _priority(random: Random, request: Request) -> None:
    request.parameters["priority"].uint64_param = random.choice((0, 1, 2, 3, 255, 2**32, 2**32 + 1, 2**63, 2**64 - 1))


def _sequence(random: Random, request: Request) -> None:
    identity = request.parameters["sequence_id"]
    if random.random() < 0.5:
        identity.int64_param = random.choice((0, 1, -1, 2**63 - 1))
    else:
        identity.string_param = random.choice(("", "a", "x" * 1000))
    for name in ("sequence_start", "sequence_end"):
        if random.random() < 0.7:
            request.parameters[name].bool_param = random.random() < 0.5


def _input_from_shared_memory(random: Random, request: Request) -> None:
    each, index = _input(random, request, "image"), _raw(request, "image")
    _region(random, each.parameters)
    if index is not None and random.random() < 0.7:
        del request.raw_input_contents[index]


def _output_into_shared_memory(random: Random, request: Request) -> None:
    if request.outputs:
        _region(random, random.choice(request.outputs).parameters)


def _region(random: Random, parameters: Any) -> None:
    parameters["shared_memory_region"].string_param = random.choice(("", "region", "../../etc/passwd", "equipoise_1_"))
    if random.random() < 0.8:
        parameters["shared_memory_byte_size"].int64_param = random.choice((0, 4, 3136, -1, 2**62, 2**63 - 1))
    if random.random() < 0.5:
        parameters["shared_memory_offset"].int64_param = random.choice((0, 1, -1, 2**62, 2**63 - 1, -(2**63)))


def _classification(random: Random, request: Request) -> None:
    """Triton's extension that sorts an output's values."""
    if request.outputs:
        count = random.choice((0, 1, 2, 5, -1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)))
        random.choice(request.outputs).parameters["classification"].int64_param = count


def _outputs(random: Random, request: Request) -> None:
    names = random.choice((["median"], [""], ["route"] * 3, ["route"] * 1000, ["sum_p"], ["route", "image"], []))
    del request.outputs[:]
    for name in names:
        request.outputs.add(name=name)


def _every_output(random: Random, request: Request) -> None:
    del request.outputs[:]


def _input_twice(random: Random, request: Request) -> None:
    """The image twice: the same, or another one, at the front or at the back."""
    index = _raw(request, "image")
    if index is None:
        return
    copy, content = Request.InferInputTensor(), request.raw_input_contents[index]
    copy.CopyFrom(request.inputs[index])
    if random.random() < 0.7:
        content = bytes(len(content))
    inputs, contents = [*request.inputs], [*request.raw_input_contents]
    at = random.choice((0, len(inputs)))
    inputs.insert(at, copy)
    contents.insert(min(at, len(contents)), content)
    del request.inputs[:], request.raw_input_contents[:]
    request.inputs.extend(inputs)
    request.raw_input_contents.extend(contents)


def _unknown_input(random: Random, request: Request) -> None:
    name = random.choice(("mask", "masks", "Image", "image ", "", PLANTED["PatientName"], "route"))
    for _ in range(random.choice((1, 1, 500))):
        _put(request, name, np.zeros((1, 1), np.float32), "FP32")


def _rename_input(random: Random, request: Request) -> None:
    _input(random, request, "image").name = random.choice(("", "Image", "masks", "spacing", "samples", "x" * 9000))


def _no_input(random: Random, request: Request) -> None:
    del request.inputs[:]
    if random.random() < 0.5:
        del request.raw_input_contents[:]


AIMED: tuple[Callable[[Random, Request], None], ...] = (
    _model, _version, _identity, _a_dimension, _a_dimension, _overflowing_shape, _overflowing_shape, _rank,
    _same_elements_other_shape, _more_images_than_bytes, _two_images, _datatype, _datatype_and_bytes, _bytes_elements,
    _raw_length, _raw_length, _raw_count, _typed_contents, _typed_contents_of_another_type,
    _typed_contents_of_another_length, _pixels_not_finite, _pixels_not_finite, _odd_pixels, _spacing, _spacing,
    _without_spacing, _samples, _samples, _seed, _parameter, _parameter, _parameter, _deadline, _priority, _sequence,
    _input_from_shared_memory, _output_into_shared_memory, _classification, _classification, _outputs, _every_output,
    _input_twice, _input_twice, _unknown_input, _rename_input, _no_input,
)  # fmt: skip


# The judge.


@dataclass(frozen=True)
class Question:
    """One image of a well-formed request that may be accepted: what a record about it has to say."""

    model: str
    digest: str
    spacing: tuple[float, ...] | None


def digest(image: NDArray[np.float32]) -> str:
    """Of `[C, *S]`: SHA-256 of its shape as Python writes it and of its little-endian bytes."""
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.astype("<f4").tobytes()).hexdigest()


def questions(message: bytes) -> list[Question]:
    """What may be accepted of a request, image by image; empty where it is not well-formed, or for study only.

    Contents go with inputs in their order; Triton lets those pass that are left over, and so does this.
    """
    try:
        request = Request.FromString(message)
    except DecodeError:
        return []
    raw = list(request.raw_input_contents)
    if raw and (len(raw) < len(request.inputs) or any(each.HasField("contents") for each in request.inputs)):
        return []
    tensors: dict[str, NDArray[Any]] = {}
    for index, each in enumerate(request.inputs):
        if each.name in tensors or "shared_memory_region" in each.parameters:
            return []
        values = _values(each, raw[index] if raw else None)
        if values is None:
            return []
        tensors[each.name] = values
    if any("shared_memory_region" in each.parameters for each in request.outputs):
        return []
    return asked(request.model_name, request.model_version, tensors)


def asked(name: str, version: str, tensors: Mapping[str, NDArray[Any]]) -> list[Question]:
    """As `questions`, of tensors by name.

    Triton reads names up to a zero byte, and of a version the number that it begins with. That is let pass: the record
    has to name the model that decided, and there is one version.
    """
    model = MODELS.get(name.split("\0")[0])
    if (
        model is None
        or not re.match(r"\s*\+?0*1(?!\d)|$", version)
        or not {"image"} <= set(tensors) <= set(KINDS) - {"seed"}
    ):
        return []
    images, spacing, samples = (tensors.get(each) for each in ("image", "spacing", "samples"))
    assert images is not None
    count = len(images)
    right = all(extent in (0, size) for extent, size in zip(model.extents, images.shape[1:], strict=False))
    if images.ndim != 1 + len(model.extents) or not images.size or not right or not np.isfinite(images).all():
        return []
    if samples is not None and (samples.shape != (count, 1) or (samples != model.samples).any()):
        return []
    if spacing is not None and (spacing.shape != (count, model.rank) or not (spacing > 0).all()):
        return []
    if spacing is not None and not np.isfinite(spacing).all():
        return []
    if model.spacing is not None:
        low, high = model.spacing
        if spacing is None or not ((spacing >= low) & (spacing <= high)).all():
            return []
    gaps = [None] * count if spacing is None else [tuple(float(mm) for mm in row) for row in spacing]
    return [Question(model.name, digest(image), gap) for image, gap in zip(images, gaps, strict=True)]


def _values(tensor: Any, content: bytes | None) -> NDArray[Any] | None:
    """The array of one input, or None where shape, type and content do not agree."""
    kind = KINDS.get(tensor.name)
    shape = tuple(tensor.shape)
    if kind is None or tensor.datatype != kind or any(size < 0 or size > 2**31 for size in shape):
        return None
    numpy_kind = np.dtype({"FP32": "<f4", "INT32": "<i4", "UINT64": "<u8"}[kind])
    if content is None:
        filled = [field.name for field, _ in tensor.contents.ListFields()]
        if filled not in ([FIELDS[kind]], []):
            return None
        content = np.array(getattr(tensor.contents, FIELDS[kind]), numpy_kind).tobytes()
    if len(content) != math.prod(shape) * numpy_kind.itemsize:
        return None
    return np.frombuffer(content, numpy_kind).reshape(shape)


def answers(message: bytes) -> dict[str, list[bytes]]:
    """Strings of `route` and `record` of an answer, by output."""
    response = service_pb2.ModelInferResponse.FromString(message)
    found: dict[str, list[bytes]] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.datatype == "BYTES" and output.name in ("route", "record"):
            found[output.name] = strings(content)
    return found


def strings(content: bytes) -> list[bytes]:
    """Triton's BYTES tensor: each string after its length in four bytes."""
    found, at = [], 0
    while at + 4 <= len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        found.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def wrongly_accepted(allowed: Sequence[Question], routes: Sequence[bytes], records: Sequence[bytes]) -> str:
    """Why an answer accepts what it must not, or "".

    Args:
        allowed: what may be accepted of the request.
        routes, records: of the answer, one per image; those that were not asked for are empty.
    """
    told = [json.loads(each) for each in records]
    accepted = [i for i, route in enumerate(routes) if route == b"accept"]
    accepted += [i for i, record in enumerate(told) if record["route"] == "accept" and i not in accepted]
    for index in accepted:
        if index >= len(allowed):
            return "accepted, and is not well-formed"
        if index < len(told):
            record, question = told[index], allowed[index]
            if (record["model"], record["input_digest"]) != (question.model, question.digest):
                return "accepted, and what was decided on is not what was sent"
            if record["spacing"] != (None if question.spacing is None else list(question.spacing)):
                return "accepted with another spacing than was sent"
    return ""
