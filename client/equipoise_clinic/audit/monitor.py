"""Does a policy keep its promises in service? Read from the log: decisions, and experts' verdicts.

Each policy is watched on its own, by five monitors:

    error         accepted cases are wrong more often than α                       verdicts on marked cases
    coverage      true volumes or numbers lie outside their intervals too often    what these verdicts measured
    calibration   how sure the model is and how often it is right drift apart      verdicts on marked cases
    referral      more cases go to review than among the calibration cases         every decision
    drift         more images lie beyond nine tenths of the calibration cases      every decision

Of the accepted cases a random share is marked (`record["audit"]`), and for the first three only these count: experts
look at others for reasons of their own, so their verdicts are no fair sample. What a rate may be, the record says
(`expected`, from the policy); a policy that does not say so is not watched for it. Of each patient one image counts,
the first (`patient` of the record, a pseudonym), and cases count in the order in which they were decided (`stream`).

A monitor **warns** where the evidence of late is high (on average not before `every` cases without a reason). It
**alarms** where there was enough evidence ever: with probability at most `FALSE_ALARM`, over all monitors and all time.
Where that was asked for, an alarm closes the model's `accept` (`closing`), until a named person opens it again; then
the monitors begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .chain import entries
from .entry import AuditError, Entry, Kind, Verdict
from .policy import Judged, WatchedPolicy
from .status import PolicyStatus


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
    Whoever named a seed or a number of samples studies the model: that is no case.

    Args:
        every: cases between false warnings, on average at least.
        alpha: instead of the policies' own.
    """

    def __init__(self, every: float = 1000.0, alpha: float | None = None) -> None:
        self._every, self._alpha = every, alpha
        self._policies: dict[str, WatchedPolicy] = {}
        self._images: dict[int, tuple[WatchedPolicy, str]] = {}  # sequence of an accepted decision → its image

    def add(self, entry: Entry) -> None:
        """The next line. Raises AuditError where it lacks what it has to say; then nothing was changed."""
        body = entry.body or {}
        try:
            if entry.kind is Kind.DECISION and body.get("policy_digest") and not _study(body):
                self._decision(entry.sequence, body)
            elif entry.kind is Kind.VERDICT and body.get("decision") in self._images:
                policy, image = self._images[body["decision"]]
                wrong = Verdict(body["verdict"]).wrong
                policy.verdict(image, Judged(entry.sequence, wrong, _measured(body)))
            elif entry.kind in (Kind.ALARM, Kind.OPENING):
                digest, model, reason = (str(body[name]) for name in ("policy", "model", "reason"))
                noted = self._policies.setdefault(digest, WatchedPolicy(model, digest, self._every))
                for policy in self._policies.values():
                    if policy is noted or (entry.kind is Kind.OPENING and policy.model == model):
                        policy.note(entry, reason)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AuditError(f"line {entry.sequence} is no {entry.kind.value} that can be counted") from error
        for sequence in body.get("sequences", ()) if entry.kind is Kind.DELETION else ():
            if sequence in self._images:
                policy, image = self._images.pop(sequence)
                policy.forget(image, entry.sequence)

    def statuses(self) -> list[PolicyStatus]:
        """Of every policy, in order of appearance. Raises AuditError where nobody states an α."""
        return [policy.status() for policy in self._policies.values()]

    def _decision(self, sequence: int, body: Mapping[str, Any]) -> None:
        digest, image, model = str(body["policy_digest"]), str(body["input_digest"]), str(body["model"])
        accepted = _route(body) == "accept"
        policy = self._policies.setdefault(digest, WatchedPolicy(model, digest, self._every))
        if not policy.known:
            alpha = self._alpha if self._alpha is not None else body.get("alpha")
            policy.learn(None if alpha is None else float(alpha), dict(body.get("expected") or {}))
        policy.seen_image(image, sequence, body)
        if accepted:
            policy.decision(image, bool(body.get("audit")), sequence, body)
            self._images[sequence] = policy, image


def _route(body: Mapping[str, Any]) -> Any:
    """The final route where it is stated: a client may hold back what the server accepts, which sees pixels only."""
    return (body.get("routed") or body).get("route")


def _study(body: Mapping[str, Any]) -> bool:
    return bool(body.get("seed_named") or body.get("samples_named"))


def _measured(body: Mapping[str, Any]) -> dict[str, float]:
    """What an expert found: volumes in mL, numbers in their targets' units."""
    stated = {**(body.get("volume_ml") or {}), **(body.get("values") or {})}
    return {str(name): float(number) for name, number in stated.items()}
