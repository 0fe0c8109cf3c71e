"""PNG, JPEG and TIFF through Pillow."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnreadableImage
from ..extras import needs
from .codestream import check_jpeg
from .source import Kind, SourceImage, check_size, check_unpacked

_PHOTOMETRIC, _BITS, _FORMAT = 262, 258, 339  # TIFF 6.0 tags
_UNLISTED = (
    (b"II", 0, 32, "I;32"), (b"MM", 0, 32, "I;32B"), (b"MM", 1, 32, "I;32B"), (b"MM", 0, 16, "I;16B"),
)  # fmt: skip
"""Grey TIFFs (byte order, photometric interpretation, bits) that Pillow can unpack and does not list."""

_BYTES = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "I;16": 2, "I;16B": 2}
"""Of one pixel in Pillow's memory, by its mode; 4 else."""


TRANSPARENT = "parts of it are transparent: what the picture shows there depends on what lies behind it"


def read(path: Path) -> SourceImage:
    """Grey `[1, rows, columns]` with all its bits, or RGB `[3, rows, columns]`, 0..255.

    Transparency is dropped; where it hides anything, that is a doubt.

    Orientation tags are applied. Resolution tags are not taken for millimetres: they say how to print, not what was
    scanned.
    """
    with needs("client", "reading PNG, JPEG and TIFF files"):
        from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
    for order, photometric, bits, mode in _UNLISTED:
        TiffImagePlugin.OPEN_INFO.setdefault(
            (order, photometric, (1,), 1, (bits,), ()), ("I" if bits == 32 else mode, mode)
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pages = getattr(image, "n_frames", 1)
                check_size(path, (image.height, image.width, len(image.getbands())))
                check_unpacked(path.name, image.height * image.width * _BYTES.get(image.mode, 4))
                if pages > 1:
                    raise UnreadableImage(f"{path.name}: {pages} pages; expected one image per file")
                if image.format in ("JPEG", "MPO"):
                    check_jpeg(path.read_bytes())
                if image.format == "PNG":
                    _check_png(path)
                    _refuse_deep_colour(path)
                tags = dict(getattr(image, "tag_v2", {}))
                image.load()
                upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{path.name}: unpacks to more pixels than is safe ({error}); crop it") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{path.name}: begins as an image, but its header is damaged or of a kind not read here: save it as PNG"
        ) from error
    except (UnreadableImage, MemoryError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG chunk
        raise UnreadableImage(f"{path.name}: damaged or cut off ({error}); export it again") from error
    except Exception as error:  # what else Pillow's plugins stumble over in a damaged file shares no base
        raise UnreadableImage(f"{path.name}: damaged ({type(error).__name__}); export it again") from error
    doubts = (TRANSPARENT,) if _hides(upright) else ()
    if upright.mode == "1":
        upright = upright.convert("L")
    elif upright.mode in ("LA", "La"):
        upright = upright.getchannel(0)
    elif upright.mode != "L" and not upright.mode.startswith(("I", "F")):
        upright = upright.convert("RGB")
    values = _grey(np.asarray(upright), tags)
    pixels = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return SourceImage(np.ascontiguousarray(pixels), Kind.RASTER, doubts=doubts)


def indices(path: Path) -> NDArray[np.float32] | None:
    """Of a picture with a palette, which of its entries each pixel has, `[1, rows, columns]`; None where it has none.

    Labels are often kept so (Pascal VOC): the entry is the class, and its colour is for the eye. To be asked of files
    that `read` has read.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.mode != "P":
            return None
        return np.asarray(ImageOps.exif_transpose(image), np.float32)[None]


def _hides(image: Any) -> bool:
    """Whether any of its pixels is transparent, by a channel or by a colour that stands for it."""
    if not image.has_transparency_data:
        return False
    if image.mode.startswith("I"):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return int(image.convert("RGBA").getchannel("A").getextrema()[0]) < 255


def _refuse_deep_colour(path: Path) -> None:
    """Pillow reads a PNG of 16 bits with colours or alpha as its upper 8 bits."""
    with path.open("rb") as file:
        header = file.read(26)
    if header[24] == 16 and header[25] != 0:
        raise UnreadableImage(f"{path.name}: a PNG of 16 bits with colours or alpha; save it as grey, or with 8 bits")


def _grey(stored: NDArray[Any], tags: dict[int, Any]) -> NDArray[np.float32]:
    """As float32; of a TIFF also what Pillow leaves out: unsigned 32 bits, and white-is-zero beyond 8 bits."""
    bits = (tags.get(_BITS) or (8,))[0]
    form = (tags.get(_FORMAT) or (1,))[0]
    if stored.dtype == np.int32 and bits == 32 and form == 1:
        stored = stored.view(np.uint32)
    if tags.get(_PHOTOMETRIC) == 0 and bits > 8:
        if form != 1:
            raise ValueError("white is zero in signed or floating-point values")
        stored = (1 << bits) - 1 - stored.astype(np.int64)
    return stored.astype(np.float32)


def _check_png(path: Path) -> None:
    """Raises ValueError where a chunk's checksum is wrong: Pillow does not look at those of the pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while head := file.read(8):
            length, content = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
            while length > 0:
                part = file.read(min(length, 1 << 20))
                if not part:
                    raise ValueError("cut off")
                content, length = zlib.crc32(part, content), length - len(part)
            if int.from_bytes(file.read(4), "big") != content:
                raise ValueError("a checksum is wrong")
            if head[4:] == b"IEND":
                return
    raise ValueError("cut off")
