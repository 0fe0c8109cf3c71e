"""Malformed HTTP: inference as JSON and with the binary extension, other endpoints, and bytes that are hardly HTTP."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fuzzing import INTEGERS, damaged
from .malformed import AIMED, KINDS, MODELS, WORDS, Question, asked, strings, valid
from .studies import PLANTED

NUMPY = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8", "UINT64": "<u8", "UINT8": "u1", "FP16": "<f2"}
HEADER = "Inference-Header-Content-Length"
DEEPEST = 200
"""Levels of JSON. This server's parser recurses: a million levels end it, see `test_known_faults`."""

WRITTEN = ("/tmp/equipoise-fuzz-trace", "/tmp/equipoise-fuzz-log")
"""Files that requests ask the server to write."""

ENDPOINTS = (
    ("GET", "/v2"), ("GET", "/v2/health/ready"), ("GET", "/v2/models/pneumonia"), ("GET", "/v2/models/stats"),
    ("GET", "/v2/models/pneumonia/config"), ("GET", "/v2/models/pneumonia/versions/9/ready"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/pneumonia/load"), ("POST", "/v2/repository/models/pneumonia/unload"),
    ("POST", "/v2/repository/models/../../etc/load"), ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/r/register"), ("POST", "/v2/systemsharedmemory/region/r/unregister"),
    ("POST", "/v2/systemsharedmemory/unregister"), ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/r/register"), ("POST", "/v2/cudasharedmemory/unregister"),
    ("GET", "/v2/trace/setting"), ("POST", "/v2/trace/setting"), ("POST", "/v2/models/pneumonia/trace/setting"),
    ("GET", "/v2/logging"), ("POST", "/v2/logging"), ("POST", "/v2/models/pneumonia/generate"),
    ("POST", "/v2/models/pneumonia/generate_stream"), ("GET", "/v2/models/pneumonia/infer"), ("DELETE", "/v2/models"),
    ("POST", "/v2/models/pneumonia/versions/99999999999999999999/infer"), ("POST", "/v2/models/%70neumonia/infer"),
    ("GET", "/metrics"), ("GET", "/../../../etc/passwd"), ("GET", "/%00"), ("GET", "/v2/models/" + "x" * 8000),
    ("PATCH", "/v2"), ("OPTIONS", "*"), ("CONNECT", "127.0.0.1:22"), ("GET", "http://192.0.2.1/"), ("POST", "/"),
)  # fmt: skip


@dataclass(frozen=True)
class HttpCase:
    """Bytes for a connection.

    Attributes:
        whole: one request whose end can be told: it has to be answered. Else the peer may also hang up.
        questions: what may be accepted of it.
        plain: what is in it before it is packed, for `faults`.
    """

    number: int
    changes: tuple[str, ...]
    content: bytes
    whole: bool
    questions: tuple[Question, ...]
    plain: bytes = b""

    def __str__(self) -> str:
        return f"case {self.number} ({', '.join(self.changes)})"


def by_json(seed: int, number: int) -> HttpCase:
    """An inference whose fields, JSON or length headers are wrong; the framing is right."""
    random = Random(f"{seed}:{number}")
    model = MODELS[random.choices(("pneumonia", "nuclei", "hippocampus"), (18, 1, 1))[0]]
    request, changes = valid(model, number % 8), []
    if random.random() < 0.5:
        aimed = random.choice(AIMED)
        aimed(random, request)
        changes.append(aimed.__name__.strip("_"))
    document, tail = as_json(request, binary=random.random() < 0.5)
    if not changes or random.random() < 0.3:
        change_a_node(random, document)
        changes.append("JSON")
    head = json.dumps(document).encode()
    if random.random() < 0.15:
        head = damaged(random, head, hot=120)
        changes.append("text")
    if random.random() < 0.1:
        head = _repeated_key(random, head)
        changes.append("repeated key")
    headers = {HEADER: str(len(head))} if tail else {}
    if random.random() < 0.2:
        headers[HEADER] = random.choice(("-1", "0", str(len(head) - 1), str(len(head) + 1), "x", "", "9" * 30, "1e3"))
        changes.append("header length")
    if random.random() < 0.15:
        tail = damaged(random, tail) if tail else random.randbytes(8)
        changes.append("tail")
    body = plain = head + tail
    if random.random() < 0.1:
        body, headers["Content-Encoding"] = _compressed(random, body)
        changes.append("compressed")
    path = f"/v2/models/{model.name}/infer"
    allowed = questions(path, headers, body)
    return HttpCase(number, tuple(changes), post(path, body, headers), True, tuple(allowed), plain)


def by_endpoint(seed: int, number: int) -> HttpCase:
    """Other endpoints with bodies that they know, changed."""
    random = Random(f"{seed}:{number}")
    method, path = random.choice(ENDPOINTS)
    document = random.choice(_BODIES)(random)
    for _ in range(random.randrange(3)):
        change_a_node(random, document)
    body = json.dumps(document).encode() if random.random() < 0.8 else damaged(random, json.dumps(document).encode())
    if method in ("GET", "OPTIONS"):
        body = b""
    return HttpCase(number, (method, path[:60]), post(path, body, {}, method), path != "*", ())


def by_bytes(seed: int, number: int) -> HttpCase:
    """A valid request whose framing is damaged: lengths, chunks, headers, or bytes anywhere in it."""
    random = Random(f"{seed}:{number}")
    request = valid(MODELS["pneumonia"], number % 8)
    document, tail = as_json(request, binary=random.random() < 0.5)
    head = json.dumps(document).encode()
    body, headers = head + tail, {HEADER: str(len(head))} if tail else {}
    path = "/v2/models/pneumonia/infer"
    content = random.choice(_FRAMES)(random, path, body, headers)
    # Damage may lie in the pixels: what was sent counts, where that is still a request.
    allowed = _questions_as_sent(path, content) or questions(path, headers, body)
    return HttpCase(number, ("bytes",), content, False, tuple(allowed))


def _questions_as_sent(path: str, content: bytes) -> list[Question]:
    """Of bytes whose head can be read: the lengths that stand there."""
    head, _, body = content.partition(b"\r\n\r\n")
    lines = [line.split(":", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ":" in line]
    found = {name.strip().lower(): value.strip() for name, value in lines}
    length = found.get("content-length", "")
    headers = {HEADER: found[HEADER.lower()]} if HEADER.lower() in found else {}
    return questions(path, headers, body[: int(length)]) if length.isdecimal() else []


def post(path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def as_json(request: Any, binary: bool) -> tuple[dict[str, Any], bytes]:
    """The request as the HTTP protocol has it: JSON, and the tensors that follow it."""
    document: dict[str, Any] = {"id": request.id, "inputs": [], "outputs": []}
    tail = b""
    raw = list(request.raw_input_contents) + [b""] * len(request.inputs)
    for each, content in zip(request.inputs, raw, strict=False):
        tensor: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        parameters = _parameters(each)
        kind = NUMPY.get(each.datatype)
        if binary or kind is None or len(content) % np.dtype(kind).itemsize:
            parameters["binary_data_size"] = len(content)
            tail += content
        else:
            tensor["data"] = np.frombuffer(content, kind).tolist()
        document["inputs"].append({**tensor, **({"parameters": parameters} if parameters else {})})
    for each in request.outputs:
        parameters = _parameters(each)
        document["outputs"].append({"name": each.name, **({"parameters": parameters} if parameters else {})})
    if not request.outputs:
        del document["outputs"]
    if request.parameters:
        document["parameters"] = _parameters(request)
    return document, tail


def _parameters(holder: Any) -> dict[str, Any]:
    found = {}
    for name, value in holder.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, kind) if kind else None
    return found


def change_a_node(random: Random, document: Any) -> None:
    """Replaces, removes or renames one node of a JSON document; long lists count as one."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        for key in keys if len(keys) < 50 else random.sample(keys, 2):
            places.append((node, key))
            walk(node[key])

    walk(document)
    if not places:
        return
    node, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice(WORDS)] = node.pop(key)
        case 2:
            node[key] = _nested(random.choice((2, 20, DEEPEST)), random.choice(({}, [])))
        case _:
            node[key] = random.choice(
                (None, True, "", "x" * 3000, [], {}, 1.5, -0.0, 1e300, math.nan, *INTEGERS, *WORDS)
            )


def _nested(depth: int, leaf: Any) -> Any:
    for level in range(depth):
        leaf = [leaf] if level % 2 else {"a": leaf}
    return leaf


def _repeated_key(random: Random, head: bytes) -> bytes:
    """A name that stands twice in one object: which one counts is not defined."""
    for old, new in random.sample(_TWICE, len(_TWICE)):
        if old in head:
            return head.replace(old, new, 1)
    return head


_TWICE = (
    (b'"shape":', b'"shape": [1, 1, 1, 1], "shape":'),
    (b'"inputs":', b'"inputs": [], "inputs":'),
    (b'"datatype":', b'"datatype": "INT32", "datatype":'),
    (b'"name": "image"', b'"name": "masks", "name": "image"'),
    (b'"data": [', b'"data": [0.0], "data": ['),
)


def _compressed(random: Random, body: bytes) -> tuple[bytes, str]:
    packed = random.choice((gzip.compress(body), zlib.compress(body), body, gzip.compress(bytes(1 << 20))))
    if random.random() < 0.4:
        packed = damaged(random, packed)
    return packed, random.choice(("gzip", "deflate", "gzip", "br", "identity", "gzip, gzip"))


_BODIES: tuple[Callable[[Random], dict[str, Any]], ...] = (
    lambda random: {"key": "/equipoise_1_", "offset": random.choice(INTEGERS), "byte_size": random.choice(INTEGERS)},
    lambda random: {"raw_handle": {"b64": "AAAA"}, "device_id": random.choice(INTEGERS), "byte_size": 1},
    lambda random: {"parameters": {"config": "{", "file:1/model.py": "AAAA"}},
    lambda random: {"parameters": {"unload_dependents": True}},
    lambda random: {"trace_file": WRITTEN[0], "trace_level": ["TENSORS"], "trace_rate": "1"},
    lambda random: {"log_file": WRITTEN[1], "log_verbose_level": 9, "log_info": True},
    lambda random: {"text_input": PLANTED["PatientName"], "parameters": {"stream": True}},
    lambda random: as_json(valid(MODELS["pneumonia"]), binary=False)[0],
)


def _wrong_length(random: Random, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    length = random.choice((len(body) + 1, len(body) - 1, 0, 2**31, 2**63, 2**64, -1, len(body) + 10_000))
    text = random.choice((str(length), f"{length}, {length}", f"+{length}", f"0x{abs(length):x}", "", "abc"))
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {text}"]
    if random.random() < 0.3:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _chunked(random: Random, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked"]
    if random.random() < 0.3:
        lines.append(f"Content-Length: {random.choice((0, len(body), 5))}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    count = random.choice((1, 2, 50))
    step = -(-len(body) // count)
    parts = [body[at : at + step] for at in range(0, len(body), step)]
    sizes = [f"{len(part):x}" for part in parts]
    if random.random() < 0.6:
        sizes[random.randrange(len(sizes))] = random.choice(
            ("", "-1", "zz", "ffffffffffffffff", "7fffffffffffffff", "0")
        )
    chunks = b"".join(size.encode() + b"\r\n" + part + b"\r\n" for size, part in zip(sizes, parts, strict=True))
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + chunks + random.choice((b"0\r\n\r\n", b"", b"0\r\n"))


def _odd_headers(random: Random, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    odd = random.choice(
        ("no colon", ": no name", "A: b\r\n folded", "X-Nul: \0", "X-Long: " + "x" * 65_000, "\xff\xfe: 1",
         "\r\n".join(f"X-{i}: {i}" for i in range(1000)), "Expect: 100-continue", "Upgrade: h2c", "Connection: upgrade")
    )  # fmt: skip
    return post(path, body, {**headers}).replace(b"Host: localhost", odd.encode("latin-1"), 1)


def _odd_line(random: Random, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    return random.choice(
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64), b"GET\r\n\r\n", b"\r\n" * 50, b"\x16\x03\x01\x02\0\x01" * 50,
         b"POST  /v2 HTTP/1.1\r\n\r\n", b"POST /v2 HTTP/9.9\r\n\r\n", b"x" * 100_000, bytes(1000), b"GET /v2\r\n\r\n",
         b"POST " + path.encode() + b" HTTP/1.0\r\n\r\n" + body)
    )  # fmt: skip


def _damaged(random: Random, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    return damaged(random, post(path, body, headers), hot=200)


_FRAMES = (_wrong_length, _chunked, _odd_headers, _odd_line, _damaged, _damaged)


def _inflated(body: bytes) -> bytes:
    """Either packing, whichever the header says: the stream itself tells them apart."""
    stream = zlib.decompressobj(47)
    return stream.decompress(body) if body else b""


_UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": _inflated, "deflate": _inflated, "identity": bytes}


def questions(path: str, headers: dict[str, str], body: bytes) -> list[Question]:
    """What may be accepted of an inference request; empty where it is not well-formed."""
    if "Content-Encoding" in headers:
        unpack = _UNPACK.get(headers["Content-Encoding"])
        try:
            body = unpack(body) if unpack else b""
        except (OSError, EOFError, zlib.error):
            return []
    length = headers.get(HEADER)
    if length is not None and not length.isdecimal():
        return []
    end = len(body) if length is None else int(length)
    if end > len(body):
        return []
    try:
        document = json.loads(body[:end], object_pairs_hook=_unambiguous)
        return _asked(path, document, body[end:])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _asked(path: str, document: dict[str, Any], tail: bytes) -> list[Question]:
    tensors: dict[str, NDArray[Any]] = {}
    for each in document["inputs"]:
        name, shape = each["name"], each["shape"]
        kind = NUMPY[KINDS[name]]
        if name in tensors or each["datatype"] != KINDS[name]:
            return []
        if any(type(size) is not int or size < 0 for size in shape):
            return []
        parameters = each.get("parameters", {})
        if "shared_memory_region" in parameters:
            return []
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if type(size) is not int or "data" in each or not 0 <= size <= len(tail):
                return []
            values, tail = np.frombuffer(tail[:size], kind), tail[size:]
        else:
            values = np.array(each["data"], np.float64 if kind == "<f4" else None)
            with np.errstate(over="ignore"):
                values = values.astype(kind)
        tensors[name] = values.reshape(shape)
    if tail or any("shared_memory_region" in each.get("parameters", {}) for each in document.get("outputs", [])):
        return []
    return asked(path.split("/")[3], "", tensors)


def told(status: int, headers: dict[str, str], body: bytes) -> tuple[list[bytes], list[bytes]]:
    """Routes and records of an answer."""
    if status != 200 or b"route" not in body:
        return [], []
    end = int(headers.get(HEADER.lower(), len(body)))
    document, tail = json.loads(body[:end]), body[end:]
    found: dict[str, list[bytes]] = {}
    for output in document.get("outputs", []):
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            found[output["name"]], tail = strings(tail[:size]), tail[size:]
        elif output.get("datatype") == "BYTES":
            found[output["name"]] = [str(text).encode() for text in output.get("data", ())]
    return found.get("route", []), found.get("record", [])
