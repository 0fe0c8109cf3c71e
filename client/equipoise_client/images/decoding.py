"""Compressed DICOM pixels, unpacked in a process of its own.

Decoders are C and C++: a damaged stream ends GDCM's process (an exception that nobody catches), and with it would go a
gateway, which would meet the same study again at its next start. Started when first needed, it lives as long as ours.
"""

from __future__ import annotations

import atexit
import io
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codestream import Contradiction, check_rle, is_signed, size_of
from .source import unpacked_limit

SECONDS = 300.0
"""After this time a decoder counts as hung: 500 MB of JPEG 2000 take a tenth of it."""

_NEEDED = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip
"""Nothing of a patient goes over."""

_RLE = "1.2.840.10008.1.2.5"


class DecoderDied(Exception):
    """The process that unpacked these pixels died twice: once alone could have another cause."""


class DecoderHung(DecoderDied):
    """It took too long."""


def unpacked(dataset: Any) -> NDArray[Any]:
    """What `pydicom.pixels.pixel_array` makes of compressed pixels. Raises DecoderDied, Contradiction, ValueError."""
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset

    _check_codestreams(dataset)
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    for name in _NEEDED:
        if name in dataset:
            bare.add(dataset[name])
    file = io.BytesIO()
    file.write(bytes(128) + b"DICM")
    dcmwrite(file, bare, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return _decoder().ask(file.getvalue())


def _check_codestreams(dataset: Any) -> None:
    """Raises ValueError where what is compressed is not of the size that the header states."""
    from pydicom.encaps import generate_frames

    frames, found = int(dataset.get("NumberOfFrames", 1) or 1), 0
    table = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    expected = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    given = generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=table if all(table) else None)
    for frame in given:
        found += 1
        if dataset.file_meta.TransferSyntaxUID == _RLE:
            check_rle(frame, *expected[:2], expected[2] * ((int(dataset.BitsAllocated) + 7) // 8))
            continue
        stated = size_of(frame)
        if stated is not None and stated != expected:
            raise Contradiction(
                f"the compressed picture has rows, columns and samples {list(stated)}, the header says {list(expected)}"
            )
        if is_signed(frame) and not int(dataset.get("PixelRepresentation", 0)):
            raise Contradiction("the compressed picture holds signed values, the header says unsigned")
    if found != frames:
        raise Contradiction(f"{found} compressed pictures are there, the header says {frames} frames")


@cache
def _decoder() -> Decoder:
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def _memory() -> int:
    """Bytes that the process may take: libraries, what is unpacked, and copies of it on the way."""
    return (2 << 30) + 6 * unpacked_limit()


class Decoder:
    """The process; started when it is first needed, and again after it has died."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, content: bytes) -> NDArray[Any]:
        """The array of one DICOM file. Raises DecoderDied; ValueError with the name of what the decoder raised."""
        with self._turn:
            try:
                answer = self._exchange(self._running(), content)
            except DecoderHung:
                raise
            except DecoderDied:
                answer = self._exchange(self._running(), content)
        if answer[:1] != b"\0":
            raise ValueError(answer[1:].decode())
        return np.asarray(np.load(io.BytesIO(answer[1:]), allow_pickle=False))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # Isolated: modules of its folder or of the current one must not pass for the library's. That leaves out a
            # user's own packages (`pip install --user`) as well, so the path to them is passed.
            paths = [path for path in sys.path if path]
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("unpacker.py")), str(_memory()), *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders print what they stumble over
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], content: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        hung = threading.Timer(SECONDS, end)
        hung.daemon = True
        hung.start()
        try:
            process.stdin.write(len(content).to_bytes(8, "little") + content)
            process.stdin.flush()
            length = process.stdout.read(8)
            answer = process.stdout.read(int.from_bytes(length, "little"))
            if len(length) < 8 or len(answer) < int.from_bytes(length, "little"):
                raise DecoderDied
            return answer
        except (OSError, DecoderDied):
            self.close()
            if late.is_set():
                raise DecoderHung(f"the pixels were not unpacked within {SECONDS:g} s") from None
            raise DecoderDied("the pixels ended the decoder") from None
        finally:
            hung.cancel()
