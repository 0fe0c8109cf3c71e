"""The one way in, whichever receiver an object came through."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import pydicom
from pydicom.uid import UID

from .observe import Log, Metrics
from .spool import OutOfRoom, Spool
from .store import Store, Study

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LONGEST = 64  # characters of a UID, DICOM PS3.5 section 9.1


class Outcome(str, Enum):
    """What became of an object."""

    TAKEN = "taken"
    KNOWN = "known"
    IGNORED = "ignored"
    ASIDE = "aside"


class Intake:
    """Checks one object, writes it to the spool, then notes it in the store.

    Images are taken. Anything else (segmentations, maps, reports, presentation states: our own results among them, when
    an archive sends them back) is none of an analysis's input: it is acknowledged and not kept, so that a result never
    sets off another analysis. What cannot be read as an image is set aside with a reason; the good ones go on.

    Args:
        passed: called at each step's end with its name; the place where tests kill the process.
    """

    def __init__(self, spool: Spool, store: Store, log: Log, metrics: Metrics, passed: Callable[[str], None]) -> None:
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._turn = threading.Lock()  # the same study may come from several senders at once
        self._open = True

    def close(self) -> None:
        """Ends the object that is being taken; what comes later is refused, so that it is sent again."""
        with self._turn:
            self._open = False

    def take(self, content: bytes, quiet: float, source: str) -> Outcome:
        """One DICOM file. Raises OutOfRoom: then nothing of it was kept, and its sender has to send it again."""
        try:
            outcome = self._take(content, quiet, source)
        except OutOfRoom:
            self._metrics.instances.labels("refused").inc()
            raise
        self._metrics.instances.labels(outcome.value).inc()
        return outcome

    def _take(self, content: bytes, quiet: float, source: str) -> Outcome:
        try:
            dataset = pydicom.dcmread(io.BytesIO(content), force=False)
            kind = UID(str(dataset.SOPClassUID))
            if "Image Storage" not in kind.name and kind.name != kind:
                return Outcome.IGNORED
            study_uid, uid = str(dataset.StudyInstanceUID), str(dataset.SOPInstanceUID)
            series = str(dataset.get("SeriesInstanceUID", ""))
            # Of a class that nobody knows it may be an image with one wrong digit: not to be acknowledged and lost.
            reason = _fault(dataset) if kind.name != kind else "its SOPClassUID is not known"
        except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
            study_uid = series = uid = ""
            reason = f"it cannot be read as DICOM ({type(error).__name__})"
        self._spool.check_room(len(content))
        with self._turn:
            if not self._open:
                raise OutOfRoom("the gateway is being stopped")
            if reason:
                return self._put_aside(content, reason, source)
            if uid in self._store.studies.known(study_uid):
                return Outcome.KNOWN
            key = self._store.studies.key_of(study_uid) or secrets.token_hex(8)
            self._spool.write(self._spool.instance(key, uid), content)
            self._passed("intake.written")
            try:
                self._store.studies.take(key, study_uid, series, uid, quiet)
            except OutOfRoom:
                self._spool.remove(self._spool.instance(key, uid))
                raise
            self._passed("intake.recorded")
        return Outcome.TAKEN

    def forget(self, study: Study) -> bool:
        """Deletes the images of a study that is done with; False where new ones have come."""
        with self._turn:
            if not self._store.studies.forget_images(study):
                return False
            self._spool.remove(self._spool.incoming(study.key))
        return True

    def forget_aside(self, before: float) -> None:
        """Deletes malformed objects that came before that time, seconds since 1970."""
        with self._turn:
            for key in self._store.studies.forget_aside(before):
                self._spool.remove(self._spool.aside(key))

    def _put_aside(self, content: bytes, reason: str, source: str) -> Outcome:
        key = hashlib.sha256(content).hexdigest()[:16]  # the same object again is the same file
        self._spool.write(self._spool.aside(key), content)
        self._store.studies.put_aside(key, reason)
        self._log.warning("object set aside", object=key, reason=reason, source=source)
        return Outcome.ASIDE


def _fault(dataset: Any) -> str:
    """Why the image cannot be used, or "" where nothing is wrong as far as can be seen without decoding it."""
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = str(dataset.get(name, ""))
        if not _UID.fullmatch(value) or len(value) > _LONGEST:
            return f"its {name} is no UID"
    if "PixelData" not in dataset:
        return "an image without pixels, or cut off before them"
    present = len(dataset.PixelData)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return "" if present else "an image without pixels"
    frames, samples = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    bits = int(dataset.Rows) * int(dataset.Columns) * frames * samples * int(dataset.BitsAllocated)
    if bits <= 0:
        return "its size is not positive"
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        bits = bits * 2 // 3
    expected = (bits + 7) // 8
    return f"{present} bytes of pixels where {expected} are expected" if present < expected else ""
