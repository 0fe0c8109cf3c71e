"""The random numbers of Python and of NumPy: every generator that lives in this process.

A network may hold one of its own anywhere: as an attribute, in a list, a closure or a global of its file. None of them
is a torch operation, so no mask stands for what it draws.
"""

from __future__ import annotations

import gc
import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

Generator = random.Random | np.random.RandomState | np.random.BitGenerator
"""`np.random.Generator` draws from a BitGenerator."""


def living() -> tuple[Generator, ...]:
    """All whose state can be read; the operating system's (`SystemRandom`) has none."""
    there = gc.get_objects()
    kinds = {kind for kind in {type(each) for each in there} if issubclass(kind, Generator)}
    found: list[Generator] = [each for each in there if type(each) in kinds]  # isinstance would wake lazy modules
    return tuple(each for each in found if not isinstance(each, random.SystemRandom))


def states(generators: Sequence[Generator]) -> tuple[bytes, ...]:
    """Of each, to be compared."""
    return tuple(pickle.dumps(_state(each)) for each in generators)


@contextmanager
def kept(generators: Sequence[Generator]) -> Iterator[None]:
    """They are left as they were."""
    before = [_state(each) for each in generators]
    try:
        yield
    finally:
        for each, state in zip(generators, before, strict=True):
            if isinstance(each, random.Random):
                each.setstate(state)
            elif isinstance(each, np.random.RandomState):
                each.set_state(state)
            else:
                each.state = state


def _state(generator: Generator) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.state
