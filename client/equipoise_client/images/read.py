"""`read_image`: looks at a file's first bytes, and hands it to the reader of that format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType

from ..errors import UnreadableImage
from . import arrays, dicom, nifti, raster
from .source import SourceImage, finished

_NIFTI_MAGIC = 344  # offset of "n+1\0" in a NIfTI-1 header, which is 348 bytes long
_NIFTI2_MAGIC = 4


@dataclass(frozen=True)
class Format:
    """A file format: how its files are called, how they begin, who reads them."""

    name: str
    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]
    read: Callable[[Path], SourceImage]


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _nifti(head: bytes) -> bool:
    return head[_NIFTI_MAGIC : _NIFTI_MAGIC + 4] == b"n+1\0" or head[_NIFTI2_MAGIC : _NIFTI2_MAGIC + 4] == b"n+2\0"


FORMATS = (
    # First: the 128 bytes before DICOM's marker are free for others, and a slide scanner puts a TIFF header there.
    Format("DICOM", (".dcm", ".dicom", ".ima"), lambda head: head[128:132] == b"DICM", dicom.read),
    Format("PNG", (".png",), _starts(b"\x89PNG\r\n\x1a\n"), raster.read),
    Format("JPEG", (".jpg", ".jpeg"), _starts(b"\xff\xd8\xff"), raster.read),
    Format("TIFF", (".tif", ".tiff"), _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), raster.read),
    Format("NumPy array", (".npy",), _starts(b"\x93NUMPY"), arrays.read_npy),
    Format("NumPy archive", (".npz",), _starts(b"PK\x03\x04"), arrays.read_npz),
    Format("NIfTI", (".nii", ".nii.gz"), _nifti, nifti.read),
)
_BY_SUFFIX: Mapping[str, Format] = MappingProxyType({end: each for each in FORMATS for end in each.suffixes})
ENDINGS = tuple(_BY_SUFFIX)
"""Of names of files that are read, in lower case."""


def read_image(path: str | PathLike[str]) -> SourceImage:
    """Reads a PNG, JPEG, TIFF, .npy, .npz, NIfTI or DICOM file.

    The content decides, not the name; but a name that claims another format is an error, since somebody mixed up files.
    Raises UnreadableImage with the file's name, never with anything that stands inside the file.
    """
    file = Path(path)
    if file.name.startswith("._"):
        raise UnreadableImage(f"{file.name}: an AppleDouble file, which macOS writes beside the real one; name that")
    head = _head(file)
    found = next((each for each in FORMATS if each.begins(head)), None)
    claimed = next((_BY_SUFFIX[end] for end in sorted(_BY_SUFFIX) if file.name.lower().endswith(end)), None)
    if found is None:
        what = "looks like text" if _is_text(head) else "is in no format that is known here"
        expected = claimed.name if claimed else ", ".join(each.name for each in FORMATS)
        raise UnreadableImage(f"{file.name}: the content {what}; expected {expected}")
    if claimed is not None and claimed is not found:
        raise UnreadableImage(
            f"{file.name}: named as {claimed.name}, but the content is {found.name}; rename it if it is the right file"
        )
    return finished(file, found.read(file))


def is_picture(path: Path) -> bool:
    """Whether a file is named as an image of any kind but DICOM, whose files belong together."""
    found = next((each for end, each in _BY_SUFFIX.items() if path.name.lower().endswith(end)), None)
    return found is not None and found.name != "DICOM"


def _head(file: Path) -> bytes:
    """The first bytes, unpacked where the file is gzipped."""
    if file.is_dir():
        raise UnreadableImage(f"{file.name} is a folder; name the files in it")
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
            if head.startswith(b"\x1f\x8b"):
                stream.seek(0)
                head = gzip.GzipFile(fileobj=stream).read(512)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{file}: there is no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableImage(f"{file.name} cannot be read: {error}") from error
    if not head:
        raise UnreadableImage(f"{file.name} is empty (0 bytes)")
    return head


def _is_text(head: bytes) -> bool:
    try:
        return head.decode(errors="strict").isprintable() or head.decode().split() != []
    except UnicodeDecodeError:
        return False
