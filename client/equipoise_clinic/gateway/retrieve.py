"""Studies from a PACS without DICOMweb: asked by C-FIND, sent by C-MOVE to the gateway's own receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from time import monotonic
from typing import Any

from equipoise_client.errors import EquipoiseError
from pydicom.uid import UID

from ..dicom.archive import Access
from ..dicom.query import Pacs
from .intake import Intake
from .observe import Log
from .receivers import AGAIN, NO_IMAGES, SourceAway
from .settings import RetrieveSource
from .spool import OutOfRoom
from .store import Store


class Retrieve:
    """Asks for studies that a query finds, and has series moved of which images are not here.

    Images come through the receiver, as any that are sent. A series is incomplete until all that the PACS lists is
    here, whatever it says that it has sent. What it cannot send, and what was set aside, is asked for again at times.

    Args:
        to: AE title of the receiver, which the PACS has to know.
    """

    name = "retrieve"

    def __init__(self, settings: RetrieveSource, to: str, intake: Intake, store: Store, log: Log) -> None:
        self.every = settings.every_seconds
        self._settings, self._to, self._intake, self._store, self._log = settings, to, intake, store, log
        access = Access(
            root=settings.tls_root,
            certificate=settings.tls_cert,
            key=settings.tls_key,
            timeout=settings.timeout_seconds,
        )
        self._pacs = Pacs(settings.host, settings.port, settings.aet, settings.caller, access)
        self._asked: dict[str, _Asked] = {}  # by series

    def poll(self) -> int:
        """Has new images moved; returns how many came. Raises SourceAway, OutOfRoom.

        One study or series that the PACS does not give stops no other.
        """
        filters = dict(self._settings.query)
        if self._settings.days >= 0:
            filters["StudyDate"] = f"{date.today() - timedelta(days=self._settings.days):%Y%m%d}-"
        taken, troubles = 0, list[str]()
        with _noted(troubles):
            for study in self._pacs.studies(filters):
                self._intake.check_open()
                with _noted(troubles):
                    for series in self._pacs.series(study):
                        if str(series.get("Modality", "")) not in NO_IMAGES:
                            self._intake.check_open()
                            with _noted(troubles):
                                taken += self._take(study, series)
        if troubles:
            raise SourceAway(troubles[0])
        return taken

    def _take(self, study: str, series: Any) -> int:
        uid = str(series.SeriesInstanceUID)
        stated = int(series.get("NumberOfSeriesRelatedInstances") or 0)
        found = {
            str(each.SOPInstanceUID): str(each.get("SOPClassUID") or "") for each in self._pacs.instances(study, uid)
        }
        images = {each for each, kind in found.items() if not kind or "Image Storage" in UID(kind).name}
        unlisted = max(0, stated - len(found))
        wanted, _ = self._look(study, uid, images, unlisted)
        asked = self._asked.get(uid, _Asked())
        if not wanted:
            return 0
        if wanted == asked.missing and monotonic() < asked.until:
            if asked.elsewhere:
                raise SourceAway(_ELSEWHERE)
            return 0
        moved = self._pacs.move(self._to, study, uid)
        missing, absent = self._look(study, uid, images, unlisted)
        elsewhere = bool(absent) and moved.done and moved.completed >= len(found)
        self._asked[uid] = _Asked(missing, monotonic() + AGAIN, elsewhere)
        if elsewhere:
            key = self._store.studies.key_of(study)
            self._log.warning("images sent elsewhere", study=key, images=len(absent), reason=_ELSEWHERE)
            raise SourceAway(_ELSEWHERE)
        return len(wanted) - len(missing)

    def _look(self, study: str, series: str, images: set[str], unlisted: int) -> tuple[frozenset[str], frozenset[str]]:
        """Images that are not here, and those of them that never came; the series is incomplete by the latter."""
        studies = self._store.studies
        wanted = frozenset(images - studies.known(study).keys() - self._intake.ignored(images))
        absent = wanted - studies.set_aside(study)  # which says by itself that the series is incomplete
        studies.absent(study, series, unlisted + len(absent))
        return wanted, absent


@dataclass(frozen=True)
class _Asked:
    """What a move of a series left.

    Attributes:
        missing: images that are not here, for which it is not moved again before `until`.
        elsewhere: although the PACS says that it has sent all.
    """

    missing: frozenset[str] = frozenset()
    until: float = 0.0
    elsewhere: bool = False


_ELSEWHERE = "the PACS says that it has sent all, and not all came here: check host and port of the AE title there"


@contextmanager
def _noted(troubles: list[str]) -> Iterator[None]:
    try:
        yield
    except OutOfRoom:
        raise
    except EquipoiseError as error:
        troubles.append(str(error))
