"""Run as a process of its own by `decoding`: DICOM files on standard input, their unpacked pixels on standard output.

Each message is its length in eight bytes and that many bytes; what comes back begins with `\\0` (an array as NumPy
saves it) or with `\\1` (the name of what was raised). Arguments: where to look for packages beside one's own.
"""

from __future__ import annotations

import io
import signal
import sys
import warnings

for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service at once: its parent is not done yet
    signal.signal(number, signal.SIG_IGN)

sys.path.extend(path for path in sys.argv[1:] if path not in sys.path)

import numpy as np  # noqa: E402
import pydicom  # noqa: E402
from pydicom.pixels import pixel_array  # type: ignore[attr-defined]  # noqa: E402


def main() -> None:
    warnings.simplefilter("ignore")
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    while length := given.read(8):
        content = given.read(int.from_bytes(length, "little"))
        answer = io.BytesIO()
        try:
            array = np.asarray(pixel_array(pydicom.dcmread(io.BytesIO(content))))
            answer.write(b"\0")
            np.save(answer, array, allow_pickle=False)
        except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
            answer = io.BytesIO(b"\1" + type(error).__name__.encode())
        answers.write(len(answer.getvalue()).to_bytes(8, "little") + answer.getvalue())
        answers.flush()


if __name__ == "__main__":
    main()
