"""What a compressed picture says of itself: its size; and whether a JPEG was read without complaint.

References: ITU-T T.81 B.2 (JPEG), T.87 C.2.2 (JPEG-LS), T.800 A.5.1 (JPEG 2000); DICOM PS3.5 annex G (RLE).
"""

from __future__ import annotations

from itertools import pairwise

from ..extras import needs

_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SIZ = b"\xff\x4f\xff\x51"


class Contradiction(ValueError):
    """What is compressed is not what the header says; the message says what, in numbers."""


def size_of(picture: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples per pixel) of a JPEG, JPEG-LS or JPEG 2000 picture; None where it does not say."""
    if picture[:2] == b"\xff\xd8":
        return _jpeg(picture)
    start = picture.find(_SIZ, 0, 4096)  # a JP2 file has boxes before it
    if start < 0 or len(picture) < start + 42:
        return None
    number = [int.from_bytes(picture[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)]
    return number[1] - number[3], number[0] - number[2], int.from_bytes(picture[start + 40 : start + 42], "big")


def is_signed(picture: bytes) -> bool:
    """Whether a JPEG 2000 picture holds signed values (the first component's Ssiz)."""
    start = picture.find(_SIZ, 0, 4096) if picture[:2] != b"\xff\xd8" else -1
    return start >= 0 and len(picture) > start + 42 and bool(picture[start + 42] & 0x80)


def _jpeg(picture: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 9 < len(picture) and picture[at] == 0xFF:
        marker = picture[at + 1]
        if marker == 0xFF or marker in _ALONE:  # fill bytes, and markers that stand alone
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(picture[at + k : at + k + 2], "big") for k in (5, 7))
            return (rows, columns, picture[at + 9]) if rows else None  # 0: a later marker says it
        at += 2 + int.from_bytes(picture[at + 2 : at + 4], "big")
    return None


def check_rle(frame: bytes, rows: int, columns: int, segments: int) -> None:
    """Raises Contradiction where a frame of RLE Lossless is not one of that size.

    Each row is encoded by itself: where a run goes on beyond its end, rows have another length than is said.

    Args:
        segments: bytes of a pixel; each has a segment of its own.
    """
    words = [int.from_bytes(frame[at : at + 4], "little") for at in range(0, min(64, len(frame)), 4)]
    ends = [*words[1 : words[0] + 1], len(frame)] if words else []
    if not words or words[0] != segments or ends[0] < 64 or ends != sorted(set(ends)):
        raise Contradiction(
            f"the header of the RLE frame states {words[0] if words else 'no'} segments, expected {segments} that "
            "follow each other"
        )
    for start, end in pairwise(ends):
        size, crossing = _runs(frame[start:end], rows * columns, columns)
        if size != rows * columns:
            raise Contradiction(
                f"a segment of the RLE frame holds {size} bytes, rows and columns make {rows * columns}"
            )
        if crossing:
            raise Contradiction(f"runs of the RLE frame go on beyond the end of a row of {columns} pixels")


def _runs(segment: bytes, enough: int, columns: int) -> tuple[int, bool]:
    """Bytes that a segment unpacks to, and whether a run goes beyond a row. Zeros may follow what is enough."""
    at, size, crossing = 0, 0, False
    while at < len(segment):
        code = segment[at]
        if size == enough and not any(segment[at:]):
            break
        if code == 128:
            at += 1
            continue
        length = 257 - code if code > 128 else code + 1
        at += 2 if code > 128 else 1 + length
        if at > len(segment):
            break
        crossing = crossing or size % columns + length > columns
        size += length
    return size, crossing


def check_jpeg(picture: bytes) -> None:
    """Raises ValueError where libjpeg warns that it filled in for data which it could not read."""
    with needs("client", "reading JPEG files"):
        import simplejpeg
    colours = simplejpeg.decode_jpeg_header(picture, strict=True)[2]
    if colours in ("Gray", "YCbCr", "RGB"):
        simplejpeg.decode_jpeg(picture, colorspace="Gray" if colours == "Gray" else "RGB", strict=True)
