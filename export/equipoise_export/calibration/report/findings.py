"""What every section of the report is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_core.contract import Contract
from equipoise_core.policy import Policy

from ... import page
from ..corrupted import Corrupted
from ..examine import Finding
from ..figures import Judged
from ..gain import Gain
from ..sweep import Rate
from .examples import Examples


@dataclass(frozen=True)
class Findings:
    """All that was found about a model and its policy.

    Attributes:
        why: what the accept threshold guarantees, or why there is none.
        loss: what counts as an error, as the goals name it.
        sets: (title, note, figures) of each set of cases.
        judged: cases that plots show.
        groups: figures by group of patients; empty where the cases name none.
        rates: of the dropout rates that were tried.
        examples: cases to look at.
        cases_file: name of the CSV file beside the report.
        examined: what was asked about the cases before they were trusted.
        gains: of the recalibrations that were tried.
        corrupted: some cases under named corruptions, as they are first; empty of a regression.
    """

    contract: Contract
    policy: Policy
    why: str
    loss: str
    sets: Sequence[tuple[str, str, Mapping[str, Any]]]
    judged: Sequence[Judged]
    groups: Mapping[str, Any]
    rates: Sequence[Rate] = ()
    examples: Sequence[Examples] = ()
    cases_file: str = ""
    examined: Sequence[Finding] = ()
    gains: Sequence[Gain] = ()
    corrupted: Sequence[Corrupted] = ()


def rendered(template: str, **context: Any) -> str:
    """HTML of `template.html.jinja` in this folder."""
    filters: dict[str, Callable[..., Any]] = {
        "n": _number,
        "short": _short,
        "between": _between,
        "share": _share,
        "blocks": _blocks,
    }
    return page.render(Path(__file__).with_name(f"{template}.html.jinja"), filters, **context)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _between(interval: Mapping[str, float | None]) -> str:
    return "–" if interval["low"] is None else f"{interval['low']:.3g} to {interval['high']:.3g}"


def _share(interval: Mapping[str, float | None]) -> str:
    if interval["share"] is None:
        return "–"
    return f"{interval['share']:.1%}, 95 % interval {interval['low']:.1%} to {interval['high']:.1%}"


def _blocks(probabilities: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One table for exclusive classes, one per label otherwise."""
    return [("probabilities", probabilities)] if "ece" in probabilities else list(probabilities.items())
