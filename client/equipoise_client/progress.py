"""How far a large image is: the server runs its windows one after the other, and its statistics count them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from equipoise_core.contract import Contract
from equipoise_core.tiling import Tiling

from .client import UncertaintyClient
from .errors import EquipoiseError

EVERY = 0.5
"""Seconds between two looks."""


def expected_runs(contract: Contract, size: Sequence[int], samples: int | None = None) -> int:
    """How often the samplers are run for one image of these spatial sizes; 0 where the network sees it whole.

    Args:
        samples: T, where the caller names it; a policy may know another default than the contract's.
    """
    sizes = tuple(size)
    if not contract.in_windows(sizes):
        return 0
    window = contract.window(sizes)
    drawn = (samples or contract.samples) if contract.stochastic else len(contract.samplers)
    return len(Tiling(contract.preprocessing.padded(sizes, window), window).starts) * drawn


@contextmanager
def watching(
    client: UncertaintyClient,
    contract: Contract,
    size: Sequence[int],
    samples: int | None,
    told: Callable[[float], None],
) -> Iterator[None]:
    """Inside, `told` hears every half second which share (0 to 1) of the windows has been run, from another thread.

    An estimate: other clients of the same model are counted as well, so that it may run ahead. Where the server keeps
    its statistics to itself, `told` hears nothing. Nothing happens for an image that the network sees whole.
    """
    whole = expected_runs(contract, size, samples)
    over = threading.Event()

    def look(begun: int) -> None:
        while not over.wait(EVERY):
            try:
                told(min(1.0, (client.sampler_runs(contract.name, timeout=10.0) - begun) / whole))
            except EquipoiseError:
                return  # progress is a courtesy: the answer itself says what is wrong, if anything is

    try:
        begun = client.sampler_runs(contract.name, timeout=10.0) if whole else 0
    except EquipoiseError:
        whole = 0
    if not whole:
        yield
        return
    watcher = threading.Thread(target=look, args=(begun,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
