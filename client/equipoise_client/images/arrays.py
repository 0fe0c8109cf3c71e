""".npy and .npz through NumPy; pickled objects are never loaded."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import UnreadableImage
from .source import Kind, SourceImage, check_size


def read_npy(path: Path) -> SourceImage:
    """An array as the model takes it: `[C, *S]`, or `[*S]` for one channel (`fit` distinguishes them)."""
    with path.open("rb") as file:
        return SourceImage(_array(path, file), Kind.ARRAY)


def read_npz(path: Path) -> SourceImage:
    """The array `image` (or the only one besides `spacing`), and the optional `spacing`: mm per spatial axis."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith(".npy") for name in archive.namelist()):
                raise UnreadableImage(
                    f"{path.name}: a ZIP archive that is not NumPy's; unpack it, and name its files or folder"
                )
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            candidates = ["image"] if "image" in names else [name for name in names if name != "spacing"]
            if len(candidates) != 1:
                raise UnreadableImage(f"{path.name} holds {len(names)} arrays; expected one, or one called `image`")
            with archive.open(f"{candidates[0]}.npy") as file:
                pixels = _array(path, file)
            if "spacing" not in names:
                return SourceImage(pixels, Kind.ARRAY)
            with archive.open("spacing.npy") as file:
                spacing = _array(path, file).reshape(-1)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UnreadableImage(
            f"{path.name}: not a NumPy archive, or a damaged one; save it with numpy.savez"
        ) from error
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise UnreadableImage(f"{path.name}: its spacing is {spacing.tolist()}; expected mm above 0 per spatial axis")
    return SourceImage(pixels, Kind.ARRAY, tuple(float(mm) for mm in spacing))


def _array(path: Path, file: IO[bytes]) -> NDArray[np.float32]:
    """The next array of the stream as float32; its size is looked at before it is unpacked."""
    try:
        version = npy.read_magic(file)  # type: ignore[no-untyped-call]
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)  # type: ignore[no-untyped-call]
    except Exception as error:  # NumPy parses it as Python: what a damaged one raises shares no base
        raise UnreadableImage(f"{path.name}: the header of the array is damaged; save it with numpy.save") from error
    if dtype.kind not in "biuf":
        raise UnreadableImage(f"{path.name}: values of type {dtype}; expected real numbers that fit float32")
    check_size(path, shape)
    count = int(np.prod(shape, dtype=np.int64))
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise UnreadableImage(
            f"{path.name}: cut off, {len(data)} of {count * dtype.itemsize} bytes of values are there"
        )
    if file.read(1):
        raise UnreadableImage(f"{path.name}: more values follow the array of {list(shape)}; expected one array")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused with a count
        values = np.frombuffer(data, dtype).astype(np.float32)
    return values.reshape(shape, order="F" if fortran else "C")
