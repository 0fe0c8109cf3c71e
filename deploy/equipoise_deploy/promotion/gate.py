"""The checks that a release must pass before it is put into service; all of them run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_core.contract import Contract
from equipoise_core.loading import load_model
from equipoise_core.policy import Policy

from ..releases.release import REPORT, Release


@dataclass(frozen=True)
class Check:
    """One check of the gate.

    Attributes:
        found: what there is.
        remedy: what to do where it did not pass.
        waived: it did not pass, and an operator accepted that; the reason.
    """

    name: str
    passed: bool
    found: str
    remedy: str = ""
    waived: str = ""

    @property
    def holds(self) -> bool:
        return self.passed or bool(self.waived)

    def document(self) -> dict[str, Any]:
        return dict(vars(self))


def inspect(folder: Path, release: Release, without_policy: bool) -> Iterator[Check]:
    """Proof and policy of a verified release.

    Args:
        without_policy: a model without a policy may go into service; all its cases go to review.
    """
    model = load_model(folder / release.name / "1")
    yield _proof(folder, model.contract)
    if model.in_force is not None:
        yield _policy(model.in_force, (folder / REPORT).is_file())
        return
    why = "it was made for another model" if model.policy else model.why_no_policy
    yield Check(
        "policy",
        False,
        f"none in force: {why}",
        "calibrate it (`equipoise calibrate`) and publish again, or promote it --without-policy (all goes to review)",
        "accepted with --without-policy: everything goes to review" if without_policy else "",
    )


def _proof(folder: Path, contract: Contract) -> Check:
    """Each sampler has a `proof.json` about its own file in which every property passed."""
    remedy = "export the model again with this version of Equipoise, which writes a proof about this file"
    properties = 0
    for sampler in contract.files:
        path = folder / sampler.name / "1" / "proof.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            about, checks = document.get("model_digest"), document["checks"]
            failed = [str(check["name"]) for check in checks if check["passed"] is not True]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Check("export proof", False, f"{sampler.name}: {path.name} cannot be read: {error}", remedy)
        if about != sampler.digest:
            subject = f"is about {about}" if about else "does not name its model.onnx"
            return Check(
                "export proof", False, f"{sampler.name}: the proof {subject}, expected {sampler.digest}", remedy
            )
        if failed or not checks:
            return Check("export proof", False, f"{sampler.name}: not proven: {', '.join(failed) or 'nothing'}", remedy)
        properties += len(checks)
    return Check(
        "export proof", True, f"{properties} properties of {len(contract.samplers)} sampler(s), for these files"
    )


def _policy(policy: Policy, report: bool) -> Check:
    """The policy has figures, and they are possible."""
    rule = policy.guarantee
    kept = "with a report" if report else "without a report (`equipoise publish --report`)"
    if rule is None:
        return Check("policy", True, f"for this model; it accepts nothing; {kept}")
    if not (0 <= rule.errors <= rule.accepted <= rule.cases and rule.cases > 0 and rule.rule):
        return Check(
            "policy",
            False,
            f"impossible figures: {rule.errors} errors among {rule.accepted} accepted of {rule.cases} cases",
            "calibrate the model again",
        )
    promise = f"error ≤ {rule.alpha:g} with confidence {1 - rule.delta:g}"
    return Check(
        "policy",
        True,
        f"for this model; {rule.accepted} of {rule.cases} cases accepted, {rule.errors} wrong; {promise}; {kept}",
    )
