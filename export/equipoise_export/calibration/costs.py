"""What sampler runs take on this machine, by which stages are chosen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from equipoise_core.case import Case, Model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.sampling import get_ready
from equipoise_core.stages import FIRST_PASS, chunk_of

from ..graph.session import published_samplers
from ..progress import phase
from .cases import Labelled
from .choose import Costs, stage_lists

ROUNDS, FEWEST = 5, 3
PATIENCE = 10.0
"""Seconds after which `FEWEST` rounds will do."""


@phase("measuring what stages cost")
def measure_costs(model: Model, repository: Path, case: Labelled, steps: Sequence[int]) -> Costs:
    """Medians of interleaved rounds on one image, by ONNX Runtime on all cores; of an ensemble, its first member."""
    contract = model.contract
    (sampler, *_), first_pass = published_samplers(repository, contract)
    ready = get_ready(model, Case(case.image))
    image = contract.preprocessing.pad(ready.input.normalised, contract.padded(case.image.shape[1:]))[None]
    chunks = {chunk_of([samples for samples in stages if samples != FIRST_PASS]) for stages in stage_lists(steps)}
    layout = mask_layout(contract, ready.window)
    runs: dict[int, Callable[[], object]] = {}
    for chunk in sorted(chunks):
        masks = draw_masks(layout, ready.seed, contract.model_digest, 0, chunk)[None]
        runs[chunk] = lambda masks=masks: sampler(image, masks)  # type: ignore[misc]
    if first_pass is not None and FIRST_PASS in steps:
        runs[FIRST_PASS] = lambda: first_pass(image, None)
    for run in runs.values():
        run()
    rounds: list[dict[int, float]] = []
    began = time.perf_counter()
    while len(rounds) < (FEWEST if time.perf_counter() - began > PATIENCE else ROUNDS):
        rounds.append({name: _seconds(run) for name, run in runs.items()})
    seconds = {name: statistics.median(each[name] for each in rounds) for name in runs}
    return Costs(seconds.pop(FIRST_PASS, None), seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
