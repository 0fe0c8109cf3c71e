"""What a doctor sees: mask and map on the right voxels in OHIF, read from the viewer in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from equipoise_clinic.dicom import archive

from ...support.orthanc import orthanc
from ...support.phantom import phantom
from ...support.result_sources import LIMIT, find, written
from ...support.viewer import viewer

pytestmark = [pytest.mark.slow, pytest.mark.pacs, pytest.mark.root, pytest.mark.browser]

OHIF_FACTOR = 100.0
"""OHIF 3.13 multiplies every Parametric Map by 100, whatever its units."""


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_mask_and_map_lie_where_they_belong(tmp_path: Path, head: Any, descending: bool) -> None:
    """Patient safety: every voxel of an oblique volume with unequal axes, by its place in the patient."""
    source = phantom(descending=descending)
    files = written(find(source.datasets, head), tmp_path / "results")
    with orthanc(tmp_path / "orthanc") as site:
        objects = [pydicom.dcmread(file) for file in files.values()]
        assert all(stored.done for stored in archive.send([*source.datasets, *objects], site.dicomweb_url))
        with viewer(site, tmp_path / "viewer") as ohif:
            ohif.open(source.datasets[0].StudyInstanceUID, series=5)
            np.testing.assert_array_equal(ohif.segments().at(source.points), source.labels)
            share = source.values.astype(np.float32) / 65535.0 * LIMIT
            for words, expected in (("epistemic", share), ("aleatoric", np.float32(LIMIT) - share)):
                np.testing.assert_allclose(
                    ohif.parametric_map(words).at(source.points), OHIF_FACTOR * expected, rtol=1e-6
                )
