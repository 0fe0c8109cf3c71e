"""PNG, JPEG and TIFF through Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ..errors import UnreadableImage
from ..extras import needs
from .source import Kind, SourceImage, check_size


def read(path: Path) -> SourceImage:
    """Grey `[1, rows, columns]` with all its bits, or RGB `[3, rows, columns]`, 0..255; transparency is dropped.

    Orientation tags are applied. Resolution tags are not taken for millimetres: they say how to print, not what was
    scanned.
    """
    with needs("client", "reading PNG, JPEG and TIFF files"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pages = getattr(image, "n_frames", 1)
                check_size(path, (image.height, image.width, len(image.getbands())))
                if pages > 1:
                    raise UnreadableImage(f"{path.name}: {pages} pages; expected one image per file")
                image.load()
                upright = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{path.name}: unpacks to more pixels than is safe ({error}); crop it") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{path.name}: begins as an image, but its header is damaged") from error
    except (UnreadableImage, MemoryError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG chunk
        raise UnreadableImage(f"{path.name}: damaged or cut off ({error}); export it again") from error
    except Exception as error:  # what else Pillow's plugins stumble over in a damaged file shares no base
        raise UnreadableImage(f"{path.name}: damaged ({type(error).__name__}); export it again") from error
    if upright.mode == "1":
        upright = upright.convert("L")
    elif upright.mode in ("LA", "La"):
        upright = upright.getchannel(0)
    elif upright.mode != "L" and not upright.mode.startswith(("I", "F")):
        upright = upright.convert("RGB")
    values = np.asarray(upright, dtype=np.float32)
    pixels = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return SourceImage(np.ascontiguousarray(pixels), Kind.RASTER)
