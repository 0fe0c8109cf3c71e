"""Which cases a reader should look at: accepted ones that were wrong, and near misses on either side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from equipoise_core.assessment import Assessment
from equipoise_core.case import Case, Model
from equipoise_core.policy import Policy
from equipoise_core.sampling import RunSampler, assess

from ..cases import Labelled
from ..figures import Judged
from .pictures import Panel, draw


@dataclass(frozen=True)
class Kind:
    """One kind of case that is shown.

    Attributes:
        none: what is said where there are no such cases.
        route, wrong: what makes a case one.
        order: those with the smallest number are shown.
    """

    title: str
    note: str
    none: str
    route: str
    wrong: bool
    order: Callable[[Judged], float]

    def holds(self, judged: Judged) -> bool:
        return judged.route == self.route and bool(judged.step.loss) == self.wrong


def _worst(judged: Judged) -> float:
    """By Dice; without one those that the model was surest of."""
    return judged.ranking if np.isnan(judged.step.dice) else judged.step.dice


KINDS = (
    Kind(
        "Accepted, and wrong",
        "These went on without a human: the errors that the promise counts. The worst come first.",
        "No accepted case was wrong.",
        "accept",
        True,
        _worst,
    ),
    Kind(
        "Accepted and right, but only just",
        "Their score lies closest below the accept threshold.",
        "No accepted case was right.",
        "accept",
        False,
        lambda judged: -(judged.over_threshold or 0.0),
    ),
    Kind(
        "Sent to an expert, though the answer was right",
        "The price of caution. Those with the most certain answers come first.",
        "No case was sent to an expert for nothing.",
        "review",
        False,
        lambda judged: judged.ranking,
    ),
    Kind(
        "Sent to an expert, and wrong",
        "What review is there for.",
        "No case that was sent to an expert was wrong.",
        "review",
        True,
        lambda judged: judged.ranking,
    ),
)


@dataclass(frozen=True)
class Example:
    """A case as it is shown."""

    judged: Judged
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Examples:
    """The cases of one kind: how many there are, and the ones that are shown."""

    kind: Kind
    total: int
    shown: Sequence[Example]


def choose_examples(judged: Sequence[Judged], most: int) -> list[tuple[Kind, int, list[Judged]]]:
    """Of each kind how many there are, and up to `most` of them; at a tie by name."""
    chosen = []
    for kind in KINDS:
        those = sorted(
            (each for each in judged if kind.holds(each)), key=lambda each: (kind.order(each), each.case.name)
        )
        chosen.append((kind, len(those), those[:most]))
    return chosen


def show_examples(
    model: Model,
    policy: Policy,
    judged: Sequence[Judged],
    labelled: Mapping[int, Labelled],
    samplers: Sequence[RunSampler],
    first_pass: RunSampler | None,
    most: int,
) -> list[Examples]:
    """Asks the model about the chosen cases once more, as the service would, and draws what it answers.

    Args:
        model: without a policy, as it was measured.
        labelled: by `id` of the measured case, which holds no image.
        samplers, first_pass: as for `assess`.
        most: cases of each kind; 0: none is drawn.
    """
    asked = replace(model, policy=policy)

    def answered(case: Labelled) -> Assessment:
        question = Case(case.image, spacing=case.spacing, group=case.group or None)
        return assess(asked, question, samplers, first_pass=first_pass, spread=True)

    def shown(each: Judged) -> Example:
        case = labelled[id(each.case)]
        return Example(each, draw(case, answered(case)))

    return [Examples(kind, total, list(map(shown, those))) for kind, total, those in choose_examples(judged, most)]
