"""TOML files, read strictly into frozen structs: an error names the key, what was given, and what is expected."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from equipoise_client.errors import InvalidInput

T = TypeVar("T")

_WORDS = {"object": "a table", "array": "a list, or tables in double brackets", " | null": "", "`": ""}
"""What msgspec calls it → what TOML does."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a file: no other keys than the fields; a field without a default is required."""


def read_toml(path: Path, kind: type[T]) -> T:
    """What the file says; relative paths in it are relative to it. Raises InvalidInput."""
    try:
        document = msgspec.toml.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} cannot be read as TOML: {error}") from error
    decode = partial(_decoded, path.parent)
    try:
        return msgspec.convert(document, kind, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{path.name}: {_explained(str(error), document, kind, decode)}") from error


def _decoded(base: Path, kind: type, value: Any) -> Path:
    """The one type that msgspec does not know."""
    if kind is not Path or not isinstance(value, str) or not value:
        raise ValueError(f"{value!r}; expected a path")
    return base / Path(value).expanduser()


def _explained(text: str, given: Any, kind: Any, decode: Any) -> str:
    """msgspec's message, with what it leaves out: the value, and the keys or values that there are."""
    what, _, place = text.partition(" - at `$")
    where = ""
    for key in re.findall(r"[^.\[\]`]+|\.\.\.", place):
        kind = _required(kind)
        if isinstance(given, list):
            kind, given, where = get_args(kind)[0], given[int(key)], f"{where}[{int(key) + 1}]"
            continue
        if key == "...":  # some entry of a table with free keys
            kind = get_args(kind)[1]
            key = next(name for name, value in given.items() if not _fits(value, kind, decode))
        else:
            kind = get_type_hints(kind)[key]
        given, where = given[key], f"{where}.{key}"
    kind = _required(kind)
    where = where.lstrip(".")
    if match := re.fullmatch("Object contains unknown field `(.*)`", what):
        return f"{where}.{match[1]}: no such key; expected one of {', '.join(get_type_hints(kind))}".lstrip(".")
    if match := re.fullmatch("Object missing required field `(.*)`", what):
        return f"{where}.{match[1]} is missing".lstrip(".")
    if what.startswith("Invalid enum value"):
        return f"{where} is {given!r}; expected one of {', '.join(each.value for each in kind)}"
    if match := re.fullmatch("Expected (.*?)(, got .*)?", what):
        expected = match[1]
        for theirs, ours in _WORDS.items():
            expected = expected.replace(theirs, ours)
        return f"{where} is {given!r}; expected {expected}"
    return f"{where}: {what}"


def _required(kind: Any) -> Any:
    """`X` of `X | None`; else the type itself."""
    kinds = get_args(kind)
    return next(each for each in kinds if each is not NoneType) if NoneType in kinds else kind


def _fits(value: Any, kind: Any, decode: Any) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=decode)
    except msgspec.ValidationError:
        return False
    return True
