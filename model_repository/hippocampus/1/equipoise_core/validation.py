"""What is refused before anything is drawn, in words: what was given, what is expected, what to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .budget import MAX_VOXELS
from .case import Case
from .contract import Contract
from .errors import InvalidRequest
from .preprocessing import PADDING_VALUE

MAX_SAMPLES = 1000
"""More samples than this in one request are refused: no figure gets better by them, and everybody else waits."""

MAX_ANSWER = 2**31 - 2**20
"""Bytes of all arrays of one answer: gRPC's ceiling for a message, less what else stands in it."""


def validate(contract: Contract, case: Case) -> None:
    """Raises InvalidRequest that says what was given, what is expected and what to do."""
    image = case.image
    expected = f"[{contract.image_channels}, {', '.join(str(extent) for extent in contract.spatial)}]"
    if image.ndim != 1 + contract.rank:
        raise InvalidRequest(f"image has shape {list(image.shape)}; {contract.name} expects {expected} per image")
    if image.size == 0:
        raise InvalidRequest(f"image is empty: shape {list(image.shape)}; send at least one voxel per axis")
    if image.shape[0] != contract.image_channels:
        raise InvalidRequest(f"image has {image.shape[0]} channels; {contract.name} expects {contract.image_channels}")
    if not contract.per_voxel:
        _validate_whole(contract, image.shape[1:])
    if image[0].size > MAX_VOXELS:
        raise InvalidRequest(
            f"image has size {list(image.shape[1:])}, {image[0].size} voxels; one request takes at most {MAX_VOXELS}: "
            "crop it to the region of interest"
        )
    if not np.isfinite(image).all():
        count = int(image.size - np.isfinite(image).sum())
        raise InvalidRequest(f"image has {count} values that are NaN or infinite; send finite intensities")
    if float(image.max()) == PADDING_VALUE:
        raise InvalidRequest(f"image holds nothing but padding ({PADDING_VALUE:g}); send one with intensities")
    if case.samples is not None and not 1 <= case.samples <= MAX_SAMPLES:
        raise InvalidRequest(f"samples is {case.samples}; it must lie between 1 and {MAX_SAMPLES}")
    if case.spacing is not None and not all(np.isfinite(mm) and mm > 0 for mm in case.spacing):
        raise InvalidRequest(f"spacing is {list(case.spacing)}; it must be finite and above 0 mm on every axis")


def _validate_whole(contract: Contract, size: tuple[int, ...]) -> None:
    """What answers for the image as a whole sees all of it, or is not asked."""
    for given, extent, largest in zip(size, contract.spatial, contract.maximum, strict=True):
        if isinstance(extent, int) and given != extent:
            raise InvalidRequest(
                f"image has size {list(size)}; {contract.name} expects exactly {list(contract.spatial)}: resample it"
            )
        if given > largest:
            raise InvalidRequest(
                f"image has size {list(size)}; {contract.name} takes at most {list(contract.maximum)} in one request: "
                "crop it to the region of interest"
            )


_PER_CLASS = ("mean", "variance", "variance_corrected", "calibrated")
_PER_DECISION = {"aleatoric": 4, "epistemic": 4, "uncertainty": 4, "labels": 1, "labels_sensitive": 1}


def validate_answer(contract: Contract, cases: Sequence[Case], names: Collection[str]) -> None:
    """Raises InvalidRequest where the outputs asked for would not fit into one message; before anything is drawn."""
    if not contract.per_voxel:
        return
    classes = 4 * len(contract.classes) * sum(name in names for name in _PER_CLASS)
    decisions = contract.decisions * sum(size for name, size in _PER_DECISION.items() if name in names)
    voxels = sum(int(case.image[0].size) for case in cases)
    size, labels = voxels * (classes + decisions), voxels * contract.decisions
    if size > MAX_ANSWER:
        raise InvalidRequest(
            f"the outputs asked for have {size / 2**30:.1f} GiB; one answer carries less than 2 GiB: ask for fewer of "
            f"them (labels have {labels / 2**30:.2f} GiB), for fewer images at a time, or crop the image"
        )
