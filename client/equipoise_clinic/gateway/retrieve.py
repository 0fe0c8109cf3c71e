"""Studies from a PACS without DICOMweb: asked by C-FIND, sent by C-MOVE to the gateway's own receiver."""

from __future__ import annotations

from datetime import date, timedelta
from time import monotonic
from typing import Any

from equipoise_client.errors import EquipoiseError
from pydicom.uid import UID

from ..dicom.archive import Access
from ..dicom.query import Pacs
from .receivers import AGAIN, NO_IMAGES, SourceAway
from .settings import RetrieveSource
from .store import Store


class Retrieve:
    """Asks for studies that a query finds, and has series moved of which images are not here.

    Images come through the receiver, as any that are sent; until a series is complete here, it is known to be
    incomplete. What the PACS cannot send, and what did not become an image here, is asked for again only at times.

    Args:
        to: AE title of the receiver, which the PACS has to know.
    """

    name = "retrieve"

    def __init__(self, settings: RetrieveSource, to: str, store: Store) -> None:
        self.every = settings.every_seconds
        self._settings, self._to, self._store = settings, to, store
        access = Access(
            root=settings.tls_root,
            certificate=settings.tls_cert,
            key=settings.tls_key,
            timeout=settings.timeout_seconds,
        )
        self._pacs = Pacs(settings.host, settings.port, settings.aet, settings.caller, access)
        self._asked: dict[str, tuple[frozenset[str], float]] = {}  # series → what was wanted of it, until when

    def poll(self) -> int:
        """Has new images moved; returns how many came. Raises SourceAway."""
        filters = dict(self._settings.query)
        if self._settings.days >= 0:
            filters["StudyDate"] = f"{date.today() - timedelta(days=self._settings.days):%Y%m%d}-"
        taken, trouble = 0, ""
        try:
            for study in self._pacs.studies(filters):
                try:
                    for series in self._pacs.series(study):
                        if str(series.get("Modality", "")) not in NO_IMAGES:
                            taken += self._take(study, series)
                except EquipoiseError as error:  # one study that the PACS does not give stops no other
                    trouble = trouble or str(error)
        except EquipoiseError as error:
            trouble = trouble or str(error)
        if trouble:
            raise SourceAway(trouble)
        return taken

    def _take(self, study: str, series: Any) -> int:
        uid = str(series.SeriesInstanceUID)
        stated = int(series.get("NumberOfSeriesRelatedInstances") or 0)
        found = {
            str(each.SOPInstanceUID): str(each.get("SOPClassUID") or "") for each in self._pacs.instances(study, uid)
        }
        images = {each for each, kind in found.items() if not kind or "Image Storage" in UID(kind).name}
        wanted = frozenset(images - self._store.studies.known(study).keys())
        before, until = self._asked.get(uid, (frozenset(), 0.0))
        if not wanted or (wanted == before and monotonic() < until):
            return 0
        unlisted = max(0, stated - len(found))
        self._store.studies.absent(study, uid, unlisted + len(wanted))
        moved = self._pacs.move(self._to, study, uid)
        missing = wanted - self._store.studies.known(study).keys()
        # Where all was sent, what is not here is no image, or was set aside, which the intake has noted.
        whole = moved.done and moved.completed >= len(found)
        self._store.studies.absent(study, uid, unlisted + (0 if whole else len(missing)))
        self._asked[uid] = (missing, monotonic() + AGAIN)
        return len(wanted) - len(missing)
