"""Labelled cases → what a network is trained on, stopped by, and what it never sees; and batches of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.record import input_digest
from equipoise_export.calibration.cases import Labelled
from numpy.typing import NDArray
from torch import Tensor

from ..reference.augmentation import Augmentation
from ..reference.training import TrainingError

IGNORED = -100
"""In a target of class indices: padding, which no loss counts."""

MILD = Augmentation(rotation=10, scale=0.1, shift=2, contrast=0.2, brightness=0.1, gamma=0.2, noise=0.05)
"""Changes of an image that change no answer of any kind; nothing is mirrored: left and right may matter."""


@dataclass(frozen=True)
class Parts:
    """Cases by what they are for; no patient is in two parts.

    Attributes:
        train: the network is fitted to them.
        validation: they say when to stop.
        held_out: they take no part: for calibration.
    """

    train: Sequence[Labelled]
    validation: Sequence[Labelled]
    held_out: Sequence[Labelled]

    @property
    def named(self) -> Mapping[str, Sequence[Labelled]]:
        return {"train": self.train, "validation": self.validation, "held out": self.held_out}


def deal(cases: Sequence[Labelled], validation: float, held_out: float) -> Parts:
    """By patient, in the order of the digests of their names. Raises TrainingError where too few are left to train on.

    Args:
        validation: share of the patients that are not held out.
        held_out: share of all patients.
    """
    patients = sorted({case.patient for case in cases}, key=lambda patient: digest_of(["train", patient]))
    kept = math.ceil(held_out * len(patients)) if held_out else 0
    stopping = max(1, round(validation * (len(patients) - kept)))
    part = {
        patient: "held out" if n < kept else "validation" if n < kept + stopping else "train"
        for n, patient in enumerate(patients)
    }
    train, stop, rest = (
        [case for case in cases if part[case.patient] == name] for name in ("train", "validation", "held out")
    )
    if len(train) < 2:
        raise TrainingError(
            f"{len(cases)} cases of {len(patients)} patients leave {len(train)} to train on; give more, or a smaller "
            "--held-out"
        )
    return Parts(train, stop, rest)


def write_parts(path: Path, parts: Parts) -> None:
    """`case, patient, part, digest` of every case: what `equipoise calibrate --leave-out` reads."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(("case", "patient", "part", "digest"))
        for name, cases in parts.named.items():
            table.writerows((case.name, case.patient, name, input_digest(case.image)) for case in cases)


@dataclass(frozen=True, eq=False)
class Sample:
    """A case as the network sees it: image `[C, *S]` as preprocessed, and its truth as in `Labelled`."""

    image: NDArray[np.float32]
    truth: NDArray[np.uint8]


def samples(contract: Contract, cases: Sequence[Labelled]) -> list[Sample]:
    """Intensities as the contract says, what is served; padding as the network sees it.

    Raises TrainingError for an image with more axes than the network takes.
    """
    for case in cases:
        if case.image.ndim != contract.rank + 1:
            raise TrainingError(
                f"{case.name} has {case.image.ndim - 1} axes, --input-shape {contract.rank}: train on slices"
            )
    normalised = [contract.preprocessing.normalise(case.image) for case in cases]
    fill = np.float32(contract.preprocessing.fill)
    return [
        Sample(np.where(image == PADDING_VALUE, fill, image), case.truth)
        for image, case in zip(normalised, cases, strict=True)
    ]


def batches(
    contract: Contract, of: Sequence[Sample], size: int, random: np.random.Generator, augmentation: Augmentation
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, in batches `[N, C, *S]` with their targets; see `stack`."""
    order = random.permutation(len(of))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        if len(chosen) == 1 < min(size, len(order)):
            continue  # BatchNorm has nothing to compare a lone image with
        yield stack(contract, [_changed(contract, of[index], random, augmentation) for index in chosen])


def _changed(contract: Contract, one: Sample, random: np.random.Generator, augmentation: Augmentation) -> Sample:
    image, truth = augmentation.deform(*_patch(contract, one, random), random)
    return Sample(augmentation.recolour(image, random), truth)


def _patch(
    contract: Contract, one: Sample, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Of a segmentation's larger image a part of the nominal size, every other time around some foreground."""
    sizes = one.image.shape[1:]
    if contract.task is not Task.SEGMENTATION or all(s <= n for s, n in zip(sizes, contract.nominal, strict=True)):
        return one.image, one.truth
    foreground = one.truth.reshape(-1, *sizes).any(axis=0) if random.random() < 0.5 else np.zeros(sizes, bool)
    inside = np.flatnonzero(foreground)
    centre = np.unravel_index(random.choice(inside), sizes) if inside.size else [random.integers(s) for s in sizes]
    starts = [
        int(np.clip(c - n // 2, 0, max(0, s - n))) for c, n, s in zip(centre, contract.nominal, sizes, strict=True)
    ]
    part: tuple[Any, ...] = tuple(slice(start, start + n) for start, n in zip(starts, contract.nominal, strict=True))
    inside_truth: Any = (..., *part)
    return one.image[(slice(None), *part)], one.truth[inside_truth]


def stack(contract: Contract, of: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Images `[N, C, *S]`, padded at their ends to the largest size and the contract's multiple, and targets.

    Targets are int64: class indices `[N, *S]` or `[N]` (softmax), or 0 and 1 per class `[N, K, *S]` or `[N, K]`
    (sigmoid); `IGNORED` in padding.
    """
    preprocessing = contract.preprocessing
    largest = np.max([one.image.shape[1:] for one in of], axis=0)
    sizes = tuple((largest + -largest % preprocessing.multiple).tolist())
    images = np.full((len(of), of[0].image.shape[0], *sizes), preprocessing.fill, np.float32)
    for row, one in zip(images, of, strict=True):
        row[(slice(None), *map(slice, one.image.shape[1:]))] = one.image
    if contract.task is not Task.SEGMENTATION:
        return torch.from_numpy(images), torch.from_numpy(np.array([one.truth for one in of], np.int64))
    several = (len(contract.classes),) if contract.activation is Activation.SIGMOID else ()
    targets = np.full((len(of), *several, *sizes), IGNORED, np.int64)
    for row, one in zip(targets, of, strict=True):
        row[(..., *map(slice, one.image.shape[1:]))] = one.truth
    return torch.from_numpy(images), torch.from_numpy(targets)
