"""Milliseconds per image of each model in this process, in turns: a busy machine is then unfair to all alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from equipoise_core.case import Case
from equipoise_core.sampling import assess
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.choose import ChosenPolicy
from rich.console import Console
from rich.progress import track

from .results import ComparedModel

IMAGES = 8
ROUNDS = 5


@dataclass(frozen=True)
class Milliseconds:
    """Per image, from image to decision: of the rounds' means the median, the least and the greatest; and the median
    over rounds of the ratio to the fastest model."""

    median: float
    least: float
    greatest: float
    ratio: float


def milliseconds(
    compared: Sequence[ComparedModel],
    chosen: Sequence[ChosenPolicy],
    cases: Sequence[Labelled],
    threads: int = 0,
    quiet: bool = False,
) -> list[Milliseconds]:
    """Of `ROUNDS` rounds over `IMAGES` images, evenly spread over the cases."""
    models = [replace(each.published, policy=which.policy) for each, which in zip(compared, chosen, strict=True)]
    run = [each.load(threads) for each in compared]
    spread = np.unique(np.linspace(0, len(cases) - 1, IMAGES).round().astype(int))
    images = [Case(cases[index].image, spacing=cases[index].spacing) for index in spread]
    turns = [(number, image) for number in range(ROUNDS + 1) for image in range(len(images))]
    took = np.zeros((ROUNDS + 1, len(images), len(models)))
    for number, image in track(turns, "timing", console=Console(stderr=True), disable=quiet):
        for turn in range(len(models)):
            which = (turn + number + image) % len(models)
            samplers, first_pass = run[which]
            began = time.perf_counter()
            _ = assess(models[which], images[image], samplers, first_pass=first_pass).decision
            took[number, image, which] = time.perf_counter() - began
    rounds = 1000.0 * took[1:].mean(axis=1)  # the first round warms up
    fastest = rounds[:, np.median(rounds, axis=0).argmin()]
    ratios = np.median(rounds / fastest[:, None], axis=0)
    columns = (np.median(rounds, axis=0), rounds.min(axis=0), rounds.max(axis=0), ratios)
    return [Milliseconds(*each) for each in np.stack(columns, axis=1).tolist()]
