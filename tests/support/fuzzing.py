"""Seeded damage: to bytes wherever they come from, and to protobuf messages field by field along their descriptors.

The same seed gives the same damage on every machine, so that a case that was found can be made again from its number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, 2, -1, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**61, 2**62)
INTEGERS += (2**63 - 1, 2**63, 2**64 - 1, -(2**63))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e300, math.inf, -math.inf, math.nan)


def number_in(random: Random, low: int, high: int) -> int:
    """An extreme value, or any, between `low` and `high`, both included."""
    fitting = [value for value in (*INTEGERS, low, high) if low <= value <= high]
    return random.choice(fitting) if random.random() < 0.8 else random.randint(low, high)


def damaged(random: Random, content: bytes, hot: int = 0, most: int = 4) -> bytes:
    """One to `most` of: bits turned, a byte or number overwritten, cut off, something put in, taken out or doubled.

    Args:
        hot: half of the damage lies within so many first bytes (a header); 0: anywhere.
    """
    data = bytearray(content)
    for _ in range(random.randint(1, most)):
        if not data:
            break
        end = min(hot, len(data)) if hot and random.random() < 0.5 else len(data)
        at = random.randrange(end)
        length = min(len(data) - at, 1 << random.randrange(7))
        match random.randrange(8):
            case 0 | 1:
                data[at] ^= 1 << random.randrange(8)
            case 2:
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 3:
                width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
                value = random.choice(INTEGERS) % (1 << 8 * width)
                data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 4:
                data[at : at + length] = random.randbytes(length)
            case 5:
                data[at:at] = random.randbytes(length) if random.random() < 0.5 else bytes(data[at : at + length])
            case 6:
                del data[at : at + length]
            case _:
                del data[at:]
    return bytes(data)


def change_a_field(random: Random, message: Message, words: Sequence[str]) -> None:
    """Changes one field, chosen among those of the message and of all messages in it.

    Args:
        words: what strings are made of besides odd ones: names that mean something to the receiver.
    """
    where, field = random.choice(list(_fields(message)))
    name = field.name
    if _is_map(field):
        entries = getattr(where, name)
        if entries and random.random() < 0.3:
            del entries[random.choice(sorted(entries))]
        else:
            fill(random, entries[text(random, words)], words)
    elif _is_repeated(field):
        _change_list(random, getattr(where, name), field, words)
    elif field.message_type is not None:
        if where.HasField(name) and random.random() < 0.3:
            where.ClearField(name)
        else:
            fill(random, getattr(where, name), words)
    else:
        setattr(where, name, scalar(random, field, words))


def fill(random: Random, message: Message, words: Sequence[str], depth: int = 0) -> None:
    """Sets every field of the message to something, or leaves it out."""
    for field in message.DESCRIPTOR.fields:
        if random.random() < 0.3:
            continue
        if _is_map(field):
            entry = getattr(message, field.name)[text(random, words)]
            if isinstance(entry, Message) and depth < 3:
                fill(random, entry, words, depth + 1)
        elif _is_repeated(field):
            for _ in range(random.choice((1, 1, 2, 5))):
                _add(random, getattr(message, field.name), field, words, depth)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            if depth < 3:
                fill(random, getattr(message, field.name), words, depth + 1)
        else:
            setattr(message, field.name, scalar(random, field, words))


def scalar(random: Random, field: FieldDescriptor, words: Sequence[str]) -> Any:
    """A value that the field's type can hold."""
    kind = field.cpp_type
    limits = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }
    if kind in limits:
        return number_in(random, *limits[kind])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice([value.number for value in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return struct.unpack("<f", random.randbytes(4))[0] if random.random() < 0.3 else _single(random)
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return random.choice(NUMBERS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice((b"", b"\0", random.randbytes(random.randrange(64)), bytes(3136), bytes(1 << 18)))
    return text(random, words)


def _single(random: Random) -> float:
    value = random.choice(NUMBERS)
    return value if not math.isfinite(value) or abs(value) < 3.41e38 else math.copysign(3.4e38, value)


def text(random: Random, words: Sequence[str]) -> str:
    """A word, an odd string, or a long one."""
    odd = ("", " ", "\0", "a\0b", "../../../etc/passwd", "%s%s%n", "\n\r\t", "ä€𝔘", "-1", "1e999", "{}", "x" * 70_000)
    return random.choice(words) if random.random() < 0.7 else random.choice(odd)


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None:
            continue
        value = getattr(message, field.name)
        if _is_map(field):
            inner = [value[key] for key in sorted(value) if isinstance(value[key], Message)]
        elif _is_repeated(field):
            inner = list(value)
        else:
            inner = [value] if message.HasField(field.name) else []
        for each in inner:
            yield from _fields(each)


def _change_list(random: Random, values: Any, field: FieldDescriptor, words: Sequence[str]) -> None:
    if not values or random.random() < 0.25:
        _add(random, values, field, words, 0)
        return
    at = random.randrange(len(values))
    match random.randrange(4):
        case 0:
            del values[at]
        case 1:
            del values[:]
        case 2:
            for _ in range(random.choice((1, 1, 1, 300))):
                values.append(values[at])
        case _:
            if field.message_type is None:
                values[at] = scalar(random, field, words)
            else:
                fill(random, values[at], words)


def _add(random: Random, values: Any, field: FieldDescriptor, words: Sequence[str], depth: int) -> None:
    if field.message_type is None:
        values.append(scalar(random, field, words))
    elif depth < 3:
        fill(random, values.add(), words, depth + 1)


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
