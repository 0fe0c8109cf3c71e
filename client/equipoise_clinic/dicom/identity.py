"""What names a result: UIDs and dates that follow from what was decided on, so that a repeat is the same object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise_client.prediction import Prediction

from .dates import da, tm
from .series import Series

LAYOUT = 1
"""Of the result objects; another number gives them other UIDs, since one UID must never name two contents."""


@dataclass(frozen=True)
class Identity:
    """Names of the results of one decision about one series.

    Attributes:
        digest: SHA-256 over study, series, their instances, pixels, model, policy, code, seed, samples and route.
        date, time: of the source (DA, TM). A result's content stands for that moment; when it was computed and sent is
            the audit log's to say, so that the same decision always gives the same bytes.
    """

    digest: str
    date: str
    time: str

    def uid(self, *what: str) -> str:
        """A UID, the same for the same decision and `what`."""
        return uid_of(self.digest, *what)


def uid_of(*what: str) -> str:
    """A UID below 2.25 (PS3.5 B.2) that follows from `what`: a UUID of version 8, made from a hash (RFC 9562)."""
    number = bytearray(hashlib.sha256("\0".join(what).encode()).digest()[:16])
    number[6] = number[6] & 0x0F | 0x80  # the version
    number[8] = number[8] & 0x3F | 0x80  # the variant
    return f"2.25.{int.from_bytes(number, 'big')}"


def identity_of(series: Series, prediction: Prediction, remarks: Sequence[str] = ()) -> Identity:
    """The identity of a decision; the record says all of it that is not in the series' UIDs, or in `remarks`."""
    record = prediction.record
    stated = {name: record.get(name) for name in _DECISIVE}
    instances = sorted(str(dataset.SOPInstanceUID) for dataset in series.datasets)
    reason = record.get("reason")
    code = reason.get("code") if isinstance(reason, Mapping) else None  # its numbers differ by device
    decided = [prediction.route.value, code, *remarks]
    text = json.dumps([LAYOUT, series.study_uid, series.uid, instances, stated, decided], sort_keys=True)
    return Identity(hashlib.sha256(text.encode()).hexdigest(), *_moment(series.first))


_DIGESTS = ("model_digest", "policy_digest", "code_digest", "input_digest")
_DECISIVE = ("model", *_DIGESTS, "seed", "samples", "samples_planned")


def _moment(dataset: Any) -> tuple[str, str]:
    """Date and time of the source, the most specific that are there; 1900-01-01 where it has none."""
    for kind in ("Series", "Acquisition", "Content", "Study"):
        date = da(_text(dataset, f"{kind}Date"))
        if date:
            time = tm(_text(dataset, f"{kind}Time")).split(".")[0]
            return date, time if len(time) == 6 else "000000"
    return "19000101", "000000"


def _text(dataset: Any, name: str) -> str:
    try:
        return str(dataset.get(name, "") or "")
    except Exception:  # noqa: BLE001 (a value that is none of its kind makes pydicom raise nearly anything)
        return ""
