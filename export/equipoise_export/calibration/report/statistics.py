"""Figures of each set of cases, of each group of patients, and of each dropout rate that was tried."""

from __future__ import annotations

from ..corrupted import METRICS, verdict
from ..metrics import TITLES
from ..scored import SELECTION
from .findings import Findings, rendered


def measured(found: Findings) -> str:
    """Routes, probabilities, scores and volumes of each set of cases."""
    selection = {**{each.name: each.title for each in SELECTION}, "auroc_errors": "AUROC errors"}
    return rendered("measured", sets=found.sets, classes=found.contract.classes, metrics=TITLES, selection=selection)


def groups(found: Findings) -> str:
    """Certificates by group, and routes of each; empty where the cases name none."""
    certified = found.policy.groups
    return rendered("groups", groups=found.groups, certified=certified) if found.groups or certified else ""


def examined(found: Findings) -> str:
    """Whether the cases may stand for those to come; empty where nothing was asked."""
    return rendered("examined", findings=found.examined, despite=found.policy.despite) if found.examined else ""


def recalibrated(found: Findings) -> str:
    """What each recalibration that was tried gains; empty where none was."""
    method = found.policy.recalibration
    return rendered("recalibrated", gains=found.gains, used=method is not None) if found.gains else ""


def corrupted(found: Findings) -> str:
    """Probabilities and routes under named corruptions; empty where none were tried."""
    if not found.corrupted:
        return ""
    said = verdict(found.corrupted)
    promised = found.policy.guarantee.alpha if found.policy.guarantee else 1.0
    return rendered("corrupted", rows=found.corrupted, verdict=said, metrics=METRICS, titles=TITLES, promised=promised)


def rates(found: Findings) -> str:
    """Empty where none were tried."""
    return rendered("rates", rates=found.rates) if found.rates else ""
