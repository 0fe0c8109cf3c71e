"""Run as a process of its own by `decoding`: DICOM files on standard input, their unpacked pixels on standard output.

Each message is its length in eight bytes and that many bytes; what comes back begins with `\\0` (an array as NumPy
saves it) or with `\\1` (the name of what was raised, or the decoder's complaint). Arguments: the most memory
that this process may take, in bytes, and where to look for packages beside one's own.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import tempfile
import warnings

for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service at once: its parent is not done yet
    signal.signal(number, signal.SIG_IGN)

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.path.extend(path for path in sys.argv[2:] if path not in sys.path)

import numpy as np  # noqa: E402
import pydicom  # noqa: E402
from pydicom.pixels import pixel_array  # type: ignore[attr-defined]  # noqa: E402

_COMPLAINTS = (b"corrupt jpeg", b"premature end", b"bogus", b"extraneous bytes", b"truncated")
"""Words of libjpeg and OpenJPEG for data that they could not read and replaced by something."""

_PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
"""Transfer syntax → who unpacks it; GDCM the others. One each: where it refuses, no more lenient one is tried."""

_EXTENDED = "1.2.840.10008.1.2.4.51"


def array_of(content: bytes) -> np.ndarray:
    """The pixels of one DICOM file. Raises ValueError where the decoder complained."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    syntax = dataset.file_meta.TransferSyntaxUID
    os.ftruncate(2, 0)
    if syntax == _EXTENDED and int(dataset.BitsStored) > 8 and int(dataset.SamplesPerPixel) == 1:
        array = _twelve_bits(content, dataset)
    else:
        array = np.asarray(pixel_array(dataset, decoding_plugin=_PLUGINS.get(syntax, "gdcm")))
    os.lseek(2, 0, os.SEEK_SET)
    said = os.read(2, 1 << 16).lower()
    if any(words in said for words in _COMPLAINTS):
        raise ValueError("the decoder met corrupt data")
    return array


def _twelve_bits(content: bytes, dataset: pydicom.Dataset) -> np.ndarray:
    """JPEG Extended: pydicom does not let GDCM decode 12 bits, which GDCM as a whole file reads well."""
    import gdcm

    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        reader = gdcm.ImageReader()
        reader.SetFileName(file.name)
        if not reader.Read():
            raise ValueError("GDCM does not read it")
        image = reader.GetImage()
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    signed = image.GetPixelFormat().GetPixelRepresentation()
    return np.frombuffer(buffer, np.int16 if signed else np.uint16).reshape(frames, dataset.Rows, dataset.Columns)


def _told(error: Exception) -> str:
    """Our own words; a library's may quote the file."""
    return str(error) if type(error) is ValueError and str(error).startswith(("the decoder", "GDCM")) else ""


def main() -> None:
    warnings.simplefilter("ignore")
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    with tempfile.TemporaryFile() as said:  # C libraries say there what they stumbled over
        os.dup2(said.fileno(), 2)
    while length := given.read(8):
        content = given.read(int.from_bytes(length, "little"))
        answer = io.BytesIO()
        try:
            array = array_of(content)
            answer.write(b"\0")
            np.save(answer, array, allow_pickle=False)
        except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
            answer = io.BytesIO(b"\1" + (_told(error) or type(error).__name__).encode())
        answers.write(len(answer.getvalue()).to_bytes(8, "little") + answer.getvalue())
        answers.flush()


if __name__ == "__main__":
    main()
