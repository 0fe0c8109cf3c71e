"""The one way in, whichever receiver an object came through."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import threading
import zlib
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

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


class Closed(OutOfRoom):
    """The gateway is being stopped: nothing more is taken, as where there is no room."""


class Intake:
    """Checks one object, writes it to the spool, then notes it in the store.

    Images are taken. Anything else (segmentations, maps, reports, presentation states: our own results among them, when
    an archive sends them back) is none of an analysis's input: it is acknowledged and not kept, so that a result never
    sets off another analysis. What cannot be read as an image is set aside with a reason, and its series is incomplete
    until a good copy comes; the good ones go on. An image is known by its UID and its content: the same UID with other
    content takes the place of the one before, and the study is analysed again.

    Args:
        largest: bytes of an object, unpacked; more is set aside, so that memory is bounded.
        passed: called at each step's end with its name; the place where tests kill the process.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        log: Log,
        metrics: Metrics,
        passed: Callable[[str], None],
        largest: int = 1 << 30,
    ) -> None:
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._largest = largest
        self._turn = threading.Lock()  # the same study may come from several senders at once
        self._ignored: deque[str] = deque(maxlen=100_000)  # SOP Instance UIDs of what was no image
        self._open = True

    def close(self) -> None:
        """Ends the object that is being taken; what comes later is refused, so that it is sent again."""
        with self._turn:
            self._open = False

    def check_open(self) -> None:
        """For sources, before they ask for more. Raises Closed."""
        if not self._open:
            raise Closed("the gateway is being stopped")

    def take(self, content: bytes, quiet: float, source: str, study: str = "", instance: str = "") -> Outcome:
        """One DICOM file. Raises OutOfRoom: then nothing of it was kept, and its sender has to send it again.

        Args:
            study, instance: Study and SOP Instance UID after all that its source knows, for an object that states none.
        """
        names = _names(content, self._largest, study, instance)
        try:
            outcome = self._take(content, quiet, source, names)
        except Exception:
            self._metrics.instances.labels("refused").inc()
            self._note_refusal(names, quiet)
            raise
        self._metrics.instances.labels(outcome.value).inc()
        return outcome

    def ignored(self, instances: Collection[str]) -> set[str]:
        """Those of them that came of late and are no images."""
        return set(self._ignored.copy()).intersection(instances)

    def cut_off(self, beginning: pydicom.Dataset, quiet: float, kind: str, study: str, instance: str) -> None:
        """An object was not let come whole; its series is incomplete where it was an image.

        Args:
            beginning: what can be read of it.
            kind, study, instance: as its source says: SOP Class UID, and what `take` is told.
        """
        if _is_image(UID(kind)):
            self._note_refusal(_stated(beginning, study, instance), quiet)

    def _note_refusal(self, names: _Names, quiet: float) -> None:
        """Until it is sent again, its study is incomplete: also where nothing else of it is here yet."""
        with suppress(OutOfRoom):
            if names.study and names.instance:
                self._store.studies.damaged(secrets.token_hex(8), names.study, names.series, names.instance, quiet)

    def _take(self, content: bytes, quiet: float, source: str, names: _Names) -> Outcome:
        digest = ""
        try:
            dataset = parsed(content, self._largest)
            kind = UID(str(dataset.SOPClassUID))
            if not _is_image(kind):
                self._ignored.append(names.instance)
                return Outcome.IGNORED
            # Of a class that nobody knows it may be an image with one wrong digit: not to be acknowledged and lost.
            reason = _fault(dataset) if kind.name != kind else "its SOPClassUID is not known"
            digest = digest_of(content)
        except TooLarge:
            reason = f"it is larger than largest_megabytes allows, {self._largest / 1e6:g}"
        except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
            reason = f"it cannot be read as DICOM ({type(error).__name__})"
        self._spool.check_room(len(content))
        with self._turn:
            self.check_open()
            if reason:
                return self._put_aside(content, reason, source, names, quiet)
            key = self._store.studies.key_of(names.study) or secrets.token_hex(8)
            before = self._store.studies.known(names.study).get(names.instance)
            if before == digest or (before == "" and self._spooled(key, names.instance) in ("", digest)):
                return Outcome.KNOWN
            file = self._spool.instance(key, names.instance, digest)
            self._spool.write(file, content)
            self._passed("intake.written")
            try:
                self._store.studies.take(key, names.study, names.series, names.instance, quiet, digest)
            except OutOfRoom:
                self._spool.remove(file)
                raise
            self._passed("intake.recorded")
            if before is not None:
                self._spool.remove(self._spool.instance(key, names.instance, before))
                self._log.warning("image replaced", study=key, reason="it came again with other content", source=source)
        return Outcome.TAKEN

    def _spooled(self, key: str, uid: str) -> str:
        """Digest of an image that was taken before digests were noted; "" where it is one of our results."""
        file = self._spool.instance(key, uid)
        return digest_of(file.read_bytes()) if file.exists() else ""

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

    def _put_aside(self, content: bytes, reason: str, source: str, names: _Names, quiet: float) -> Outcome:
        key = hashlib.sha256(content).hexdigest()[:16]  # the same object again is the same file
        self._spool.write(self._spool.aside(key), content)
        self._store.studies.put_aside(key, reason)
        study = None
        if names.study:
            study = self._store.studies.key_of(names.study) or secrets.token_hex(8)
            instance = names.instance or f"aside {key}"
            self._store.studies.damaged(study, names.study, names.series, instance, quiet)
        self._log.warning("object set aside", object=key, reason=reason, source=source, study=study)
        return Outcome.ASIDE


@dataclass(frozen=True)
class _Names:
    """UIDs that an object states, "" where it states no valid one."""

    study: str
    series: str = ""
    instance: str = ""


def _is_image(kind: UID) -> bool:
    """Also of a class that nobody knows, which may be one."""
    return "Image Storage" in kind.name or kind.name == kind


def study_of(content: bytes, largest: int) -> str:
    """Study Instance UID that an object states; "" where it states no valid one."""
    return _names(content, largest, "", "").study


def _names(content: bytes, largest: int, study: str, instance: str) -> _Names:
    """What can be read of a malformed object; `study` and `instance` where it does not say."""
    try:
        dataset = parsed(content, largest, header_only=True)
    except Exception:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
        dataset = pydicom.Dataset()
    return _stated(dataset, study, instance)


def _stated(dataset: pydicom.Dataset, study: str, instance: str) -> _Names:
    names = []
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        try:
            value = str(dataset.get(name, ""))
        except Exception:  # noqa: BLE001 (likewise)
            value = ""
        names.append(value if _is_uid(value) else "")
    return _Names(names[0] or study, names[1], names[2] or (instance if _is_uid(instance) else ""))


def _is_uid(value: str) -> bool:
    return bool(_UID.fullmatch(value)) and len(value) <= _LONGEST


class TooLarge(Exception):
    """An object is larger, unpacked, than is taken."""


def parsed(content: bytes, largest: int, header_only: bool = False) -> Any:
    """A DICOM file; a deflated data set is not unpacked beyond `largest` bytes. Raises TooLarge."""
    if len(content) > largest:
        raise TooLarge
    start, meta = _meta(content)
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=header_only)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(content[start:], largest)
    if inflater.unconsumed_tail:
        raise TooLarge
    dataset = read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = meta
    return dataset


def digest_of(content: bytes) -> str:
    """Of transfer syntax and data set: how it came, and so its file meta information, does not matter."""
    start, meta = _meta(content)
    digest = hashlib.sha256(str(meta.TransferSyntaxUID).encode() + b"\0")
    digest.update(memoryview(content)[start:])  # which copies nothing
    return digest.hexdigest()


def _meta(content: bytes) -> tuple[int, FileMetaDataset]:
    """Where the data set begins, and what comes before it."""
    file = io.BytesIO(content)
    file.seek(len(_PREAMBLE) + 128)
    if content[128 : file.tell()] != _PREAMBLE:
        raise ValueError("no DICOM file")
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != _FILE_META)
    return file.tell(), FileMetaDataset(meta)


_PREAMBLE, _FILE_META = b"DICM", 2


def _fault(dataset: Any) -> str:
    """Why the image cannot be used, or "" where nothing is wrong as far as can be seen without decoding it."""
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = str(dataset.get(name, ""))
        if not _is_uid(value):
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
