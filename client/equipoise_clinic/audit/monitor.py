"""Are accepted cases still as right as the policy says? Read from the log: marked decisions and experts' verdicts.

Each policy is watched on its own. Of its accepted cases a random share is marked (`record["audit"]`), and only these
count: experts look at others for reasons of their own, so their verdicts are no fair sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .chain import AuditError, Entry, Kind, entries

SUSPECTS = 20
"""Error rates above α that the test looks for at once, evenly spaced up to 1."""

ARGUED = {"accept": False, "reject": True, "correct": True}
"""Verdict → whether the acceptance was wrong."""


@dataclass(frozen=True)
class Detector:
    """A sequential test of "the error rate is at most α" that notices when it stops being so, however late.

    Shiryaev-Roberts e-detector with a uniform mixture of alternatives (Shin, Ramdas & Rinaldo 2022, arXiv 2203.03532):
    for each suspected rate q, `R ← (1 + R) · L`, with L = q/α for a wrong case and (1−q)/(1−α) for a right one. As long
    as the rate is at most α the mean M of all R grows by at most 1 a case, so that M ≥ A is reached on average not
    before A cases, at any moment of looking (Wald's test would be certain of the past and slow to notice a change).

    Attributes:
        alpha: 0..1, exclusive.
        sums: R of each suspected rate.
    """

    alpha: float
    sums: tuple[float, ...] = (0.0,) * SUSPECTS

    @property
    def evidence(self) -> float:
        """M: compared with the average number of cases between false alarms that is put up with."""
        return sum(self.sums) / len(self.sums)

    def after(self, wrong: bool) -> Detector:
        """With one more case."""
        rates = [self.alpha + (1.0 - self.alpha) * (i + 0.5) / SUSPECTS for i in range(SUSPECTS)]
        likelihood = [q / self.alpha if wrong else (1.0 - q) / (1.0 - self.alpha) for q in rates]
        return replace(self, sums=tuple((1.0 + r) * x for r, x in zip(self.sums, likelihood, strict=True)))


@dataclass(frozen=True)
class Watch:
    """One policy in service.

    Attributes:
        accepted, marked: decisions that went on automatically, and those of them that are to be audited.
        judged, wrong: marked ones with a verdict, and those of them that were wrong.
        evidence: see `Detector`; the highest so far.
        alarm: sequence number of the verdict at which it reached the limit, or None.
    """

    model: str
    policy: str
    alpha: float
    accepted: int
    marked: int
    judged: int
    wrong: int
    evidence: float
    alarm: int | None

    @property
    def waiting(self) -> int:
        """Marked cases without a verdict: while they are many, nothing is known."""
        return self.marked - self.judged


def monitor(path: Path, every: float = 1000.0, alpha: float | None = None) -> list[Watch]:
    """Watches every policy that the log knows, in order of appearance.

    Args:
        every: cases between false alarms, on average at least.
        alpha: instead of the policies' own.

    Raises AuditError for a broken log, and where neither the policy nor the caller states an α.
    """
    log = list(entries(path))
    return [_watch(group, log, every, alpha) for group in _by_policy(log)]


def _by_policy(log: Iterable[Entry]) -> Iterator[list[list[Entry]]]:
    """Accepted decisions that are still there, one list per policy of lists per image: each image counts once."""
    groups: dict[str, dict[str, list[Entry]]] = {}
    for entry in log:
        body = entry.body or {}
        if entry.kind is Kind.DECISION and _accepted(body) and body.get("policy_digest"):
            images = groups.setdefault(str(body["policy_digest"]), {})
            images.setdefault(str(body["input_digest"]), []).append(entry)
    yield from (list(group.values()) for group in groups.values())


def _accepted(body: Mapping[str, Any]) -> bool:
    """By the final route where it is told: a client may hold back what the server, which sees pixels only, accepts."""
    return bool((body.get("routed") or body).get("route") == "accept")


def _watch(accepted: Sequence[Sequence[Entry]], log: Iterable[Entry], every: float, alpha: float | None) -> Watch:
    first = accepted[0][0].body or {}
    stated = alpha if alpha is not None else first.get("alpha")
    if stated is None:
        raise AuditError(f"policy {str(first['policy_digest'])[:12]} states no alpha; give one with --alpha")
    marked = [number for number, copies in enumerate(accepted) if any((e.body or {}).get("audit") for e in copies)]
    image_of = {entry.sequence: number for number in marked for entry in accepted[number]}
    detector, seen, wrong, alarm, highest = Detector(float(stated)), set[int](), 0, None, 0.0
    for entry in log:
        body = entry.body or {}
        if entry.kind is not Kind.VERDICT or body.get("decision", entry.sequence) >= entry.sequence:
            continue
        image = image_of.get(body["decision"])
        if image is None or image in seen:  # a second opinion is not a second case
            continue
        seen.add(image)
        is_wrong = ARGUED[str(body["verdict"])]
        detector, wrong = detector.after(is_wrong), wrong + is_wrong
        highest = max(highest, detector.evidence)
        if alarm is None and detector.evidence >= every:
            alarm = entry.sequence
    return Watch(
        str(first["model"]), str(first["policy_digest"]), float(stated),
        len(accepted), len(marked), len(seen), wrong, highest, alarm,
    )  # fmt: skip
