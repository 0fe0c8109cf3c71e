"""Instances to and from a PACS: STOW-RS, C-STORE, QIDO-RS and WADO-RS, over dicomweb-client and pynetdicom.

One instance a request: what one has that a PACS refuses must not keep the others away. Nothing is tried twice here:
whoever calls knows how long to wait.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_client.errors import InvalidInput, NotPermitted, ServerUnavailable
from equipoise_client.extras import needs

from .tls import client_context

CALLING_AET = "EQUIPOISE"

_DIMSE = re.compile(r"dicom://(?P<aet>[^@/:\s]{1,16})@(?P<host>[^@/:\s]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})/?")
AS_STORED = (("application/dicom", "*"),)
"""Whole instances in whatever syntax they are stored: what dicomweb-client asks for by default Orthanc refuses, and
compressed pixels should come as they are."""


@dataclass(frozen=True)
class Stored:
    """What became of one instance; `reason` is "" where it was stored."""

    sop_instance: str
    reason: str = ""

    @property
    def done(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Access:
    """Credentials and time limit. C-STORE knows no credentials but the AE title.

    Attributes:
        authorization: value of the Authorization header, such as "Bearer …".
        root: PEM file of the authority to trust instead of the system's; C-STORE then goes over TLS.
        certificate, key: PEM files of this client.
        timeout: seconds without an answer.
    """

    authorization: str | None = None
    root: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout: float = 60.0


DEFAULT = Access()


def send(
    instances: Iterable[Any], to: str, *, access: Access = DEFAULT, calling_aet: str = CALLING_AET
) -> Iterator[Stored]:
    """Stores datasets one by one and reports the outcome of each.

    Args:
        to: `https://pacs/dicom-web` for STOW-RS, or `dicom://AET@host:port` for C-STORE.

    Raises ServerUnavailable or NotPermitted where the archive cannot be talked to at all; instances that came before
    are stored then. InvalidInput for an invalid address or AE title.
    """
    if to.startswith(("http://", "https://")):
        return _stow(instances, to, access)
    return _c_store(instances, *peer(to), checked_aet(calling_aet), access)


def peer(address: str) -> tuple[str, int, str]:
    """Host, port and AE title of `dicom://AET@host:port`. Raises InvalidInput."""
    found = _DIMSE.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise InvalidInput(f"{address!r}; expected https://host/dicom-web or dicom://AET@host:port")
    return found["host"].strip("[]"), int(found["port"]), found["aet"]


def checked_aet(aet: str) -> str:
    """Raises InvalidInput for what is no AE title (PS3.5, VR AE)."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", aet) or not aet.strip():
        raise InvalidInput(f"{aet!r} is not an AE title; expected 1 to 16 ASCII characters without backslash")
    return aet


def fetch(url: str, study: str, *, access: Access = DEFAULT) -> Iterator[Any]:
    """All instances of a study, as they are stored. Raises as `send` does; InvalidInput for an unknown study.

    One by one, so that memory holds one at a time, whatever the archive makes of a large answer.
    """
    client = _client(url, access, "fetching over DICOMweb")
    with _translated(url):
        listed = client.search_for_instances(study, get_remaining=True)
        if not listed:
            raise InvalidInput(f"the archive at {url} has no study of that UID")
        for entry in listed:
            series, instance = (entry[tag]["Value"][0] for tag in ("0020000E", "00080018"))
            yield client.retrieve_instance(study, series, instance, media_types=AS_STORED)


def find(url: str, filters: Mapping[str, str], *, limit: int = 100, access: Access = DEFAULT) -> list[str]:
    """Study Instance UIDs that match; keys are attribute keywords, values as in QIDO-RS (`20240101-`, `MR`, `Doe*`)."""
    client = _client(url, access, "querying over DICOMweb")
    from pydicom.datadict import tag_for_keyword

    for name in filters:
        if tag_for_keyword(name) is None:
            raise InvalidInput(f"{name!r} is not an attribute's keyword, such as StudyDate or ModalitiesInStudy")
    with _translated(url):
        found = client.search_for_studies(search_filters=dict(filters), limit=limit)
    return [str(study["0020000D"]["Value"][0]) for study in found]


def _stow(instances: Iterable[Any], url: str, access: Access) -> Iterator[Stored]:
    client = _client(url, access, "storing over DICOMweb")
    for dataset in instances:
        uid = str(dataset.SOPInstanceUID)
        try:
            with _translated(url):
                answer = client.store_instances([_as_file(dataset)])
            failed = answer.get("FailedSOPSequence") or []
            codes = ", ".join(f"0x{int(item.get('FailureReason', 0)):04x}" for item in failed)
            reason = f"refused with reason {codes}" if failed else ""
        except InvalidInput as error:
            reason = str(error)
        if reason:
            with _translated(url):
                reason = "" if holds(client, dataset) else reason
        yield Stored(uid, reason)


DUPLICATE = 0x0111
"""DICOM PS3.7 section C.5.14: it is there already, sent before a crash; equal UIDs are equal objects here."""


def is_stored(status: int) -> bool:
    """Whether a C-STORE status says that the instance is there now, also with a warning (0xB…, PS3.4 B.2.3)."""
    return status in (0x0000, DUPLICATE) or status >> 12 == 0xB


def holds(client: Any, dataset: Any) -> bool:
    """Whether an archive has an instance of this UID, by QIDO-RS: some refuse what is there already."""
    uid = str(dataset.SOPInstanceUID)
    where = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID))
    found = client.search_for_instances(*where, search_filters={"SOPInstanceUID": uid})
    return any(uid in each.get("00080018", {}).get("Value", []) for each in found)


def encoded(dataset: Any) -> bytes:
    """A dataset that has its file meta information, as a DICOM file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _as_file(dataset: Any) -> Any:
    """The dataset with the preamble and file meta information of a file, on a copy.

    dicomweb-client sends what was made in memory without them, and Orthanc stores a file that few can read.
    """
    from pydicom.dataset import FileMetaDataset, validate_file_meta

    complete = copy(dataset)
    complete.file_meta = FileMetaDataset(deepcopy(dataset.file_meta))
    complete.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    complete.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    validate_file_meta(complete.file_meta, enforce_standard=True)
    complete.preamble = bytes(128)
    return complete


def _client(url: str, access: Access, purpose: str) -> Any:
    with needs("clinic", purpose):
        import requests
        from dicomweb_client.web import DICOMwebClient

    logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # its lines quote queries and answers
    session = requests.Session()
    if access.root is not None:
        session.verify = str(access.root)
    if access.certificate is not None:
        session.cert = (str(access.certificate), str(access.key or access.certificate))
    headers = {} if access.authorization is None else {"Authorization": access.authorization}
    try:
        client = DICOMwebClient(url, session=session, headers=headers, timeout=access.timeout)
    except ValueError as error:
        raise InvalidInput(f"{url!r} is not the address of a DICOMweb service: {error}") from error
    client.set_http_retry_params(retry=False)
    return client


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Trouble with a DICOMweb server as one of our errors; an answer's text is not repeated, it may name a patient."""
    import requests

    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        text = f"the archive at {url} answered HTTP {status}"
        if status in (401, 403, 407):
            raise NotPermitted(f"{text}; check the credentials") from None
        if status in (404, 408, 425, 429) or status >= 500:  # address or load: it says nothing about what was sent
            raise ServerUnavailable(f"{text}; check the address, or try again later") from None
        raise InvalidInput(f"{text}; it refuses what was sent or asked") from None
    except requests.RequestException as error:
        raise ServerUnavailable(f"the archive at {url} cannot be reached ({type(error).__name__})") from None


def _c_store(
    instances: Iterable[Any], host: str, port: int, aet: str, calling_aet: str, access: Access
) -> Iterator[Stored]:
    """An association for each instance: contexts are proposed for what it is, Parametric Maps included."""
    with needs("clinic", "sending over DICOM"):
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
        from pynetdicom import AE

    context = client_context(access.root, access.certificate, access.key)
    tls = None if context is None else (context, host)
    for dataset in instances:
        uid = str(dataset.SOPInstanceUID)
        stored = dataset.file_meta.TransferSyntaxUID
        entity = AE(ae_title=calling_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = access.timeout
        entity.connection_timeout = access.timeout
        syntaxes = [stored] if stored.is_compressed else [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        entity.add_requested_context(dataset.SOPClassUID, syntaxes)
        association = entity.associate(host, port, ae_title=aet, tls_args=tls)
        if not association.is_established:
            if association.is_rejected:
                raise NotPermitted(f"{aet} at {host}:{port} does not accept {calling_aet}; check the AE titles")
            if association.rejected_contexts:
                yield Stored(uid, f"{aet} takes no {dataset.SOPClassUID.name} in {stored.name}")
                continue
            raise ServerUnavailable(f"{aet} at {host}:{port} cannot be reached, or is not a DICOM service")
        try:
            status = association.send_c_store(dataset)
        except ValueError as error:  # no accepted context, or a dataset that cannot be encoded
            yield Stored(uid, f"it cannot be sent ({type(error).__name__})")
            continue
        finally:
            association.release()
        if "Status" not in status:
            raise ServerUnavailable(f"{aet} at {host}:{port} closed the association without an answer")
        code = int(status.Status)
        if code >> 8 == 0xA7:  # out of resources: no fault of the instance
            raise ServerUnavailable(f"{aet} at {host}:{port} has no room (status 0x{code:04x})")
        yield Stored(uid, "" if is_stored(code) else f"refused with status 0x{code:04x}")
