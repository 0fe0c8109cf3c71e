"""`equipoise promote` and `rollback`: decide which release is in service, log the decision, switch."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..errors import ReleaseError
from ..releases.release import Release, verify_release
from ..releases.store import Generation, Store
from .gate import Check, inspect
from .shadow import Comparison, compare

Compare = Callable[[str, Path, Path, Path, str | None, str | None], Comparison]


@dataclass(frozen=True)
class PromotionRequest:
    """What an operator asks for and takes responsibility for.

    Attributes:
        trust: public key that the release must be signed with, or None.
        cases: folder of recent cases to compare both versions on.
        spacing: mm of cases that do not state their own.
        at_most: number of cases that may go from review to accept.
        accept_changes: the reason why more may, or why nothing is compared.
        without_policy: a model without a policy may be promoted.
        by: who; by default the user of this machine.
        group: of the cases, where the policy is certified by group.
    """

    trust: Path | None = None
    cases: Path | None = None
    spacing: str | None = None
    at_most: int = 0
    accept_changes: str | None = None
    without_policy: bool = False
    by: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What was decided, and what is in service now.

    Attributes:
        before: version that was in service, or None.
        generation: the new one, or None where the gate refused or there was nothing to do.
    """

    name: str
    version: int
    before: int | None
    checks: tuple[Check, ...]
    comparison: Comparison | None
    generation: Generation | None

    @property
    def passed(self) -> bool:
        return all(check.holds for check in self.checks)


def find_version(store: Store, wanted: str) -> tuple[str, int]:
    """`NAME` (its newest release) or `NAME@VERSION`. Raises ReleaseError."""
    name, _, version = wanted.partition("@")
    versions = store.versions(name)
    if not versions:
        known = ", ".join(store.names()) or "no model"
        raise ReleaseError(f"{store.path} has no release of {name!r}; it holds {known}; see `equipoise publish`")
    if not version:
        return name, versions[-1]
    if not version.isdigit() or int(version) not in versions:
        raise ReleaseError(f"{name} has no release {version!r}; there are {', '.join(map(str, versions))}")
    return name, int(version)


def promote(
    store: Store, wanted: str, request: PromotionRequest = PromotionRequest(), run: Compare = compare
) -> Outcome:
    """Puts a release into service if its checks hold; the log has the decision either way.

    Returns an outcome without a generation where a check fails, or the release is in service already. Raises
    TamperedError where it is not as published.
    """
    name, version = find_version(store, wanted)
    folder = store.folder(name, version)
    release = verify_release(folder, request.trust)
    in_service = store.generation().models.get(name)
    before = in_service.version if in_service else None
    if before == version:
        return Outcome(name, version, before, (), None, None)
    checks, comparison = tuple(inspect(folder, release, request.without_policy)), None
    if before is not None:
        earlier = store.folder(name, before)
        verify_release(earlier, request.trust)
        if request.cases is not None and all(check.holds for check in checks):
            comparison = run(name, earlier, folder, request.cases, request.spacing, request.group)
        checks += (_shadow(comparison, request),)
    else:
        checks += (
            Check("shadow comparison", True, "the first version of this model: there is nothing to compare with"),
        )
    return _decide(store, Outcome(name, version, before, checks, comparison, None), release, request)


def rollback(store: Store, name: str, request: PromotionRequest = PromotionRequest()) -> Outcome:
    """Puts the version back that was in service before this one; it has passed the gate before.

    A second rollback goes back further, never forward. Raises ReleaseError where there is no earlier one.
    """
    with store.locked():
        generation = store.generation()
        chosen = generation.models.get(name)
        if chosen is None:
            raise ReleaseError(f"{name} is not in service; there {_are(generation)}")
        if not chosen.history:
            raise ReleaseError(f"{name} {chosen.version} is the first version that was in service; promote another one")
        *history, version = chosen.history
        release = verify_release(store.folder(name, version), request.trust)
        store.log_decision("rollback", name, release, chosen.version, request.by, reason=request.accept_changes)
        models = {**generation.models, name: store.served_release(name, version, tuple(history))}
        done = store.switch(models)
    return Outcome(name, version, chosen.version, (), None, done)


def reload(server: str) -> str:
    """Makes a running `equipoise serve` reload STORE/current: process id, or name of a systemd unit.

    It drains, starts the releases in STORE/current, and returns to the old ones where these fail their first check.
    """
    try:
        if not server.isdigit():
            subprocess.run(["systemctl", "reload", server], check=True, capture_output=True, text=True)
            return f"unit {server} was asked to reload"
        process = psutil.Process(int(server))
        if "serve" not in process.cmdline():
            raise ReleaseError(
                f"process {server} is not `equipoise serve`; the release is in place, reload the server yourself"
            )
        process.send_signal(signal.SIGHUP)
    except (OSError, psutil.Error, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise ReleaseError(
            f"{server} cannot be asked to reload: {said}; the release is in place, reload the server yourself"
        ) from error
    return f"process {server} was asked to reload"


def _shadow(comparison: Comparison | None, request: PromotionRequest) -> Check:
    if comparison is None:
        return Check(
            "shadow comparison",
            False,
            "not done: both versions have to be compared on recent cases",
            "give --cases DIR, or say with --accept-changes REASON why it need not be",
            request.accept_changes or "",
        )
    found = (
        f"{len(comparison.pairs)} cases, {comparison.changed} routes changed, {comparison.loosened} of them to accept "
        f"(at most {request.at_most})"
    )
    fine = comparison.loosened <= request.at_most
    remedy = "have an expert look at these cases; then raise --at-most, or give --accept-changes REASON"
    return Check("shadow comparison", fine, found, "" if fine else remedy, "" if fine else request.accept_changes or "")


def _decide(store: Store, outcome: Outcome, release: Release, request: PromotionRequest) -> Outcome:
    with store.locked():
        generation = store.generation()
        now = generation.models.get(outcome.name)
        if (now.version if now else None) != outcome.before:
            raise ReleaseError(f"meanwhile somebody else promoted {outcome.name}; look at it and promote again")
        store.log_decision(
            "promote" if outcome.passed else "refused",
            outcome.name,
            release,
            outcome.before,
            request.by,
            checks=[check.document() for check in outcome.checks],
            shadow=outcome.comparison.summary() if outcome.comparison else None,
            reason=request.accept_changes,
        )
        if not outcome.passed:
            return outcome
        history = () if now is None else (*now.history, now.version)
        chosen = store.served_release(outcome.name, outcome.version, history)
        done = store.switch({**generation.models, outcome.name: chosen})
    return replace(outcome, generation=done)


def _are(generation: Generation) -> str:
    served = ", ".join(f"{name} {chosen.version}" for name, chosen in sorted(generation.models.items()))
    return f"are {served}" if served else "is nothing in service"
