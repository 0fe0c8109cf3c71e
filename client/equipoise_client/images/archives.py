"""An `.npz` of cases: what is in it, and its images one by one."""

from __future__ import annotations

import zlib
from collections.abc import Container, Mapping
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
    entries, _ = entries_of(path)
    if "images" not in entries:
        return [], np.empty(0), None
    names = [f"{n:05d}" for n in range(len(entries["images"]))]
    if "ids" in entries:
        stated = [str(each) for each in entries["ids"]]
        names = names if any("/" in name for name in stated) else stated
    return names, entries["images"], spacing_of(entries)


def entries_of(
    path: Path, each: Container[str] = (), others: Container[str] = ()
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """`images` `[n, …]`, `ids`, `spacing` and those that are named, as far as they are there; and the names of all.

    Args:
        each: names of entries that have one value for each image `[n]`, as `ids` have.
        others: names of more.

    Raises:
        InvalidInput: it cannot be read, or does not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = sorted(archive.files)
            wanted = [name for name in names if name in ("images", "ids", "spacing") or name in each or name in others]
            entries = {name: archive[name] for name in wanted}
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}; expected an .npz of plain arrays") from error
    if (images := entries.get("images")) is None:
        return entries, names
    if images.ndim < 2 or images.dtype.kind not in "biuf":
        raise InvalidInput(
            f"{path.name}: `images` are {images.dtype} of shape {list(images.shape)}; expected numbers [n, *S] or "
            "[n, C, *S]"
        )
    for name, values in entries.items():
        if (name == "ids" or name in each) and values.shape != (len(images),):
            raise InvalidInput(
                f"{path.name}: `{name}` has the shape {list(values.shape)}; expected one for each of the {len(images)} "
                "images"
            )
    if "ids" in entries and len({str(value) for value in entries["ids"]}) < len(images):
        raise InvalidInput(f"{path.name}: `ids` repeat; expected one of its own for each image")
    if "spacing" in entries and entries["spacing"].dtype.kind not in "iuf":
        raise InvalidInput(f"{path.name}: `spacing` is {entries['spacing'].dtype}; expected numbers, mm per axis")
    return entries, names


def spacing_of(entries: Mapping[str, NDArray[Any]]) -> tuple[float, ...] | None:
    """mm per axis, where an archive states it."""
    return tuple(entries["spacing"].astype(float).reshape(-1).tolist()) if "spacing" in entries else None
