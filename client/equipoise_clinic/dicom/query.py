"""Query/Retrieve (DICOM PS3.4 annex C, Study Root): what a PACS has by C-FIND, and having it sent by C-MOVE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from equipoise_client.errors import InvalidInput, NotPermitted, ServerUnavailable
from equipoise_client.extras import needs

from .archive import CALLING_AET, DEFAULT, Access
from .tls import client_context

_PENDING, _SUCCESS, _UNABLE, _WARNING = (0xFF00, 0xFF01), 0x0000, 0xA702, 0xB000
_UNKNOWN_DESTINATION = 0xA801


@dataclass(frozen=True)
class Moved:
    """What became of a C-MOVE: how many instances were sent, and could not be, as the PACS counts; the last status.

    For a study that it does not know a PACS may well answer success, with nothing sent.
    """

    completed: int
    failed: int
    status: int

    @property
    def done(self) -> bool:
        return self.status == _SUCCESS and not self.failed and self.completed > 0


@dataclass(frozen=True)
class Pacs:
    """A Query/Retrieve provider. Each call is an association of its own.

    All calls raise ServerUnavailable where it does not answer, NotPermitted where it does not accept `caller`, and
    InvalidInput where it has no such service or does not know what is asked. Messages never repeat what it answered.
    """

    host: str
    port: int
    aet: str
    caller: str = CALLING_AET
    access: Access = DEFAULT

    def studies(self, filters: Mapping[str, str], limit: int = 0) -> list[str]:
        """Study Instance UIDs that match; keys are keywords, values as in DICOM (`20240101-`, `MR`, `Doe*`).

        Args:
            limit: the largest number; 0: all.
        """
        found = self._find("STUDY", {"StudyInstanceUID": "", **filters})
        there = [uid for uid in dict.fromkeys(str(each.get("StudyInstanceUID", "")) for each in found) if uid]
        return there[:limit] if limit else there

    def series(self, study: str) -> list[Any]:
        """A dataset for each series: SeriesInstanceUID, Modality, NumberOfSeriesRelatedInstances where it tells."""
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": "", _RELATED: ""}
        return [each for each in self._find("SERIES", keys) if each.get("SeriesInstanceUID")]

    def instances(self, study: str, series: str) -> list[Any]:
        """A dataset for each instance: SOPInstanceUID, SOPClassUID where it tells."""
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": "", "SOPClassUID": ""}
        return [each for each in self._find("IMAGE", keys) if each.get("SOPInstanceUID")]

    def move(self, to: str, study: str, series: str = "") -> Moved:
        """Has a study, or one of its series, sent to the AE title `to`; returns when all was sent or given up."""
        identifier = _identifier("SERIES" if series else "STUDY", {"StudyInstanceUID": study})
        if series:
            identifier.SeriesInstanceUID = series
        last, completed, failed = None, 0, 0
        with self._associated("Move") as (association, model):
            for answer, _ in association.send_c_move(identifier, to, model):
                last = answer.get("Status")
                completed, failed = (  # the last answer need not count
                    max(before, int(answer.get(f"NumberOf{what}Suboperations", 0) or 0))
                    for before, what in ((completed, "Completed"), (failed, "Failed"))
                )
        if last is None:
            raise ServerUnavailable(f"{self._name} ended C-MOVE without an answer")
        if last == _UNKNOWN_DESTINATION:
            raise InvalidInput(f"{self._name} does not know the AE title {to}: enter it there with its host and port")
        if last in (_SUCCESS, _UNABLE, _WARNING):
            return Moved(completed, failed, int(last))
        raise ServerUnavailable(f"{self._name} answered C-MOVE with status 0x{int(last):04x}")

    def _find(self, level: str, keys: Mapping[str, str]) -> list[Any]:
        found, last = [], None
        with self._associated("Find") as (association, model):
            for answer, dataset in association.send_c_find(_identifier(level, keys), model):
                last = answer.get("Status")
                if last in _PENDING and dataset is not None:
                    found.append(dataset)
        if last is None:
            raise ServerUnavailable(f"{self._name} ended C-FIND without an answer")
        if last != _SUCCESS:
            raise ServerUnavailable(f"{self._name} answered C-FIND with status 0x{int(last):04x}")
        return found

    @property
    def _name(self) -> str:
        return f"{self.aet} at {self.host}:{self.port}"

    @contextmanager
    def _associated(self, service: str) -> Iterator[tuple[Any, Any]]:
        """An association, and the SOP class that it is for."""
        with needs("clinic", "asking a PACS"):
            from pynetdicom import AE, sop_class
        model = getattr(sop_class, f"StudyRootQueryRetrieveInformationModel{service}")
        entity = AE(ae_title=self.caller)
        entity.acse_timeout = entity.connection_timeout = entity.network_timeout = self.access.timeout
        entity.dimse_timeout = self.access.timeout
        entity.add_requested_context(model)
        context = client_context(self.access.root, self.access.certificate, self.access.key)
        tls = None if context is None else (context, self.host)
        association = entity.associate(self.host, self.port, ae_title=self.aet, tls_args=tls)
        if not association.is_established:
            if association.is_rejected:
                raise NotPermitted(f"{self._name} does not accept {self.caller}; check the AE titles")
            if association.rejected_contexts:
                raise InvalidInput(f"{self._name} does not offer {model.name}")
            raise ServerUnavailable(f"{self._name} cannot be reached, or is not a DICOM service")
        try:
            yield association, model
        except (RuntimeError, ValueError) as error:  # it ended meanwhile, or no context was accepted
            raise ServerUnavailable(f"{self._name} ended the association ({type(error).__name__})") from None
        finally:
            association.release()


_RELATED = "NumberOfSeriesRelatedInstances"


def _identifier(level: str, keys: Mapping[str, str]) -> Any:
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import Dataset

    identifier = Dataset()
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    identifier.QueryRetrieveLevel = level
    for name, value in keys.items():
        if tag_for_keyword(name) is None:
            raise InvalidInput(f"{name!r} is not an attribute's keyword, such as StudyDate or ModalitiesInStudy")
        setattr(identifier, name, value or None)
    return identifier
