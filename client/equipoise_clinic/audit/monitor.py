"""Are accepted cases still as right as the policy says? Read from the log: marked decisions and experts' verdicts.

Each policy is watched on its own. Of its accepted cases a random share is marked (`record["audit"]`), and only these
count: experts look at others for reasons of their own, so their verdicts are no fair sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .chain import entries
from .entry import AuditError, Entry, Kind, Verdict

SUSPECTS = 20
"""Error rates above α that the test looks for at once, evenly spaced up to 1."""


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
class PolicyStatus:
    """One policy in service.

    Attributes:
        accepted, marked: images accepted automatically, and those of them that are to be audited.
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


def monitor(path: Path, every: float = 1000.0, alpha: float | None = None) -> list[PolicyStatus]:
    """The status of every policy that a log knows, in order of appearance; see `Monitor`.

    Raises AuditError for a broken log, and where neither the policy nor the caller states an α.
    """
    watcher = Monitor(every, alpha)
    for entry in entries(path):
        watcher.add(entry)
    return watcher.statuses()


class Monitor:
    """Reads a log line by line, and knows the status of each policy at any time.

    An image counts once, however often it was decided, by its first verdict; that of an image which is marked only
    later counts from then on. Decisions whose content is deleted before anybody judged them do not wait any more.

    Args:
        every: cases between false alarms, on average at least.
        alpha: instead of the policies' own.
    """

    def __init__(self, every: float = 1000.0, alpha: float | None = None) -> None:
        self._every, self._alpha = every, alpha
        self._policies: dict[str, _Policy] = {}
        self._images: dict[int, tuple[_Policy, str]] = {}  # sequence of an accepted decision → its image

    def add(self, entry: Entry) -> None:
        """The next line. Raises AuditError where it lacks what it has to say; then nothing was changed."""
        body = entry.body or {}
        try:
            if entry.kind is Kind.DECISION and _accepted(body) and body.get("policy_digest"):
                self._decision(entry.sequence, body)
            elif entry.kind is Kind.VERDICT and body.get("decision") in self._images:
                policy, image = self._images[body["decision"]]
                policy.verdict(image, entry.sequence, Verdict(body["verdict"]).wrong)
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(f"line {entry.sequence} is no {entry.kind.value} that can be counted") from error
        for sequence in body.get("sequences", ()) if entry.kind is Kind.DELETION else ():
            if sequence in self._images:
                policy, image = self._images.pop(sequence)
                policy.forget(image)

    def statuses(self) -> list[PolicyStatus]:
        """Of every policy, in order of appearance. Raises AuditError where nobody states an α."""
        return [policy.status() for policy in self._policies.values()]

    def _decision(self, sequence: int, body: Mapping[str, Any]) -> None:
        digest, image, model = str(body["policy_digest"]), str(body["input_digest"]), str(body["model"])
        if digest not in self._policies:
            alpha = self._alpha if self._alpha is not None else body.get("alpha")
            detector = None if alpha is None else Detector(float(alpha))
            self._policies[digest] = _Policy(model, digest, self._every, detector)
        policy = self._policies[digest]
        policy.decision(image, bool(body.get("audit")))
        self._images[sequence] = policy, image


@dataclass(slots=True)
class _Image:
    """An accepted image: decisions of it that still have their content; sequence and outcome of its first verdict."""

    copies: int = 0
    marked: bool = False
    verdict: tuple[int, bool] | None = None


@dataclass(slots=True)
class _Policy:
    """What is known of one policy; without a detector where no α is known."""

    model: str
    digest: str
    every: float
    detector: Detector | None
    images: dict[str, _Image] = field(default_factory=dict)
    marked: int = 0
    judged: int = 0
    wrong: int = 0
    highest: float = 0.0
    alarm: int | None = None

    def decision(self, image: str, marked: bool) -> None:
        found = self.images.setdefault(image, _Image())
        found.copies += 1
        if marked and not found.marked:
            found.marked = True
            self.marked += 1
            self._count(found)

    def verdict(self, image: str, sequence: int, wrong: bool) -> None:
        found = self.images[image]
        if found.verdict is None:  # a second opinion is not a second case
            found.verdict = sequence, wrong
            self._count(found)

    def forget(self, image: str) -> None:
        """A decision's content was deleted. A verdict that was counted stays counted until the log is read anew."""
        found = self.images[image]
        found.copies -= 1
        if not found.copies and found.verdict is None:
            self.marked -= found.marked
            del self.images[image]

    def _count(self, image: _Image) -> None:
        if not image.marked or image.verdict is None or self.detector is None:
            return
        sequence, wrong = image.verdict
        self.judged += 1
        self.wrong += wrong
        self.detector = self.detector.after(wrong)
        self.highest = max(self.highest, self.detector.evidence)
        if self.alarm is None and self.detector.evidence >= self.every:
            self.alarm = sequence

    def status(self) -> PolicyStatus:
        if self.detector is None:
            raise AuditError(f"policy {self.digest[:12]} states no alpha; give one with --alpha")
        return PolicyStatus(
            self.model, self.digest, self.detector.alpha,
            len(self.images), self.marked, self.judged, self.wrong, self.highest, self.alarm,
        )  # fmt: skip


def _accepted(body: Mapping[str, Any]) -> bool:
    """By the final route where it is stated: a client may hold back what the server accepts, which sees pixels only."""
    return bool((body.get("routed") or body).get("route") == "accept")
