"""`adapt`: images and labelled cases of a new site → its policy, a report, and what is known of it so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise_core.canonical import digest_of
from equipoise_core.case import Model
from equipoise_core.contract import Contract
from equipoise_core.loading import load_model
from equipoise_core.policy import Policy, PolicyError, load_policy
from equipoise_core.stages import FIRST_PASS, Stage

from ..calibration.calibrate import LIMITS, measure_all, table_file, write_whole
from ..calibration.cases import Labelled, Measured, check_scale, shown
from ..calibration.choose import one_each
from ..calibration.growing import error_bounds, labels_until_open
from ..calibration.reading import labelled_cases
from ..calibration.table import CaseTable, TableError, load_table
from ..publish.repository import renew_configurations
from .decide import Verdict, begin, changed, decide_site
from .errors import AdaptationError
from .report import render_report
from .site import Known, Site, load_site

STATE, POLICY, REPORT = "state.json", "policy.json", "report.html"
"""What lies in a site's folder."""


@dataclass(frozen=True)
class AdaptedSite:
    """A site's policy and what it rests on.

    Attributes:
        skipped: why labelled cases did not count → how many.
        installed: whether the policy is in force in the repository now.
    """

    site: Site
    verdict: Verdict
    folder: Path
    skipped: Mapping[str, int]
    installed: bool

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        site, verdict = self.site, self.verdict
        policy, growth = verdict.policy, verdict.growth
        return {
            "site": site.name,
            "policy": policy.digest,
            "source": site.source.digest,
            "accept": verdict.why,
            "open": policy.guarantee is not None,
            "alpha": site.alpha,
            "delta": site.delta,
            "images": len(site.images),
            "labelled": len(site.cases),
            "skipped": dict(self.skipped),
            "effective_size": verdict.shift.effective_size,
            "calibration_cases": len(verdict.shift.weights),
            "covered": verdict.shift.covered,
            "separation": verdict.shift.separation,
            "volume": verdict.volume,
            "outline": verdict.outline,
            "dropped": list(site.dropped),
            "candidates": [
                {
                    "stages": [stage.document() for stage in stages],
                    "accepts_images": float(verdict.accepts[k]),
                    "estimated_error": None if error != error else error,
                    "estimated_on": size,
                    "accepted": (taken := int(growth.accepted[-1, k]) if len(growth.accepted) else 0),
                    "errors": (wrong := int(growth.errors[-1, k]) if len(growth.errors) else 0),
                    "error_bounds": list(error_bounds(wrong, taken, site.delta)),
                    "certified": bool(len(growth.certified) and growth.certified[-1, k]),
                    "labels_until_open": labels_needed(site, verdict, k),
                }
                for k, (stages, (error, size)) in enumerate(zip(site.candidates, verdict.errors, strict=True))
            ],
            "report": str(self.folder / REPORT),
            "state": str(self.folder / STATE),
            "installed": self.installed,
        }


def labels_needed(site: Site, verdict: Verdict, candidate: int) -> int | None:
    """Further labelled cases until a candidate may open, if from now on it and the stricter ones err a quarter as often
    as α and accept as many cases as of the images; a forecast. None: never, or more than can be said."""
    growth, needed = verdict.growth, 0
    for k in range(candidate + 1):
        wrong = taken = 0
        if len(growth.accepted):
            if growth.refuted[-1, k]:
                return None
            if growth.certified[-1, k]:
                continue
            wrong, taken = int(growth.errors[-1, k]), int(growth.accepted[-1, k])
        share = float(verdict.accepts[k])
        accepted = labels_until_open(site.alpha, site.delta, site.alpha / 4.0, wrong, taken)
        if accepted is None or share <= 0.0:
            return None
        needed = max(needed, round(accepted / share))
    return needed


def adapt(
    name: str,
    *,
    repository: str | Path,
    folder: str | Path,
    site: str | None = None,
    data: str | Path | None = None,
    labelled: str | Path | None = None,
    alpha: float | None = None,
    delta: float | None = None,
    spacing: tuple[float, ...] | None = None,
    label_values: str | Mapping[str, Sequence[str | int]] | None = None,
    install: bool = False,
    progress: bool = False,
) -> AdaptedSite:
    """Makes a site's policy from another site's: everything goes to review until labelled cases of the site allow more.

    The first call takes images of the site without labels: they fix what is typical there, and by how much the other
    site's calibration cases still count. Later calls take labelled cases as they arrive, and further images, which can
    close what labels opened, and never open anything.

    Args:
        name: the public model, calibrated at the other site.
        repository: the model repository, with `NAME.calibration.json`, which `calibrate` wrote.
        folder: of the site; keeps what is known of it between calls.
        site: its name; the folder's by default.
        data: images of the site; labels beside them are not looked at.
        labelled: labelled cases of the site, as for `calibrate`: consecutive ones or drawn at random, never chosen.
        alpha, delta: error among accepted cases at most alpha, but for a chance of delta over all calls; the other
            site's by default. Fixed by the first call.
        spacing: mm per axis for files that state none.
        label_values: as for `calibrate`.
        install: puts the policy into the repository. One that accepts less than the site's own there is put in at once.
        progress: whether bars show how far it is, on stderr.

    Raises:
        AdaptationError: nothing was written.
        ContractError, CalibrationError, InvalidRequest, SamplerFailure, OSError: the model or a case cannot be used or
            read; nothing was written.
    """
    repository, folder = Path(repository), Path(folder)
    for key, value in {"alpha": alpha, "delta": delta}.items():
        low, high = LIMITS[key]
        if value is not None and not low <= value <= high:
            raise AdaptationError(f"{key} is {value:g}; expected {low:g} to {high:g}")
    published = load_model(repository / name / "1")
    contract = published.contract
    if contract.targets:
        raise AdaptationError(
            f"{name} is a regression, which adapt does not know: calibrate it on the site's own cases"
        )
    model = replace(published, policy=None)
    known = load_site(folder / STATE) if (folder / STATE).exists() else None
    source = known.source if known else _source(repository / name / "1" / POLICY, contract, folder)
    table = _table(table_file(repository, name), source)
    measured = _Measuring(model, repository, source, table, spacing, progress)
    if known is None:
        if data is None:
            raise AdaptationError(
                f"{folder} knows nothing of the site yet: give --data, images of the site; they need no labels"
            )
        goal = source.guarantee
        images = measured.images(Path(data))
        known = begin(
            contract, source, table, site or folder.resolve().name, images,
            alpha or (goal.alpha if goal else table.goals.alpha), delta or (goal.delta if goal else table.goals.delta),
        )  # fmt: skip
    else:
        _check_same(known, contract, site, alpha, delta)
        if data is not None and known.closed is None:
            why = changed(known, measured.images(Path(data)))
            known = replace(known, closed=why, looks=known.looks + 1)
    skipped: dict[str, int] = {}
    if labelled is not None:
        cases = labelled_cases(Path(labelled), contract, spacing, values=label_values)
        known, skipped = _with_labels(contract, known, table, cases, measured)
    verdict = decide_site(contract, known, table)
    install = install or closes(verdict.policy, published.in_force)
    found = AdaptedSite(known, verdict, folder, skipped, install)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / STATE, known.dumps(), mode=0o600)
    write_whole(folder / POLICY, verdict.policy.dumps())
    if found.installed:
        write_whole(repository / name / "1" / POLICY, verdict.policy.dumps())
        renew_configurations(repository, name)
    (folder / REPORT).write_text(render_report(contract, found.document(), known, verdict, table), encoding="utf-8")
    return found


def closes(policy: Policy, in_force: Policy | None) -> bool:
    """Whether a site's new policy must replace the one in force at once: that accepts what was refuted since."""
    if in_force is None or in_force.adapted is None or policy.adapted is None:
        return False
    if in_force.adapted.site != policy.adapted.site:
        return False
    new, old = ([(stage.samples, stage.score) for stage in each.stages] for each in (policy, in_force))
    if policy.guarantee is None or new != old:
        return True
    limits = zip(policy.stages, in_force.stages, strict=True)
    return any(_limit(stage) < _limit(before) for stage, before in limits)


def _limit(stage: Stage) -> float:
    return -math.inf if stage.accept_up_to is None else stage.accept_up_to


def _source(path: Path, contract: Contract, folder: Path) -> Policy:
    try:
        source = load_policy(path)
    except PolicyError as error:
        raise AdaptationError(f"{path}: {error}; calibrate the model at another site first") from error
    if source.model_digest != contract.model_digest:
        raise AdaptationError(f"{path} is for another model; calibrate this one first")
    if source.adapted is not None:
        raise AdaptationError(
            f"{path} is adapted to {source.adapted.site} already; give the folder with that site's {STATE} ({folder} "
            "has none), or the policy of the site where the model was calibrated"
        )
    if source.ood_distance is None:
        raise AdaptationError(f"{path} says nothing of how images differ; calibrate the model anew")
    return source


def _table(path: Path, source: Policy) -> CaseTable:
    if not path.exists():
        raise AdaptationError(
            f"{path} is missing: `equipoise calibrate` writes it beside the models, and it travels with them; get it "
            "from where the model was calibrated, or calibrate anew"
        )
    try:
        table = load_table(path)
    except TableError as error:
        raise AdaptationError(f"{path}: {error}; get it anew from where the model was calibrated") from error
    if table.policy_digest != source.digest:
        raise AdaptationError(
            f"{path} belongs to policy {table.policy_digest[:12]}, this is {source.digest[:12]}: the model was "
            "calibrated again; take both files from the same calibration, and begin anew in an empty folder"
        )
    return table


def _check_same(known: Site, contract: Contract, site: str | None, alpha: float | None, delta: float | None) -> None:
    if known.source.model_digest != contract.model_digest:
        raise AdaptationError(
            f"{known.name}: what is known is of another model; begin anew in an empty folder with this one's policy"
        )
    given = {"site": (site, known.name), "alpha": (alpha, known.alpha), "delta": (delta, known.delta)}
    for key, (now, before) in given.items():
        if now is not None and now != before:
            raise AdaptationError(
                f"--{key} {now}: the first call fixed {before}, and the promise rests on that; leave it out"
            )


@dataclass(frozen=True)
class _Measuring:
    """Runs cases through the stages of the source's policy."""

    model: Model
    repository: Path
    source: Policy
    table: CaseTable
    spacing: tuple[float, ...] | None
    progress: bool

    def __call__(self, cases: Sequence[Labelled]) -> list[Measured]:
        contract = self.model.contract
        check_scale(contract, cases)
        stages = tuple(stage.samples for stage in self.source.stages)
        if FIRST_PASS in stages and contract.first_pass is None:
            raise AdaptationError("the policy begins with a first pass, which this model does not have")
        return measure_all(self.model, self.repository, cases, self.table.acceptable_dice, stages, self.progress)

    def images(self, data: Path) -> list[Measured]:
        """One image of each patient, without labels."""
        return self(one_each(labelled_cases(data, self.model.contract, self.spacing, labels=False)))


def _with_labels(
    contract: Contract, site: Site, table: CaseTable, cases: Sequence[Labelled], measuring: _Measuring
) -> tuple[Site, dict[str, int]]:
    """The site with those of the cases that are further evidence, and how many are none, by reason.

    Within a call they count in the order of their images' digests, which does not depend on labels.
    """
    call = site.calls + 1
    seen = {known.patient for known in site.cases}
    fixed = {case.image_digest: f"image of --data, which fixed what is typical at {site.name}" for case in site.images}
    fixed |= {case.image_digest: "calibration case of the other site" for case in table.cases}
    fixed |= {known.case.image_digest: "image that counted before" for known in site.cases}
    skipped: dict[str, int] = {}

    def skip(why: str) -> None:
        skipped[why] = skipped.get(why, 0) + 1

    fresh = []
    for case in one_each(cases):
        if site.patient(case.patient) in seen:
            skip("of a patient who counted before")
        else:
            fresh.append(case)
    several = len(cases) - len({case.patient for case in cases})
    if several:
        skipped["further image of a patient"] = several
    added = []
    for case, measured in zip(fresh, measuring(fresh), strict=True):
        why = fixed.get(measured.image_digest)
        if why is not None:
            skip(why)
            continue
        fixed[measured.image_digest] = "image that counted before"
        plain = replace(measured, name=measured.image_digest[:12], patient="", group="")
        added.append(Known(plain, site.patient(case.patient), call, shown(contract, case.truth)))
    added.sort(key=lambda known: digest_of(["order", known.case.image_digest]))
    return replace(site, cases=(*site.cases, *added)), skipped
