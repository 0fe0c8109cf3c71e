"""Real images for the reference models, from the folder that `EQUIPOISE_DATA` names.

    hippocampus/images/*.nii.gz, hippocampus/labels/*.nii.gz    Medical Segmentation Decathlon, Task04
    nuclei/nuclei.npz                                           BBBC038, Data Science Bowl 2018 stage 1
    pneumonia/pneumonia.npz                                     MedMNIST v2, PneumoniaMNIST

`download` fetches the two that their publishers offer as one file with a checksum.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[3]

HIPPOCAMPUS_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar"
HIPPOCAMPUS_CHECKSUM = "md5:9d24dba78a72977dbd1d2e110310f31b"  # from monai.apps.DecathlonDataset (MONAI 1.6)
PNEUMONIA_URL = "https://zenodo.org/records/10519652/files/pneumoniamnist.npz"
PNEUMONIA_CHECKSUM = "md5:28209eda62fecd6e6a2d98b1501bb15f"  # from medmnist.info (MedMNIST 3)

SOURCES = {
    "hippocampus": f"Medical Segmentation Decathlon, Task04_Hippocampus: {HIPPOCAMPUS_URL}",
    "pneumonia": f"MedMNIST v2, pneumoniamnist: {PNEUMONIA_URL}",
    "nuclei": "BBBC038 version 1, stage1_train: https://bbbc.broadinstitute.org/BBBC038",
}


class DataMissingError(FileNotFoundError):
    """The images are not where they were looked for; the message says where they come from."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(
            f"no {name} images at {path}. Point EQUIPOISE_DATA at a folder that holds them; "
            f"official source: {SOURCES[name]}"
        )


@dataclass(frozen=True)
class Dataset:
    """Images with their truth, in the order of `ids`.

    Attributes:
        ids: one per case.
        images: `[C, *S]` float32 in the source's own intensities; sizes may differ between cases.
        targets: segmentation: `[*S]` uint8 labels, 0 = background; classification: `[]`, the class.
    """

    ids: tuple[str, ...]
    images: tuple[NDArray[np.float32], ...]
    targets: tuple[NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, ids: Sequence[str]) -> Dataset:
        """The cases named, in the order of `ids`."""
        row = {case: index for index, case in enumerate(self.ids)}
        rows = [row[case] for case in ids]
        return Dataset(tuple(ids), tuple(self.images[i] for i in rows), tuple(self.targets[i] for i in rows))


@dataclass(frozen=True)
class Split:
    """Ids of three sets with no case in common: to fit weights, to calibrate, to measure."""

    train: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]


def data_folder() -> Path:
    """`EQUIPOISE_DATA`, by default `../shared/data` beside the repository."""
    return Path(os.environ.get("EQUIPOISE_DATA", REPOSITORY.parent / "shared" / "data"))


def split(ids: Sequence[str], seed: int = 0, calibration: float = 0.225, test: float = 0.225) -> Split:
    """Deals cases to three sets in the order of SHA-256(seed, id): the same on every machine, in whatever order given.

    Args:
        ids: one per patient (or per case where patients are not known), all different.
        seed: another seed deals anew.
        calibration, test: shares in [0, 1), rounded to whole cases; the rest is for training.
    """
    if len(set(ids)) != len(ids):
        raise ValueError("ids repeat; a patient who is in two sets makes the measured figures too good")
    dealt = sorted(ids, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())
    n_test, n_calibration = round(test * len(ids)), round(calibration * len(ids))
    return Split(
        train=tuple(sorted(dealt[n_test + n_calibration :])),
        calibration=tuple(sorted(dealt[n_test : n_test + n_calibration])),
        test=tuple(sorted(dealt[:n_test])),
    )


def reference_split(name: str, ids: Sequence[str], seed: int = 0) -> Split:
    """The split that the published weights were made with.

    Segmentation: 55 % train, 22.5 % calibration, 22.5 % test. Pneumonia: the publisher's validation set is the test
    set here, and the publisher's training set is dealt 80 : 20 to train and calibration.
    """
    if name != "pneumonia":
        return split(ids, seed)
    published = split([case for case in ids if case.startswith("train")], seed, calibration=0.2, test=0.0)
    return Split(published.train, published.calibration, tuple(sorted(c for c in ids if c.startswith("val"))))


def load(name: str, folder: Path | None = None) -> Dataset:
    """All cases of `hippocampus`, `pneumonia` or `nuclei`; `folder` defaults to `data_folder()`."""
    folder = folder or data_folder()
    loaders = {"hippocampus": _load_hippocampus, "pneumonia": _load_pneumonia, "nuclei": _load_nuclei}
    if name not in loaders:
        raise ValueError(f"no reference data named {name!r}; there are {', '.join(loaders)}")
    return loaders[name](folder)


def load_shifted_nuclei(folder: Path | None = None) -> Dataset:
    """Purple-stained H&E tissue instead of fluorescence: out of distribution, never trained on. `[1, 256, 256]`."""
    with np.load(_existing("nuclei", (folder or data_folder()) / "nuclei" / "nuclei.npz")) as archive:
        return _from_arrays("shifted", archive["shifted_images"], archive["shifted_masks"])


def download(name: str, folder: Path | None = None) -> Path:
    """Fetches `hippocampus` or `pneumonia` from the publisher, verifies its checksum, lays it out for `load`."""
    import pooch

    target = (folder or data_folder()) / name
    if name == "pneumonia":
        target.mkdir(parents=True, exist_ok=True)
        archive = pooch.retrieve(PNEUMONIA_URL, known_hash=PNEUMONIA_CHECKSUM, progressbar=True)
        shutil.copyfile(archive, target / "pneumonia.npz")
    elif name == "hippocampus":
        files = pooch.retrieve(
            HIPPOCAMPUS_URL, known_hash=HIPPOCAMPUS_CHECKSUM, processor=pooch.Untar(), progressbar=True
        )
        for source in map(Path, files):
            kind = {"imagesTr": "images", "labelsTr": "labels"}.get(source.parent.name)
            if kind and not source.name.startswith("."):
                (target / kind).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / kind / source.name)
    else:
        raise ValueError(f"{name} has no direct download with a checksum; official source: {SOURCES[name]}")
    return target


def _existing(name: str, path: Path) -> Path:
    if not path.exists():
        raise DataMissingError(name, path)
    return path


def _from_arrays(prefix: str, images: NDArray[np.uint8], targets: NDArray[np.uint8]) -> Dataset:
    return Dataset(
        ids=tuple(f"{prefix}-{index:05d}" for index in range(len(images))),
        images=tuple(images[:, None].astype(np.float32)),
        targets=tuple(np.asarray(target) for target in targets.astype(np.uint8)),
    )


def _load_hippocampus(folder: Path) -> Dataset:
    """Axes X, Y, Z as stored: the files' affine says RAS+, 1 mm."""
    paths = sorted(_existing("hippocampus", folder / "hippocampus" / "images").glob("*.nii.gz"))
    if not paths:
        raise DataMissingError("hippocampus", folder / "hippocampus" / "images")
    labels = folder / "hippocampus" / "labels"
    return Dataset(
        ids=tuple(path.name.removesuffix(".nii.gz") for path in paths),
        images=tuple(_voxels(path).astype(np.float32)[None] for path in paths),
        targets=tuple(_voxels(labels / path.name).astype(np.uint8) for path in paths),
    )


def _voxels(path: Path) -> NDArray[Any]:
    """The array of a NIfTI file in its own axis order, `[X, Y, Z]`."""
    import nibabel

    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


def _load_pneumonia(folder: Path) -> Dataset:
    with np.load(_existing("pneumonia", folder / "pneumonia" / "pneumonia.npz")) as archive:
        train = _from_arrays("train", archive["train_images"], archive["train_labels"].ravel())
        val = _from_arrays("val", archive["val_images"], archive["val_labels"].ravel())
    return Dataset(train.ids + val.ids, train.images + val.images, train.targets + val.targets)


def _load_nuclei(folder: Path) -> Dataset:
    with np.load(_existing("nuclei", folder / "nuclei" / "nuclei.npz")) as archive:
        plain = _from_arrays("nuclei", archive["images"], archive["masks"])
        return Dataset(tuple(str(case) for case in archive["ids"]), plain.images, plain.targets)
