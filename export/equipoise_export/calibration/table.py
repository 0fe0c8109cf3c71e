"""What calibration measured of each case, as numbers: kept beside the report for `equipoise adapt` at another site.

No image, no name and no patient: digests of images, statistics, scores, volumes, margins of outlines and whether the
answer was wrong, in the order of the digests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.canonical import digest_of, optional, parse_document, read_json

from .cases import Measured, Step
from .choose import Goals, Method
from .outline import Margins

FORMAT = "equipoise-cases/1"

_NOTHING = np.zeros((0, 0))


class TableError(ValueError):
    """The table cannot be read, or is not what it says."""


class Kept:
    """What is kept as a JSON file that states its own digest, so that a change shows."""

    def document(self) -> dict[str, Any]:
        """JSON-able, without the digest."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        return digest_of(self.document())

    def dumps(self) -> str:
        return json.dumps({**self.document(), "digest": self.digest}, allow_nan=False) + "\n"


@dataclass(frozen=True)
class CaseTable(Kept):
    """Of one policy.

    Attributes:
        policy_digest: the policy that was made from these cases.
        goals: what it was to guarantee.
        acceptable_dice: segmentation: below it a case is wrong.
        cases: one of each patient; without names, patients, groups, probabilities and missed shares.
    """

    policy_digest: str
    goals: Goals
    acceptable_dice: float
    cases: tuple[Measured, ...]

    def document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "policy_digest": self.policy_digest,
            "goals": {**vars(self.goals), "method": self.goals.method.value},
            "acceptable_dice": self.acceptable_dice,
            "cases": [case_document(case) for case in self.cases],
        }


def table_of(policy_digest: str, goals: Goals, acceptable_dice: float, cases: Sequence[Measured]) -> CaseTable:
    """The cases' numbers, in the order of their images' digests."""
    ordered = sorted(cases, key=lambda case: case.image_digest)
    plain = tuple(parse_case(case_document(case)) for case in ordered)
    return CaseTable(policy_digest, goals, acceptable_dice, plain)


def load_table(path: Path) -> CaseTable:
    """Raises TableError that says what is wrong."""
    document = read_json(path, TableError)
    return parse_document(document, "table of calibration cases", FORMAT, _table, TableError, must_state=True)


def _table(document: Any) -> CaseTable:
    goals = dict(document["goals"])
    known = {field.name for field in fields(Goals)}
    return CaseTable(
        str(document["policy_digest"]),
        Goals(**{**{name: goals[name] for name in known}, "method": Method(goals["method"])}),
        float(document["acceptable_dice"]),
        tuple(parse_case(case) for case in document["cases"]),
    )


def case_document(case: Measured) -> dict[str, Any]:
    """JSON-able; read again by `parse_case`."""
    return {
        "image_digest": case.image_digest,
        "statistics": dict(case.statistics),
        "steps": [_step_document(step) for step in case.steps],
        "truths": dict(case.truths),
        "spacing": None if case.spacing is None else list(case.spacing),
        "windows": case.windows,
    }


def parse_case(document: Mapping[str, Any]) -> Measured:
    """Raises KeyError, TypeError or ValueError where a part is missing or is no number."""
    digest = str(document["image_digest"])
    return Measured(
        digest[:12],
        digest,
        "",
        digest,
        _numbers(document["statistics"]),
        tuple(_step(step) for step in document["steps"]),
        _numbers(document["truths"]),
        _NOTHING,
        optional(document["spacing"], lambda given: tuple(float(mm) for mm in given)),
        bool(document["windows"]),
    )


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "samples": step.samples,
        "scores": dict(step.scores),
        "prediction": dict(step.prediction),
        "loss": step.loss,
        "dice": None if np.isnan(step.dice) else step.dice,
        "volumes": {name: list(volume) for name, volume in step.volumes.items()},
        **({} if step.margins is None else {"margins": [None if np.isinf(each) else each for each in step.margins]}),
    }


def _step(document: Mapping[str, Any]) -> Step:
    volumes = {str(name): (float(m), float(low), float(high)) for name, (m, low, high) in document["volumes"].items()}
    return Step(
        int(document["samples"]),
        _numbers(document["scores"]),
        _numbers(document["prediction"]),
        float(document["loss"]),
        float("nan") if document["dice"] is None else float(document["dice"]),
        volumes,
        (),
        _NOTHING,
        margins=optional(document.get("margins"), _margins),
    )


def _margins(given: Sequence[float | None]) -> Margins:
    inner, outer = (math.inf if each is None else float(each) for each in given)
    return inner, outer


def _numbers(document: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(number) for name, number in document.items()}
