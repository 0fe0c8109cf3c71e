"""Pseudo-labels: what the model says of images that it accepted, as files that a trainer reads.

To learn from one's own confident answers is self-training (Lee 2013, "Pseudo-label"). They are never truth: file names
and the manifest say so, and `equipoise calibrate` refuses them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_client.errors import InvalidInput
from equipoise_client.extras import needs
from equipoise_client.images import Kind, nifti
from equipoise_client.images.labelled import PSEUDO_LABEL
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.decision import Route
from equipoise_core.uncertainty import label_confidence
from numpy.typing import NDArray

from .survey import SurveyedImage

FORMAT = "equipoise-pseudo-labels/1"

IGNORE = 255
"""Label of a voxel to be left out of training; the usual `ignore_index`."""

OUTPUTS = ("labels", "calibrated")
"""Arrays that a pseudo-label is made from."""

STATED = ("model_digest", "policy_digest", "alpha", "delta")
"""What a record says of the model and the policy that accepted: what a pseudo-label is worth."""

WARNING = "written by a model, seen by nobody: not truth, not to be evaluated or calibrated against"


@dataclass(frozen=True)
class PseudoLabel:
    """One accepted image and the label that was written for it.

    Attributes:
        file: the image.
        input_digest: SHA-256 of the prepared image, as in the record.
        label: the label's file (segmentation), or the classes' names with semicolons (classification); None where no
            part of the answer is confident.
        probability: classification: of the least certain class.
        ignored: segmentation: share of voxels marked `IGNORE`.
        reason: why the image was accepted.
    """

    file: str
    input_digest: str
    label: str | None
    probability: float | None
    ignored: float | None
    reason: str


def obstacle(contract: Contract, record: Mapping[str, Any]) -> str | None:
    """Why no answer of this model becomes a pseudo-label, or None."""
    if len(contract.classes) > IGNORE:
        return f"{contract.name} has {len(contract.classes)} classes; a label map holds at most {IGNORE} beside ignore"
    if record.get("policy_digest") is None:
        return (
            f"the server has no policy for {contract.name} and accepts nothing: make one with `equipoise calibrate`, "
            "so that it is known how many of its accepted answers are wrong"
        )
    if record.get("alpha") is None:
        return f"the policy of {contract.name} accepts nothing, or guarantees nothing about what it accepts"
    return None


def pseudo_label(contract: Contract, answer: SurveyedImage, confidence: float, place: Path) -> PseudoLabel:
    """The label of an accepted image; for a segmentation it is written to `place` with the ending of its kind.

    What is less probable than `confidence`, by the policy's recalibrated mean, is left to be ignored: a bound on it
    bounds the epistemic part as well, which is at most the entropy of the mean. NIfTI files get NIfTI labels in their
    own grid, pictures PNG, anything else .npy.

    Raises OSError where it cannot be written; ValueError where the route is not `accept`.
    """
    prediction, record = answer.prediction, answer.prediction.record
    if prediction.route is not Route.ACCEPT or obstacle(contract, record) is not None:
        raise ValueError(f"{answer.file.name} is at {prediction.route.value}; only accepted images get pseudo-labels")
    labels = prediction.labels
    certain = label_confidence(contract.activation, labels, prediction.calibrated)
    confident = certain >= confidence
    digest = str(record.get("input_digest"))
    if contract.task is Task.CLASSIFICATION:
        lowest = float(certain.min())
        said = _classes(contract, labels) if confident.all() else None
        return PseudoLabel(str(answer.file), digest, said, lowest, None, prediction.reason)
    marked = np.where(confident, labels, IGNORE).astype(np.uint8)
    written = _write(place, answer, answer.prepared.to_source(marked))
    ignored = float(1.0 - confident.mean())
    return PseudoLabel(str(answer.file), digest, written.name, None, ignored, prediction.reason)


def _classes(contract: Contract, labels: NDArray[np.uint8]) -> str:
    if contract.activation is Activation.SOFTMAX:
        return contract.classes[int(labels.reshape(-1)[0])]
    return ";".join(name for name, there in zip(contract.classes, labels.reshape(-1), strict=True) if there)


def _write(place: Path, answer: SurveyedImage, labels: NDArray[np.uint8]) -> Path:
    """`[E, *S]` in the source's grid; E = 1 has no axis of its own in the file."""
    source = answer.prepared.source
    plain = labels[0] if len(labels) == 1 else labels
    picture = source.kind is Kind.RASTER and plain.ndim == 2
    ending = ".nii.gz" if source.kind is Kind.NIFTI else ".png" if picture else ".npy"
    path = place.with_name(f"{place.name}{PSEUDO_LABEL}{ending}")
    try:
        if source.kind is Kind.NIFTI:
            nifti.write(path, labels, source)
        elif picture:
            with needs("client", "writing PNG files"):
                from PIL import Image
            Image.fromarray(plain).save(path)
        else:
            np.save(path, plain)
    except OSError:
        path.unlink(missing_ok=True)  # half a label would look like a whole one
        raise
    return path


def new_folder(folder: Path) -> None:
    """Makes the folder. Raises InvalidInput where something lies in it: labels of two models must not mix."""
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; name a new folder, so that pseudo-labels of two models never mix")
    folder.mkdir(parents=True, exist_ok=True)


def write_manifest(
    folder: Path, contract: Contract, record: Mapping[str, Any], confidence: float, labels: Sequence[PseudoLabel]
) -> Path:
    """`pseudo-labels.json`, and for a classification `pseudo-labels.csv`. Raises OSError.

    Args:
        record: what the record of an accepted image says by the names in `STATED`, the same for all.
    """
    alpha, delta = record["alpha"], record["delta"]
    document = {
        "format": FORMAT,
        "warning": WARNING,
        "model": contract.name,
        **{name: record[name] for name in STATED},
        "guarantee": f"at most {alpha:.1%} of accepted images are wrong, as the policy defines wrong"
        + (f", with confidence {1 - delta:.1%}" if delta is not None else "")
        + "; for images like those it was calibrated on",
        "confidence": confidence,
        "ignore": IGNORE if contract.task is Task.SEGMENTATION else None,
        "classes": list(contract.classes),
        "pseudo_labels": [asdict(each) for each in labels],
    }
    if contract.task is Task.CLASSIFICATION:
        with (folder / "pseudo-labels.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(("file", "pseudo_label", "probability"))
            table.writerows((e.file, e.label, f"{e.probability:.6f}") for e in labels if e.label is not None)
    manifest = folder / "pseudo-labels.json"
    manifest.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return manifest
