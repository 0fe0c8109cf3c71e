"""DICOM pixels and geometry through pydicom: of one file (`read`), or dataset by dataset for `equipoise_clinic.dicom`.

References: DICOM PS3.3 C.11.1 (Modality LUT), C.7.6.3.1.2 (Photometric Interpretation), C.7.6.2.1.1 (image plane).
"""

from __future__ import annotations

import gzip
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtra, StudyRejected, UnreadableImage
from ..extras import needs
from . import uniform
from .codestream import Contradiction
from .completeness import missing
from .decoding import unpacked
from .geometry import frames_of, functional_group, planes_of, spacing_in_plane
from .header import header_of
from .source import Kind, SourceImage, check_deflated, check_size, check_unpacked
from .stack import order_of, stack

DICOMDIR = "1.2.840.10008.1.3.10"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(path: Path) -> SourceImage:
    """`[C, rows, columns]`, or `[C, frames, rows, columns]` ordered along the slice normal.

    Stored values go through the Modality LUT (or rescale slope and intercept); MONOCHROME1 is turned so that larger is
    brighter; display settings (window, VOI LUT) are not applied. Spacing comes from Pixel Spacing, and between frames
    from their positions; never from Slice Thickness.
    """
    with quiet(path.name):
        dataset = load(path)
        frames = checked(path, dataset)
        values, padding = values_of(path, dataset, frames)
        refuse_all_padding(path, padding)
        plane, header = spacing_in_plane(dataset), header_of(dataset)
        if frames == 1:
            part = missing([dataset]) if dataset.get("ConcatenationUID") else ()
            return SourceImage(
                values[:, 0], Kind.DICOM, plane, None, header, part, None if padding is None else padding[0]
            )
        placed = planes_of(dataset, frames)
        order, spacing, affine = tuple(range(frames)), None, None
        try:
            if placed is not None and plane is not None:
                volume = stack(*placed, plane)
                order, spacing, affine = volume.order, volume.spacing, volume.affine
            elif placed is not None:
                order = order_of(*placed)
            doubts = (*uniform.of_frames(dataset, order), *missing([dataset]))
        except StudyRejected as error:
            raise UnreadableImage(f"{path.name}: of its frames, {error}") from None
        ordered = np.ascontiguousarray(values[:, order])
        padding = None if padding is None else padding[list(order)]
        return SourceImage(ordered, Kind.DICOM, spacing, affine, header, doubts, padding)


def load(file: Path | IO[bytes], name: str = "", **reading: Any) -> Any:
    """A dataset with its pixels, not yet decoded. What it unpacks to is counted before, see `check_deflated`.

    `reading` is pydicom's: `defer_size`, `stop_before_pixels`.

    Raises UnreadableImage, and whatever else pydicom raises on malformed data: call it under `quiet`.
    """
    with needs("clinic", "reading DICOM files"):
        import pydicom
    if isinstance(file, Path):
        with file.open("rb") as stream:
            _check_packing(stream, file.name)
        return pydicom.dcmread(file, **reading)
    _check_packing(file, name)
    return pydicom.dcmread(file, **reading)  # type: ignore[arg-type]


def _check_packing(file: IO[bytes], name: str) -> None:
    """At its beginning, and left there. Raises UnreadableImage."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    if file.read(2) == b"\x1f\x8b":
        file.seek(0)
        if gzip.GzipFile(fileobj=file).read(132)[128:] == b"DICM":
            raise UnreadableImage(f"{name}: a gzipped DICOM file; unpack it first (gunzip)")
    file.seek(0)
    read_preamble(file, force=False)  # type: ignore[arg-type]
    meta = _read_file_meta_info(file)  # type: ignore[arg-type]
    if meta.get("TransferSyntaxUID") in _DEFLATED:
        check_deflated(name, file)
    file.seek(0)


@contextmanager
def silence() -> Iterator[None]:
    """No warning and no log line of the libraries' own: they may quote the patient's fields."""
    for library in ("pydicom", "highdicom"):  # for good: restoring it would let another thread's lines through
        log = logging.getLogger(library)
        log.propagate, log.handlers = False, [logging.NullHandler()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """As `silence`, and errors name the file only."""
    try:
        with silence():
            yield
    except (UnreadableImage, StudyRejected, ModuleNotFoundError, MissingExtra, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
        raise UnreadableImage(
            f"{name}: damaged or cut off DICOM ({type(error).__name__}); fetch it from the archive again"
        ) from None


def checked(path: Path, dataset: Any) -> int:
    """Number of frames, after the checks that need no decoding."""
    pixels = pixels_of(dataset)
    if pixels is None:
        if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
            raise UnreadableImage(f"{path.name}: a DICOMDIR, a list of files; name the files or their folder")
        kind = getattr(dataset.get("SOPClassUID"), "name", "")
        if kind.endswith("Storage") and "Image" not in kind:
            raise UnreadableImage(f"{path.name}: a DICOM object without an image ({kind}); expected an image")
        raise UnreadableImage(f"{path.name}: DICOM without pixels, or cut off before them; expected an image")
    lacking = [
        name for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if not dataset.get(name)
    ]
    if lacking:
        raise UnreadableImage(f"{path.name}: {', '.join(lacking)} is missing or 0; without it pixels cannot be read")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableImage(
            f"{path.name}: the file does not state its transfer syntax; fetch it from the archive again"
        )
    frames = frames_of(dataset)
    shape = (int(dataset.get("SamplesPerPixel") or 1), frames, int(dataset.Rows), int(dataset.Columns))
    check_size(path, shape)
    if not decodable(syntax):
        raise UnreadableImage(
            f"{path.name}: compressed as {name_of(syntax)}, which nothing installed here can unpack: "
            "pip install 'equipoise[clinic]', or store it uncompressed (dcmdjpeg, gdcmconv --raw)"
        )
    size = int(np.prod(shape, dtype=np.int64)) * max(1, int(dataset.BitsAllocated)) // 8
    if syntax.is_encapsulated:
        check_unpacked(path.name, size)
    elif pixels == "PixelData" and not str(dataset.PhotometricInterpretation).startswith("YBR"):
        given = len(dataset.PixelData)
        if given < size:
            raise UnreadableImage(
                f"{path.name}: DICOM cut off, {given} of {size} bytes of pixels are there; "
                "fetch it from the archive again"
            )
        if given - size >= max(2, min(shape[2:]) * int(dataset.BitsAllocated) // 8):  # a row or a column of each frame
            raise UnreadableImage(
                f"{path.name}: {given} bytes of pixels, where Rows, Columns and Number of Frames make {size}: the "
                "header is not that of these pixels; fetch it again"
            )
    return frames


def pixels_of(dataset: Any) -> str | None:
    """Keyword of the element that holds the pixels, or None."""
    return next((name for name in _PIXELS if name in dataset), None)


def name_of(syntax: Any) -> str:
    """Of a transfer syntax, also of one that pydicom does not know."""
    known = {"110": "JPEG XL Lossless", "111": "JPEG XL JPEG Recompression", "112": "JPEG XL"}
    return known.get(str(syntax).removeprefix("1.2.840.10008.1.2.4."), str(syntax.name))


def decodable(syntax: Any) -> bool:
    """Whether pixels of this transfer syntax can be unpacked here."""
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    try:
        if not syntax.is_compressed or syntax.is_deflated:
            return True
        return bool(get_decoder(syntax).is_available)
    except (NotImplementedError, ValueError):  # ValueError: pydicom does not know it
        return False


def values_of(path: Path, dataset: Any, frames: int) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """`[C, frames, rows, columns]` after Modality LUT and inversion, and where there is padding, or None.

    Padding holds the smallest of the other values.
    """
    from pydicom.pixels import apply_color_lut  # type: ignore[attr-defined]

    stored = _stored(path, dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if photometric == "PALETTE COLOR" or int(dataset.get("SamplesPerPixel") or 1) > 1:
        colours = np.moveaxis(stored.reshape(frames, dataset.Rows, dataset.Columns, -1), -1, 0)
        return colours.astype(np.float32), None
    if not photometric.startswith("MONOCHROME"):
        raise UnreadableImage(f"{path.name}: Photometric Interpretation {photometric} with one sample per pixel")
    stack = stored.reshape(frames, dataset.Rows, dataset.Columns)
    inverted = photometric == "MONOCHROME1"
    if inverted and stack.dtype.kind == "f":
        raise UnreadableImage(f"{path.name}: MONOCHROME1 of floating-point pixels has no range to turn them in")
    values = np.empty(stack.shape, np.float32)
    for frame, plane in enumerate(stack):
        rescaled = _modality(path, dataset, frame, plane)
        # Turned within the range that could be stored, so that an image's own content does not shift its intensities.
        values[frame] = _modality(path, dataset, frame, _extremes(dataset)).sum() - rescaled if inverted else rescaled
    padding = _padding(path, dataset, stack)
    if padding is not None and not padding.all():
        values[padding] = values[~padding].min()
    return values[None], padding


def _extremes(dataset: Any) -> NDArray[np.int64]:
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])


def _stored(path: Path, dataset: Any) -> NDArray[Any]:
    """Pixels as they are stored, shifted to begin at bit 0."""
    from pydicom.pixels import pixel_array  # type: ignore[attr-defined]

    syntax = dataset.file_meta.TransferSyntaxUID
    if pixels_of(dataset) != "PixelData":
        return np.asarray(pixel_array(dataset))
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    if not 0 < bits <= allocated or not bits - 1 <= high < allocated:
        raise UnreadableImage(
            f"{path.name}: Bits Allocated {allocated}, Bits Stored {bits} and High Bit {high} contradict each other"
        )
    if syntax.is_encapsulated:
        if high != bits - 1:
            raise UnreadableImage(f"{path.name}: High Bit {high} with {bits} Bits Stored in compressed pixels")
        try:
            return _within(unpacked(dataset), dataset)
        except Contradiction as error:
            raise UnreadableImage(f"{path.name}: {error}; fetch it from the archive again") from None
        except ValueError as error:
            raise UnreadableImage(
                f"{path.name}: its {name_of(syntax)} pixels cannot be unpacked: {error}; fetch it again"
            ) from None
    if allocated not in (8, 16, 32) or int(dataset.get("SamplesPerPixel") or 1) > 1:
        return np.asarray(pixel_array(dataset))
    whole = np.asarray(pixel_array(dataset, bits_stored=allocated, high_bit=allocated - 1))
    above = allocated - 1 - high
    values = np.right_shift(np.left_shift(whole, above), allocated - bits)  # extends the sign where there is one
    overlay = any(element.tag.element == 0x0102 and element.value for element in dataset.group_dataset(0x6000))
    if above and not overlay:
        rest = np.right_shift(whole, high + 1)
        signs = np.right_shift(values, bits - 1) if int(dataset.get("PixelRepresentation", 0)) else 0
        if ((rest != 0) & (rest != signs)).any():
            raise UnreadableImage(
                f"{path.name}: pixels have more than the {bits} bits that the header states; fetch it again"
            )
    return values


def _within(values: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Decoded grey values, if they are what Bits Stored can hold. Raises Contradiction."""
    low, high = _extremes(dataset)
    grey = str(dataset.PhotometricInterpretation).startswith("MONOCHROME")
    if grey and values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise Contradiction(
            f"the compressed picture holds values from {values.min()} to {values.max()}, the header says {low} to "
            f"{high}"
        )
    return values


def _padding(path: Path, dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where stored values are Pixel Padding Value, or between it and Pixel Padding Range Limit (PS3.3 C.7.5.1.1.2)."""
    kind = {"f4": "FloatPixelPadding", "f8": "DoubleFloatPixelPadding"}.get(stored.dtype.str[1:], "PixelPadding")
    value, limit = _number(dataset.get(f"{kind}Value")), _number(dataset.get(f"{kind}RangeLimit"))
    if value is None:
        return None
    ends = [value, value if limit is None else limit]
    if kind == "PixelPadding":  # written as unsigned where the pixels are signed, or the other way
        ends = [_wrapped(each, dataset) for each in ends]
    padding = (stored >= min(ends)) & (stored <= max(ends))
    return padding if padding.any() else None


def refuse_all_padding(path: Path, padding: NDArray[np.bool_] | None) -> None:
    """Of an image or a whole volume: slices at its edges may be nothing but padding. Raises UnreadableImage."""
    if padding is not None and padding.all():
        raise UnreadableImage(f"{path.name}: all of it is padding (Pixel Padding Value); there is no image in it")


def _wrapped(value: float, dataset: Any) -> float:
    bits, (low, high) = int(dataset.BitsAllocated), _extremes(dataset)
    return next((each for each in (value, value - 2**bits, value + 2**bits) if low <= each <= high), value)


def _number(value: Any) -> float | None:
    """Of an element that may be empty."""
    return None if value is None or str(value).strip() == "" else float(value)


def _modality(path: Path, dataset: Any, frame: int, stored: NDArray[Any]) -> NDArray[np.float64]:
    """Stored values → the modality's own (e.g. Hounsfield units)."""
    from pydicom.pixels import apply_modality_lut  # type: ignore[attr-defined]

    group = functional_group(dataset, frame, "PixelValueTransformationSequence")
    if group is None and dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), np.float64)
    slope, intercept = rescale(dataset if group is None else group)
    if not (np.isfinite((slope, intercept)).all() and slope):
        raise UnreadableImage(f"{path.name}: Rescale Slope {slope} and Intercept {intercept}; expected finite, not 0")
    return stored * slope + intercept


def rescale(dataset: Any) -> tuple[float, float]:
    """Rescale Slope and Intercept; 1 and 0 where one is missing or empty."""
    slope, intercept = _number(dataset.get("RescaleSlope")), _number(dataset.get("RescaleIntercept"))
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
