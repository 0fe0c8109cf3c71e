"""Other people's programs that say whether a DICOM object is right; each raises AssertionError with what they said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

ALLOWED = (
    # One by one: what dciodvfy warns of although it is meant, and right.
    r"CodingSchemeDesignator\(0008,0102\)\[1\]> - Unrecognized defined term = <99EQUIPOISE>",  # private codes
    r"(ImageType\(0008,0008\)|FrameType\(0008,9007\))\[4\]> - Unrecognized defined term = <QUANTITY>",  # PS3.3 C.8.32.2
)


def dciodvfy(file: Path, *allowed: str) -> None:
    """Every attribute as the object's definition has it: no error, no warning but those of `ALLOWED` and `allowed`."""
    lines = _run("dciodvfy", "-new", str(file)).stderr.splitlines()
    unknown = [line for line in lines if not any(re.search(pattern, line) for pattern in (*ALLOWED, *allowed))]
    # What is left is the name of the definition that it was held against.
    assert unknown in (["Segmentation"], ["ParametricMap"], ["Comprehensive3DSR"]), f"{file.name}: {unknown}"


def dsr2html(file: Path) -> str:
    """The report as DCMTK renders it, without a word of complaint."""
    done = _run("dsr2html", str(file))
    assert done.returncode == 0 and not done.stderr.strip(), f"{file.name}: {done.stderr}"
    return done.stdout


def tid1500(file: Path, folder: Path) -> dict[str, Any]:
    """The measurement report as dcmqi reads it; its exit code says nothing, so what it wrote has to."""
    output = folder / "tid1500.json"
    done = _run("tid1500reader", "--inputDICOM", str(file), "--outputMetadata", str(output))
    assert output.exists(), done.stderr
    found = json.loads(output.read_text())
    assert found["Measurements"]
    return dict(found)


def segments(file: Path, folder: Path) -> list[Any]:
    """Every segment as dcmqi reads it, a NIfTI image each."""
    folder.mkdir(parents=True, exist_ok=True)
    done = _run("segimage2itkimage", "--inputDICOM", str(file), "--outputDirectory", str(folder), "--outputType", "nii")
    assert done.returncode == 0, done.stderr
    return [nibabel.load(path) for path in sorted(folder.glob("*.nii.gz"), key=lambda p: int(p.name.split(".")[0]))]


def parametric_map(file: Path, folder: Path) -> Any:
    """A Parametric Map as dcmqi reads it, a NIfTI image."""
    folder.mkdir(parents=True, exist_ok=True)
    done = _run("paramap2itkimage", "--inputDICOM", str(file), "--outputDirectory", str(folder), "--outputType", "nii")
    assert done.returncode == 0, done.stderr
    return nibabel.load(folder / "pmap.nii.gz")


def at(image: Any, points: NDArray[np.float64], outside: float = 0.0) -> NDArray[np.float64]:
    """Values of a NIfTI image at points in LPS `[…, 3]`, which must be voxel centres; `outside` beyond its edges."""
    ras = points * [-1.0, -1.0, 1.0]
    inverse = np.linalg.inv(image.affine)
    indices = ras @ inverse[:3, :3].T + inverse[:3, 3]
    voxels = np.rint(indices).astype(int)
    assert np.abs(indices - voxels).max() < 1e-3, "its voxels do not lie where the source's do"
    inside = ((voxels >= 0) & (voxels < image.shape)).all(axis=-1)
    found = np.full(points.shape[:-1], outside, np.float64)
    found[inside] = np.asarray(image.dataobj)[tuple(voxels[inside].T)]
    return found


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    beside = str(Path(sys.executable).parent)  # dcmqi's come from PyPI, whether or not the environment is activated
    found = shutil.which(program, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    assert found, f"{program} is missing: run deploy/system-packages.sh as root, or make test"
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=120)
