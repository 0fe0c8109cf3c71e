"""Every image file that the installed packages ship: read as pydicom and nibabel read it, or refused in words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pydicom.config
import pytest
from equipoise_client.errors import UnreadableImage
from equipoise_client.images import read_image

pytestmark = pytest.mark.slow

FOLDERS = (
    ("pydicom", "data/test_files"), ("pydicom", "data/charset_files"), ("data_store", "data"), ("highdicom", "_data"),
    ("nibabel", "tests/data"), ("nibabel", "nicom/tests/data"), ("skimage", "data"), ("stardist", "data"),
)  # fmt: skip


def files() -> Iterator[Path]:
    for package, folder in FOLDERS:
        found = find_spec(package)
        if found is not None and found.submodule_search_locations:
            root = Path(next(iter(found.submodule_search_locations))) / folder
            yield from sorted(each for each in root.rglob("*") if each.is_file() and each.suffix != ".py")


def expected(path: Path) -> tuple[np.ndarray[Any, Any], float] | None:
    """Values `[C, frames, rows, columns]` in any order of frames, and a tolerance; None where ours say more."""
    dataset = pydicom.dcmread(path)
    if any("PixelPadding" in element.keyword for element in dataset):
        return None
    if dataset.get("ModalityLUTSequence"):
        return None
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if any("PixelValueTransformationSequence" in group for group in dataset.get(groups) or ()):
            return None
    photometric = str(dataset.PhotometricInterpretation)
    if photometric in ("MONOCHROME1", "PALETTE COLOR"):
        return None
    frames, samples = int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.get("SamplesPerPixel", 1) or 1)
    try:
        stored = dataset.pixel_array
    except (RuntimeError, ValueError, AttributeError):  # of 12 bits in JPEG, among others
        return None
    values = stored.reshape(frames, dataset.Rows, dataset.Columns, samples).astype(np.float64)
    values = values * float(dataset.get("RescaleSlope", 1) or 1) + float(dataset.get("RescaleIntercept", 0) or 0)
    lossy = dataset.file_meta.TransferSyntaxUID.is_compressed and dataset.get("LossyImageCompression") == "01"
    return np.moveaxis(values, -1, 0), 2.0 if lossy or samples > 1 else 1e-3


def test_every_file_is_read_right_or_refused_in_words() -> None:
    read, refused, compared, wrong = 0, 0, 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in files():
            try:
                image = read_image(path)
            except UnreadableImage as error:
                refused += 1
                if "Traceback" in str(error) or path.name not in str(error):
                    wrong.append(f"{path.name}: {error}")
                continue
            except Exception as error:  # noqa: BLE001 (that nothing else is raised is what is tested)
                wrong.append(f"{path.name}: {type(error).__name__}: {error}")
                continue
            read += 1
            ours = image.pixels
            if path.name.endswith((".nii", ".nii.gz")):
                theirs = np.asarray(nibabel.load(path).dataobj, np.float64).reshape(ours.shape)
                same = np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
            elif path.suffix in (".dcm", "") and path.read_bytes()[128:132] == b"DICM":
                found = expected(path)
                if found is None:
                    continue
                values, tolerance = found
                ours = np.sort(ours.reshape(values.shape), axis=1)  # frames are in order of their place
                same = np.allclose(ours, np.sort(values, axis=1), rtol=1e-6, atol=tolerance)
            else:
                continue
            compared += 1
            if not same:
                wrong.append(f"{path.name}: other values")
    print(f"{read + refused} files: {read} read, {compared} of them compared, {refused} refused")
    assert not wrong, "\n".join(wrong)
    assert read > 100 and compared > 60, "the packages ship so many"
