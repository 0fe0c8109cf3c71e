"""The papers: statements of fact, each with the file that says so. None of them claims conformity with anything.

What a source does not say is listed under `missing`, in place of a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from equipoise_client import __version__
from equipoise_clinic.audit.status import FALSE_ALARM, Watched
from equipoise_core.contract import Contract

from .sources import Log, Sources, releases_of

_CARD = "contract.json"
_RULES = "policy.json"


@dataclass(frozen=True)
class Statement:
    """One fact.

    Attributes:
        what: its short name.
        words: the fact.
        source: the file that says so; empty: it is missing, and `words` say what would state it.
    """

    what: str
    words: str
    source: str

    def document(self) -> dict[str, Any]:
        return {**vars(self), "missing": not self.source}


@dataclass(frozen=True)
class Paper:
    """One of the papers.

    Attributes:
        key: its name in JSON.
        about: what it is for, in one sentence.
    """

    key: str
    title: str
    about: str
    statements: tuple[Statement, ...]


def papers(sources: Sources) -> tuple[Paper, ...]:
    """All of them, in the order of a file."""
    return (
        Paper(
            "model_card",
            "Model card",
            "What the model takes and answers, what was proven of it, and what its policy promises for whom.",
            (*_model(sources), *_promises(sources)),
        ),
        Paper(
            "change_control_plan",
            "Predetermined change control plan",
            "Which changes may go into service, by which test, and which did.",
            (*_changes(), *_changed(sources)),
        ),
        Paper(
            "record_keeping",
            "Record keeping",
            "What is logged, for how long, how a change of the log shows, and who oversees the service.",
            tuple(_records(sources)),
        ),
        Paper(
            "monitoring_plan",
            "Monitoring plan",
            "What is watched in service, what an alarm means, what it does, and what is known so far.",
            tuple(_watching(sources)),
        ),
        Paper(
            "risks",
            "Hazards and software",
            "What can go wrong, what stops it and which test shows that; what the software is made of.",
            (*_hazards(sources), *_software(sources)),
        ),
    )


def _missing(what: str, how: str) -> Statement:
    return Statement(what, f"not known: {how}", "")


def _model(sources: Sources) -> Iterator[Statement]:
    contract = sources.model.contract
    yield Statement("name", contract.name, _CARD)
    yield Statement("model digest", f"SHA-256 {contract.model_digest}", _CARD)
    answers = ", ".join(contract.classes) or ", ".join(f"{each.name} ({each.unit})" for each in contract.targets)
    yield Statement("task", f"{contract.task.value}: {answers}", _CARD)
    yield Statement("input", _input(contract), _CARD)
    steps = ", ".join(f"{name} {value}" for name, value in contract.preprocessing.document().items())
    yield Statement("preprocessing", steps, _CARD)
    yield from _subject(contract)
    sites = ", ".join(f"{site.name} ({site.kind.value}, p {site.p:g})" for site in contract.sites)
    yield Statement("what is random", sites or "nothing: the network is deterministic", _CARD)
    for name, proof in sources.proofs.items():
        passed = [each for each in proof.get("checks", ()) if each.get("passed") is True]
        versions = ", ".join(f"{package} {version}" for package, version in dict(proof.get("versions", {})).items())
        yield Statement(
            f"proof of {name}",
            f"{len(passed)} of {len(proof.get('checks', ()))} properties hold on {proof.get('images')} images and "
            f"{proof.get('samples')} samples, under the same masks as PyTorch within {proof.get('tolerance')}; "
            f"{versions}",
            f"{name}/1/proof.json",
        )


def _input(contract: Contract) -> str:
    size = ", ".join(map(str, contract.spatial))
    found = f"{contract.image_channels} channel(s), size [{size}], at most {list(contract.maximum)}"
    if contract.spacing is not None:
        found += "; spacing in mm per axis " + ", ".join(f"{low:g} to {high:g}" for low, high in contract.spacing)
    return found


def _subject(contract: Contract) -> Iterator[Statement]:
    subject = getattr(contract, "subject", None)
    stated = {name: value for name, value in vars(subject).items() if value} if subject is not None else {}
    if stated:
        words = "; ".join(f"{name.replace('_', ' ')}: {_listed(value)}" for name, value in stated.items())
        yield Statement("whom it was made for", words, _CARD)
    else:
        yield _missing("whom it was made for", "export with --body-part, --view, --ages")


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else str(value)


def _promises(sources: Sources) -> Iterator[Statement]:
    policy = sources.model.in_force
    if policy is None:
        why = sources.model.why_no_policy or "it was made for another model"
        yield Statement("policy", f"none in force: {why}. Every case goes to review", "the published pair")
        return
    yield Statement("policy digest", f"SHA-256 {policy.digest}", _RULES)
    yield Statement("population", policy.population, _RULES)
    guarantee = policy.guarantee
    if guarantee is None:
        yield Statement("accept", "no threshold could be certified: nothing is accepted", _RULES)
    else:
        yield Statement("accept", guarantee.rule, _RULES)
        yield Statement(
            "what counts as wrong", f"{guarantee.loss}; {guarantee.errors} of {guarantee.accepted} accepted", _RULES
        )
    stages = "; then ".join(
        "the first pass" if each.samples == 0 else f"{each.samples} samples" for each in policy.stages
    )
    yield Statement("stages", stages, _RULES)
    yield Statement("review for what is unusual", policy.typical.rule, _RULES)
    yield Statement("reject", policy.suitable.rule, _RULES)
    for what, rule in (
        ("volume intervals", policy.volume), ("sensitive labels", policy.sensitive), ("outline", policy.outline),
    ):  # fmt: skip
        if rule is not None:
            yield Statement(what, rule.rule, _RULES)
    further = {
        "numbers": policy.interval.rule if policy.interval else "",
        "groups": policy.groups.rule if policy.groups else "",
        "groups without a certificate": ", ".join(policy.groups.without) if policy.groups else "",
        "site": policy.adapted.rule if policy.adapted else "",
        "used in spite of findings": policy.despite,
    }
    for what, words in further.items():
        if words:
            yield Statement(what, words, _RULES)
    yield Statement("calibration cases", f"SHA-256 of their digests {policy.calibration_digest}", _RULES)


def _changes() -> Iterator[Statement]:
    place = "equipoise promote"
    yield Statement(
        "what may change", "the weights, the policy, or the code that decides, as one release under one digest", place
    )
    yield Statement(
        "proof",
        "a release is refused unless each sampler's proof is about this very file and every property holds",
        f"{place}: check `export proof`",
    )
    yield Statement(
        "policy",
        "a release without a policy in force is refused, unless it is said that every case may go to review",
        f"{place}: check `policy`",
    )
    yield Statement(
        "comparison",
        "old and new version answer the same recent cases; a release that would accept a case that an expert saw "
        "before is refused, unless a named person accepts that with a reason",
        f"{place}: check `shadow comparison`",
    )
    yield Statement(
        "signature", "with --trust, a release that is not signed by that key is neither promoted nor served", place
    )
    yield Statement(
        "going back", "`equipoise rollback` puts the version before back, with the code that decided then", place
    )


def _changed(sources: Sources) -> Iterator[Statement]:
    log = sources.releases
    if log is None:
        yield _missing("what was changed", "give --store, whose log lists each release that was promoted or refused")
        return
    yield from _whole(log)
    lines = releases_of(log, sources.name)
    for entry in lines:
        body: Mapping[str, Any] = entry.body or {}
        reason = body.get("reason") or body.get("accept_changes")
        words = (
            f"{body.get('action')} of version {body.get('version')} (before: {body.get('before')}), by {body.get('by')}"
        )
        yield Statement(
            f"{entry.at[:10]}",
            words + (f"; reason: {reason}" if reason else ""),
            f"{log.path.name} line {entry.sequence}",
        )
    if not lines:
        yield Statement("what was changed", f"no release of {sources.name} was promoted", log.path.name)


def _whole(log: Log) -> Iterator[Statement]:
    words = f"{log.lines} lines, the chain is whole; last hash {log.anchor}"
    if log.faults:
        words = f"DAMAGED: {'; '.join(log.faults[:3])}"
    yield Statement("the log", words, f"equipoise audit verify {log.path.name}")


def _records(sources: Sources) -> Iterator[Statement]:
    yield Statement(
        "what is logged",
        "of each decision: digests of image, model, policy and code, seed, samples, scores, thresholds, route, reason "
        "and what computed it; from the gateway a keyed digest by which a patient is known again; verdicts, releases, "
        "alarms and openings. No pixels, and no name or ID of a patient",
        "equipoise_core/record.py, audit log",
    )
    yield Statement(
        "order", "a result is sent after its decision stands in the log", "equipoise gateway: journal before delivery"
    )
    log = sources.decisions
    if log is None:
        yield _missing("the log in service", "give --audit, or --gateway whose log exists")
    else:
        yield from _whole(log)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(log.kinds.items()))
        yield Statement("its content", f"{counts}; from {log.first} to {log.last}", log.path.name)
    gateway = sources.gateway
    if gateway is None:
        yield _missing("retention", "give --gateway, whose settings state it")
        yield _missing("who oversees", "give --gateway with `oversight` set")
        return
    yield Statement("images", f"deleted {gateway.keep_input_hours:g} hours after their study", "gateway.toml")
    yield Statement(
        "results",
        f"what the database holds of a study that is done with: {gateway.keep_results_days:g} days",
        "gateway.toml",
    )
    kept = f"contents are deleted after {gateway.keep_audit_days:g} days, the chain stays"
    yield Statement("audit log", kept if gateway.keep_audit_days else "kept without limit", "gateway.toml")
    if gateway.oversight:
        yield Statement("who oversees", gateway.oversight, "gateway.toml")
    else:
        yield _missing("who oversees", "set `oversight` in gateway.toml: a role and how to reach it")


def _watching(sources: Sources) -> Iterator[Statement]:
    policy, place = sources.model.in_force, "equipoise audit monitor"
    for watched in Watched:
        yield Statement(f"monitor of {watched.value}", f"alarms where {watched.words}", place)
    yield Statement(
        "false alarms",
        f"while all is as it was at calibration, any monitor of a policy ever alarms with probability at most "
        f"{FALSE_ALARM:.0%}, over all time (e-processes)",
        place,
    )
    if policy is not None and policy.monitoring is not None:
        yield Statement(
            "audit",
            f"{policy.monitoring.audit_share:.0%} of accepted cases are marked at random for an expert's verdict",
            _RULES,
        )
        for name, rate in policy.monitoring.expected.items():
            yield Statement(f"expected rate of {name}", f"at most {rate:.1%}", _RULES)
    gateway = sources.gateway
    if gateway is None:
        yield _missing("what an alarm does", "give --gateway: `close_on_alarm` says whether it closes accept")
    else:
        closes = (
            "an alarm closes accept of what the gateway asks, until a named person opens it; other clients are held by "
            "`equipoise serve --close-on-alarm`"
            if gateway.close_on_alarm
            else "an alarm is shown and logged; the gateway does not close accept by itself"
        )
        yield Statement("what an alarm does", closes, "gateway.toml")
    log = sources.decisions
    if log is None:
        yield _missing("state", "give --audit")
        return
    for status in log.statuses:
        state = f"ALARM at line {status.alarm}: {status.why}" if status.alarm is not None else "no alarm"
        yield Statement(
            f"policy {status.policy[:12]}",
            f"{state}; {status.accepted} accepted, {status.marked} marked, {status.judged} judged, "
            f"{status.wrong} wrong",
            log.path.name,
        )
    if not log.statuses:
        yield Statement("state", f"no decision of {sources.name} under a policy so far", log.path.name)


def _hazards(sources: Sources) -> Iterator[Statement]:
    if sources.hazards_file is None:
        yield _missing("hazards", "give --hazards, the HAZARDS.md of this version")
    for hazard, control, shown in sources.hazards:
        yield Statement(hazard, f"{control}. Shown by: {shown.replace('`', '')}", "HAZARDS.md")


def _software(sources: Sources) -> Iterator[Statement]:
    yield Statement("Equipoise", f"version {__version__}", "this installation")
    if sources.sbom is None:
        yield _missing("bill of materials", "give --sbom, the sbom.cdx.json of the bundle that was installed")
        return
    components = sources.sbom.get("components", ())
    yield Statement(
        "bill of materials",
        f"CycloneDX {sources.sbom.get('specVersion')}, {len(components)} components, "
        f"{sources.sbom.get('serialNumber')}",
        str(sources.sbom_file and sources.sbom_file.name),
    )
