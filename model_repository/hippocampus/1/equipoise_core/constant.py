"""What a network takes besides the image, bound to a constant at export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Constant:
    """A further input of the network, bound to a constant at export.

    Attributes:
        name: of the parameter or input.
        dtype: `float32`, `int64`, …; `str` and the like of what is no number.
        digest: SHA-256 of its bytes in C order, little endian.
        values: all of them, in that order, where they are few; else empty. What is no number is JSON.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    values: tuple[float | int | bool | str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {**vars(self), "shape": list(self.shape), "values": list(self.values)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Constant:
        shape, values = tuple(map(int, document["shape"])), tuple(document["values"])
        return cls(str(document["name"]), str(document["dtype"]), shape, str(document["digest"]), values)
