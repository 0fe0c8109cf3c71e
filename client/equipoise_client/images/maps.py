"""Masks and maps of an answer as files beside an image: in its grid, in a format that its users open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Contract
from numpy.typing import NDArray

from ..extras import needs
from ..prediction import Prediction
from . import nifti
from .outline import outline_of
from .prepare import Prepared
from .source import Kind

_WHITE, _HALF = 255, 127


def write_maps(stem: Path, contract: Contract, prepared: Prepared, prediction: Prediction) -> list[Path]:
    """Writes labels and epistemic uncertainty (nats) of a segmentation, and where the policy promises one the band in
    which the true outline lies (0 outside, 1 between, 2 inside); gives the files' names.

    Case 1: NIfTI: volumes `STEM.labels.nii.gz` (class indices), `STEM.epistemic.nii.gz`, `STEM.outline.nii.gz`.
    Case 2: pictures, planar arrays and single DICOM images: `STEM.labels.png`, class indices, or 0 and 255 where there
    is one structure, or a file for each class where they may overlap; `STEM.epistemic.tif`, single precision;
    `STEM.outline.png`: 0, 127, 254.
    Case 3: other arrays: `.npy`.

    Raises OSError where a file cannot be written.
    """
    outline = outline_of(contract, prepared, prediction)
    maps: dict[str, NDArray[Any]] = {"labels": prediction.labels, "epistemic": prediction.epistemic}
    maps |= {} if outline is None else {"outline": outline}
    back = {name: prepared.to_source(values) for name, values in maps.items()}
    if contract.rank == 2 and prepared.source.kind is not Kind.NIFTI:
        files = [*_masks(stem, contract, back["labels"]), _map(stem, back["epistemic"])]
        if outline is not None:
            files.append(_save(stem.with_name(f"{stem.name}.outline.png"), back["outline"][0] * _HALF))
        return files
    ending = "nii.gz" if prepared.source.kind is Kind.NIFTI else "npy"
    files = [stem.with_name(f"{stem.name}.{name}.{ending}") for name in back]
    for file, values in zip(files, back.values(), strict=True):
        if ending == "npy":
            np.save(file, values)
        else:
            nifti.write(file, values, prepared.source)
    return files


def _masks(stem: Path, contract: Contract, labels: NDArray[np.uint8]) -> list[Path]:
    if contract.overlapping:
        parts = {
            f".{re.sub(r'[^0-9A-Za-z_-]+', '_', name)}": labels[k] * _WHITE for k, name in enumerate(contract.classes)
        }
    else:
        one = len(contract.foreground) == 1
        parts = {"": labels[0] * _WHITE if one else labels[0]}
    return [_save(stem.with_name(f"{stem.name}.labels{part}.png"), values) for part, values in parts.items()]


def _map(stem: Path, epistemic: NDArray[np.float32]) -> Path:
    """The largest over labels that stand alone, as the picture shows it."""
    return _save(stem.with_name(f"{stem.name}.epistemic.tif"), epistemic.max(axis=0).astype(np.float32))


def _save(path: Path, values: NDArray[Any]) -> Path:
    with needs("client", "writing pictures"):
        from PIL import Image
    Image.fromarray(values).save(path)
    return path
