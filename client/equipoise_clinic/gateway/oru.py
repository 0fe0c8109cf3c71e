"""Decisions to a hospital information system: HL7 v2.5.1 ORU^R01 over MLLP. `deploy/docs/hl7.md` has the fields."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from math import isfinite
from typing import Any

import hl7
from hl7.mllp import InvalidBlockError, open_hl7_connection

from ..dicom import codes
from ..dicom.dates import da, tm
from ..dicom.tls import client_context
from .faults import Away, Refused, Sick
from .settings import Hl7
from .store import StoredCase

_TAKEN, _REFUSED = ("AA", "CA"), ("AE", "AR", "CE", "CR")
_ESCAPES = str.maketrans(  # HL7 v2.5.1, 2.7; control characters end segments, and frames of MLLP
    {
        "\\": "\\E\\",
        "|": "\\F\\",
        "^": "\\S\\",
        "&": "\\T\\",
        "~": "\\R\\",
        **{chr(n): f"\\X{n:02X}\\" for n in range(32)},
    }
)
_STATUSES = {None: ("P", "P"), "accept": ("F", "F"), "reject": ("C", "W"), "correct": ("C", "W")}
"""Verdict → OBR-25 (HL7 table 0123), OBX-11 (table 0085): preliminary, final, correction: what was posted is wrong."""

_VERDICTS = {
    "accept": "an expert agrees",
    "reject": "an expert finds it wrong",
    "correct": "an expert finds that it has to be corrected",
}
_LONGEST_ANSWER = 1 << 16  # bytes
_TROUBLE = (OSError, EOFError, ValueError, LookupError, hl7.HL7Exception, InvalidBlockError, asyncio.TimeoutError)


def control_id(uid: str) -> str:
    """Message Control ID, 20 characters: the same for the same result, so that a receiver knows a repeat."""
    return hashlib.sha256(uid.encode()).hexdigest()[:20]


def message(case: StoredCase, report: Any, uid: str, settings: Hl7, now: datetime | None = None) -> str:
    """A decision as a message; patient and order are those of its DICOM report.

    Args:
        uid: what names the message, see `control_id`.
    """
    sent = f"{now or datetime.now(timezone.utc):%Y%m%d%H%M%S%z}"
    control, order = control_id(uid), _text(report, "AccessionNumber")
    result, status = _STATUSES[case.verdict]
    if case.replaces and status != "W":
        result = status = "C"
    groups = str(report.get("PatientName", "")).split("=")  # alphabetic, ideographic, phonetic
    name = next((group for group in groups if group.strip("^ ")), "")
    family, given, middle, prefix, suffix = (name.split("^") + [""] * 5)[:5]
    issuer = _text(report, "IssuerOfPatientID")
    born, sex = da(_text(report, "PatientBirthDate")), _text(report, "PatientSex")
    taken = da(_text(report, "StudyDate"))
    taken += tm(_text(report, "StudyTime")).split(".")[0] if taken else ""
    parties = (settings.sending_application, settings.sending_facility, settings.receiving_application,
               settings.receiving_facility)  # fmt: skip
    service = _coded(case.model, f"Equipoise {case.model}", codes.SCHEME)
    segments = [
        ["MSH", "^~\\&", *map(_escaped, parties), sent, "", "ORU^R01^ORU_R01", control, settings.processing_id, "2.5.1",
         "", "", "", "", "", "UNICODE UTF-8"],
        ["PID", "1", "", _components(_text(report, "PatientID"), "", "", issuer), "",
         _components(family, given, middle, suffix, prefix), "", born, sex if sex in ("F", "M", "O") else "U"],
        ["OBR", "1", "", _escaped(order or control), service, "", "", taken, *[""] * 10, _escaped(order), *[""] * 3,
         sent, "", "", result],
        *(
            ["OBX", str(number), kind, code, sub, value, unit, *[""] * 4, status]
            for number, (kind, code, sub, value, unit) in enumerate(_observations(case, report), start=1)
        ),
    ]  # fmt: skip
    return "".join("|".join(fields).rstrip("|") + "\r" for fields in segments)


def _observations(case: StoredCase, report: Any) -> Iterator[tuple[str, str, str, str, str]]:
    """(value type, identifier, sub-identifier, value, unit) of each."""
    yield "CWE", _of(codes.ROUTE), "", _of(codes.ROUTES[case.route]), ""
    yield "ST", _of(codes.REASON), "", _escaped(case.why), ""
    if case.verdict is not None:
        what = _coded(case.verdict, _VERDICTS[case.verdict], codes.SCHEME)
        yield "CWE", _coded("verdict", "Verdict of an expert", codes.SCHEME), "", what, ""
    if case.score is not None and isfinite(case.score):
        yield "NM", _of(codes.CASE_SCORE), "", _decimal(case.score), _of(codes.NO_UNITS)
    for name, estimate in case.volume.items():
        stated = estimate.get("unit")
        unit = _of(codes.MILLILITRE) if stated is None else _coded(stated, stated, "UCUM")
        for what, code in (_VOLUMES if stated is None else _NUMBERS).items():
            value = estimate.get(what)
            if value is not None and isfinite(value):
                yield "NM", code, _escaped(name), _decimal(value), unit
    yield "ST", _coded("110180", "Study Instance UID", "DCM"), "", _escaped(_text(report, "StudyInstanceUID")), ""
    yield (
        "ST",
        _coded("report", "SOP Instance UID of the report", codes.SCHEME),
        "",
        _escaped(_text(report, "SOPInstanceUID")),
        "",
    )


def _decimal(value: float) -> str:
    """Six digits, without an exponent, which an NM must not have (HL7 v2.5.1, 2.A.47)."""
    return format(Decimal(f"{value:.6g}"), "f")


def _coded(value: str, meaning: str, scheme: str) -> str:
    return _components(value, meaning, scheme)


def _of(code: Any) -> str:
    return _components(code.value, code.meaning, code.scheme_designator)


def _components(*parts: str) -> str:
    return "^".join(map(_escaped, parts)).rstrip("^")


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name, "") or "").strip()


_VOLUMES: Mapping[str, str] = {
    "mean": _of(codes.VOLUME),
    "sd": _coded("volume_sd", "Standard deviation of the volume", codes.SCHEME),
    "low": _coded("volume_low", "Lower end of the volume's interval", codes.SCHEME),
    "high": _coded("volume_high", "Upper end of the volume's interval", codes.SCHEME),
}

_NUMBERS: Mapping[str, str] = {
    "mean": _coded("value", "Number that the model answers", codes.SCHEME),
    "sd": _coded("value_sd", "Standard deviation of the number", codes.SCHEME),
    "low": _coded("value_low", "Lower end of the number's interval", codes.SCHEME),
    "high": _coded("value_high", "Upper end of the number's interval", codes.SCHEME),
}
"""Of a regression, whose targets state their units."""


class Mllp:
    """Sends messages, one connection for each. Raises InvalidInput for files that TLS cannot use."""

    def __init__(self, settings: Hl7) -> None:
        self._settings = settings
        self._tls = client_context(settings.tls_root, settings.tls_cert, settings.tls_key)

    def send(self, text: str, control: str) -> None:
        """Returns when the receiver has acknowledged it (AA). Raises Away, Sick, Refused."""
        code, answered = asyncio.run(self._exchange(text))
        if answered != control:
            raise Sick("an acknowledgement of another message")
        if code in _REFUSED:
            raise Refused(f"acknowledged with {code}")
        if code not in _TAKEN:
            raise Sick("an acknowledgement without a code of HL7 table 0008")

    async def _exchange(self, text: str) -> tuple[str, str]:
        """Acknowledgment Code and Message Control ID of the answer."""
        settings = self._settings
        opening = open_hl7_connection(
            settings.host, settings.port, ssl=self._tls, limit=_LONGEST_ANSWER, encoding="utf-8",
            encoding_errors="replace",
        )  # fmt: skip
        try:
            reader, writer = await asyncio.wait_for(opening, settings.timeout_seconds)
        except _TROUBLE as error:
            raise Away(type(error).__name__) from None
        try:
            writer.writemessage(text)
            acknowledged = (await asyncio.wait_for(reader.readmessage(), settings.timeout_seconds)).segment("MSA")
            return str(acknowledged[1]), str(acknowledged[2])
        except _TROUBLE as error:  # it was there: this message may be the reason
            raise Sick(type(error).__name__) from None
        finally:
            writer.close()
