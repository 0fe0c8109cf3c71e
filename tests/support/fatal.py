"""What ends Triton 2.51 (the wheel's), found by `test_fuzz.py`: one request each, from anybody who may ask at all.

None of them can be turned off by a flag or in a model's configuration. They are why this server is for loopback only,
why production is NGC 26.07 or newer behind a proxy that lets gRPC through and no HTTP, and why what has died is
started again. `test_known_faults.py` sends each to a server of its own, and tells when a newer server stands it.
"""

from __future__ import annotations

import math
import re

from google.protobuf.message import DecodeError

from .malformed import MODELS, Request

CLASSIFIED_TEXT = "classification of a text output divides by the size of its elements, which is 0: the server dies"
OVERFLOWING_SHAPE = "a shape whose bytes are those sent modulo 2⁶⁴: NumPy refuses it and the stub dies, for good"
HUGE_SHAPE = "a shape beyond all memory in JSON is allocated before its data are counted"
DEEP_JSON = "a million levels of JSON overflow the parser's stack: the server dies"
MANY_CHUNKS = "600,000 chunks of one byte overflow the stack (CVE-2025-23310): the server dies"
TWO_LENGTHS = "two Content-Length headers that differ: one frames, the other sizes a vector: the server dies"

TEXTS = ("route", "reason", "record")
_WORD = 2**64


def fault_in(message: bytes) -> str:
    """Which of them a gRPC message would meet, or ""."""
    try:
        request = Request.FromString(message)
    except DecodeError:
        return ""
    for output in request.outputs:
        if output.parameters["classification"].int64_param > 0 and output.name in TEXTS:
            return CLASSIFIED_TEXT
    raw = list(request.raw_input_contents)
    for index, each in enumerate(request.inputs):
        size = 8 if each.datatype.endswith("64") else 4
        typed = sum(len(values) for field, values in each.contents.ListFields()) * size
        given = len(raw[index]) if index < len(raw) else typed
        needed = math.prod(each.shape) * size
        if needed >= _WORD // 2 and needed % _WORD == given and request.model_name in MODELS:
            return OVERFLOWING_SHAPE
    return ""


def fault_in_http(content: bytes) -> str:
    """Likewise of an HTTP request. What it has to be is looked for, wherever: a few too many are held back."""
    if b"classification" in content:
        return CLASSIFIED_TEXT
    if content.split(b"\r\n\r\n")[0].lower().count(b"\r\ncontent-length:") > 1:
        return TWO_LENGTHS
    for shape in re.findall(rb'"shape": ?\[([-\d, \n]*)\]', content):
        if math.prod(int(size) for size in shape.split(b",") if size.strip().isdigit()) > 2**28:
            return OVERFLOWING_SHAPE
    return ""
