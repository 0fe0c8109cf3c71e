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
from .prepare import Prepared
from .source import Kind

_WHITE = 255


def write_maps(stem: Path, contract: Contract, prepared: Prepared, prediction: Prediction) -> list[Path]:
    """Writes labels and epistemic uncertainty (nats) of a segmentation; gives the files' names.

    Case 1: NIfTI: volumes `STEM.labels.nii.gz` (class indices) and `STEM.epistemic.nii.gz`.
    Case 2: pictures, planar arrays and single DICOM images: `STEM.labels.png`, class indices, or 0 and 255 where there
    is one structure, or a file for each class where they may overlap; `STEM.epistemic.tif`, single precision.
    Case 3: other arrays: `.npy`.

    Raises OSError where a file cannot be written.
    """
    labels, epistemic = (prepared.to_source(each) for each in (prediction.labels, prediction.epistemic))
    if prepared.source.kind is Kind.NIFTI:
        both = [
            (f"{stem.name}.{name}.nii.gz", values) for name, values in (("labels", labels), ("epistemic", epistemic))
        ]
        for name, values in both:
            nifti.write(stem.with_name(name), values, prepared.source)
        return [stem.with_name(name) for name, _ in both]
    if contract.rank != 2:
        written = []
        for name, values in (("labels", labels), ("epistemic", epistemic)):
            written.append(stem.with_name(f"{stem.name}.{name}.npy"))
            np.save(written[-1], values)
        return written
    return [*_masks(stem, contract, labels), _map(stem, epistemic)]


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
