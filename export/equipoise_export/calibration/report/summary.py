"""What the figures mean, in counts of cases, for the people who will read the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise_core.contract import Contract, Task
from equipoise_core.stages import FIRST_PASS

from .findings import Findings, rendered

HUNDRED = 100
_ROW = 20  # cases in a row of the picture


@dataclass(frozen=True)
class Share:
    """Some of a hundred (or of a thousand) cases."""

    count: int
    of: int

    @classmethod
    def read(cls, share: float) -> Share:
        """Of 100, where that is a whole number of cases, or of 1000."""
        of = HUNDRED if abs(share * HUNDRED - round(share * HUNDRED)) < 1e-9 else 10 * HUNDRED
        return cls(round(share * of), of)


def summary(found: Findings) -> str:
    """Accepted, reviewed and rejected of a hundred, how many of them may be wrong, and for whom that holds."""
    _, _, figures = found.sets[0]
    policy = found.policy
    counts = {**figures["routes"]}
    wrong = int(figures["wrong_among_accepted"])
    shown = of_hundred({"right": counts["accept"] - wrong, "wrong": wrong, **_without(counts, "accept")})
    return rendered(
        "summary",
        figures=figures,
        hundred={**_without(counts, "accept"), "accept": shown["right"] + shown["wrong"], **shown},
        squares=_squares(shown),
        guarantee=policy.guarantee,
        why=found.why,
        alpha=Share.read(policy.guarantee.alpha) if policy.guarantee else None,
        delta=Share.read(policy.guarantee.delta) if policy.guarantee else None,
        error=error_in_words(found.contract, found.loss),
        population=policy.population,
        groups=list(found.groups),
        volume=Share.read(policy.volume.level) if policy.volume else None,
        missed=Share.read(policy.sensitive.alpha) if policy.sensitive else None,
        audited=policy.monitoring.audit_share if policy.monitoring else 0.0,
        others=[(title, each) for title, _, each in found.sets[1:]],
        cases_file=found.cases_file,
    )


def glossary(found: Findings) -> str:
    """The words that this report uses."""
    contract, policy = found.contract, found.policy
    return rendered(
        "glossary",
        policy=policy,
        segmentation=contract.task is Task.SEGMENTATION,
        stochastic=contract.stochastic,
        first_pass=policy.stages[0].samples == FIRST_PASS,
    )


def of_hundred(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts as whole numbers of a hundred that add up (largest remainders); nothing that occurred becomes 0."""
    total = max(sum(counts.values()), 1)
    exact = {name: HUNDRED * count / total for name, count in counts.items()}
    whole = {name: max(int(share), 1 if share else 0) for name, share in exact.items()}
    while sum(whole.values()) < HUNDRED and any(counts.values()):
        whole[max(exact, key=lambda name: exact[name] - whole[name])] += 1
    while sum(whole.values()) > HUNDRED:
        whole[max(whole, key=lambda name: whole[name] - exact[name] if whole[name] > 1 else -HUNDRED)] -= 1
    return whole


def error_in_words(contract: Contract, loss: str) -> str:
    """Where a case counts as wrong; `loss` as the goals name it."""
    if contract.task is Task.SEGMENTATION:
        structures = " and ".join(contract.classes[k] for k in contract.foreground)
        return f"the answer overlaps the expert's label too little ({loss}, over {structures})"
    if contract.task is Task.CLASSIFICATION:
        return "the answer is another one than the expert's label"
    return loss


def _without(counts: Mapping[str, int], name: str) -> dict[str, int]:
    return {key: value for key, value in counts.items() if key != name}


def _squares(shown: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(kind, row, column) of a hundred squares."""
    kinds = [kind for kind, count in shown.items() for _ in range(count)]
    return [(kind, *divmod(n, _ROW)) for n, kind in enumerate(kinds)]
