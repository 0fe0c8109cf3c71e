"""A decision about the phantom whose maps say of every voxel which one it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equipoise_client import Estimate, Prediction, Route, Volume
from equipoise_client.images import Prepared, fit
from equipoise_clinic.dicom.report import objects_of
from equipoise_clinic.dicom.result_source import ResultSource, result_source
from equipoise_clinic.dicom.rules import Rule
from equipoise_clinic.dicom.series import read, volume_of
from equipoise_core.contract import Contract

from .phantom import FIRST, SECOND

LIMIT = float(np.log(3))


@pytest.fixture(scope="session")
def head(brain: Contract) -> Contract:
    """`brain` for the phantom's spacing, so that nothing is resampled."""
    return replace(brain, name="head", spacing=((0.5, 3.0),) * 3)


def predicted(contract: Contract, prepared: Prepared, **changes: Any) -> Prediction:
    """Labels by the phantom's thresholds; epistemic as the stored value, aleatoric as what is left of the limit."""
    values = prepared.pixels
    share = (values / 65535.0 * LIMIT).astype(np.float32)
    labels = (values >= FIRST).astype(np.uint8) + (values >= SECOND)
    record = {"model": contract.name, "model_digest": contract.model_digest, "policy_digest": "p" * 64, "seed": "7"}
    fields: dict[str, Any] = {
        "model": contract.name,
        "route": Route.REVIEW,
        "reason": "score 0.3 is above 0.2",
        "case_score": 0.3,
        "samples_used": 20,
        "volume": Volume(
            {"anterior": Estimate(2.0, 0.1, 1.75, 2.5), "posterior": Estimate(0.5, 0.05, 0.375, 0.75)},
            Estimate(2.5, 0.2, 2.125, 3.25),
        ),
        "record": record,
        "arrays": {"labels": labels.astype(np.uint8), "epistemic": share, "aleatoric": np.float32(LIMIT) - share},
    }
    return Prediction(**{**fields, **changes})


def find(given: Any, contract: Contract, rule: Rule | None = None, **changes: Any) -> ResultSource:
    """What the result objects of a study with one series are made of."""
    (group,) = read(given)
    series = volume_of(group)
    prepared = fit(series.image(), contract)
    return result_source(
        series, rule or Rule(contract.name), contract, prepared, predicted(contract, prepared, **changes)
    )


def written(source: ResultSource, folder: Path) -> dict[str, Path]:
    """The result objects as files, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ("seg", "epistemic", "aleatoric", "sr") if source.masks is not None else ("sr",)
    files = {}
    for kind, dataset in zip(kinds, objects_of(source), strict=True):
        files[kind] = folder / f"{kind}.dcm"
        dataset.save_as(files[kind], enforce_file_format=True)
    return files
