"""The images of an `.npz` of cases, one by one, without their labels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .source import Kind, SourceImage, finished


def images_in(archive: Path) -> list[str]:
    """Names of the images of an `.npz` with an entry `images`, for `image_in`; empty where it has none: one image."""
    return list(_archived(archive.absolute())[0]) if archive.suffix == ".npz" and archive.is_file() else []


def image_in(archive: Path, name: str) -> SourceImage:
    """One of `images_in`, as a file of its own would hold it."""
    names, images, spacing = _archived(archive.absolute())
    return finished(archive / name, SourceImage(images[names.index(name)].astype(np.float32), Kind.ARRAY, spacing))


@lru_cache(maxsize=1)  # an archive is unpacked as a whole: once, not for each of its images
def _archived(path: Path) -> tuple[list[str], NDArray[Any], tuple[float, ...] | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive.files:
                return [], np.empty(0), None
            images = archive["images"]
            names = [f"{n:05d}" for n in range(len(images))]
            if "ids" in archive.files:
                stated = [str(each) for each in archive["ids"]]
                names = names if any("/" in name for name in stated) else stated
            spacing = tuple(archive["spacing"].reshape(-1).tolist()) if "spacing" in archive.files else None
    except (ValueError, OSError, BadZipFile) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}; expected an .npz of plain arrays") from error
    if images.dtype.kind not in "biuf" or len(names) != len(images) or len(set(names)) < len(names):
        raise InvalidInput(f"{path.name}: expected `images` of numbers, and one id of its own for each in `ids`")
    return names, images, spacing
