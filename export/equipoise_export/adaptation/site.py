"""What is known of a site so far: kept between calls of `equipoise adapt`, so that evidence can grow.

It holds numbers and digests, no image and no name. Patients are keyed digests, with a key of this file alone: the same
patient is known again, and nothing else follows from them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_core.canonical import optional, parse_document, read_json
from equipoise_core.policy import Policy, parse_policy
from equipoise_core.stages import Stage, parse_stage

from ..calibration.cases import Measured, Shown
from ..calibration.table import Kept, case_document, parse_case
from .errors import AdaptationError

FORMAT = "equipoise-site/1"


class _SiteError(ValueError):
    pass


@dataclass(frozen=True)
class Known:
    """A labelled case of the site.

    Attributes:
        patient: keyed digest.
        call: in which call of `adapt` it came, from 1 on.
        shown: which classes its label shows.
    """

    case: Measured
    patient: str
    call: int
    shown: Shown


@dataclass(frozen=True)
class Site(Kept):
    """Everything that was fixed before the first label was seen, and the labelled cases since.

    Attributes:
        name: of the site, for its policy.
        key: hex digits, for patients' digests.
        source: the policy of the other site.
        bounds: what is typical at this site; accepts nothing.
        candidates: stages with thresholds, from the strictest to the most permissive.
        dropped: candidates that were dropped for their estimated error at this site, in words.
        alpha, delta: error among accepted cases at most alpha, but for a chance of delta.
        images: of the site, without labels, that fixed the bounds.
        cases: in the order in which they count.
        closed: why nothing is accepted any more, whatever the labels say; None: labels decide.
        looks: how often later images were compared with those that fixed the bounds.
        fitted: of `images`, the first so many said what is typical; the others, how far from it images lie.
    """

    name: str
    key: str
    source: Policy
    bounds: Policy
    candidates: tuple[tuple[Stage, ...], ...]
    dropped: tuple[str, ...]
    alpha: float
    delta: float
    images: tuple[Measured, ...]
    cases: tuple[Known, ...] = ()
    closed: str | None = None
    looks: int = 0
    fitted: int = 0

    @property
    def calls(self) -> int:
        """With labelled cases, so far."""
        return max((known.call for known in self.cases), default=0)

    def patient(self, name: str) -> str:
        """The digest by which this site knows a patient."""
        return hmac.new(bytes.fromhex(self.key), name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    def document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "key": self.key,
            "source": {**self.source.document(), "digest": self.source.digest},
            "bounds": {**self.bounds.document(), "digest": self.bounds.digest},
            "candidates": [[stage.document() for stage in stages] for stages in self.candidates],
            "dropped": list(self.dropped),
            "alpha": self.alpha,
            "delta": self.delta,
            "images": [case_document(case) for case in self.images],
            "cases": [
                {
                    "case": case_document(known.case),
                    "patient": known.patient,
                    "call": known.call,
                    "shown": [list(side) for side in known.shown],
                }
                for known in self.cases
            ],
            "closed": self.closed,
            "looks": self.looks,
            "fitted": self.fitted,
        }


def load_site(path: Path) -> Site:
    """Raises AdaptationError that says what is wrong: a state that was changed by hand vouches for nothing."""
    try:
        return parse_document(
            read_json(path, _SiteError), "state of a site", FORMAT, _site, _SiteError, must_state=True
        )
    except _SiteError as error:
        raise AdaptationError(f"{path}: {error}; give its backup, or begin anew in an empty folder") from error


def _site(document: Any) -> Site:
    return Site(
        str(document["name"]),
        str(document["key"]),
        parse_policy(document["source"]),
        parse_policy(document["bounds"]),
        tuple(tuple(parse_stage(stage) for stage in stages) for stages in document["candidates"]),
        tuple(str(words) for words in document["dropped"]),
        float(document["alpha"]),
        float(document["delta"]),
        tuple(parse_case(case) for case in document["images"]),
        tuple(_known(each) for each in document["cases"]),
        optional(document["closed"], str),
        int(document["looks"]),
        int(document["fitted"]),
    )


def _known(document: Mapping[str, Any]) -> Known:
    def flags(given: Sequence[Any]) -> tuple[bool, ...]:
        return tuple(bool(flag) for flag in given)

    there, absent = document["shown"]
    return Known(
        parse_case(document["case"]),
        str(document["patient"]),
        int(document["call"]),
        (flags(there), flags(absent)),
    )
