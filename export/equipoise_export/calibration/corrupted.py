"""What becomes of probabilities, recalibrated and not, and of routes, when images get worse in ways that have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from equipoise_core.assessment import Assessment
from equipoise_core.canonical import digest_of
from equipoise_core.case import Case, Model
from equipoise_core.decision import Route
from equipoise_core.sampling import RunSampler, assess
from rich.console import Console
from rich.progress import track

from ..progress import phase
from .cases import Labelled, chosen_voxels, is_wrong, true_classes
from .choose import ChosenPolicy, one_each
from .corruptions import corruptions_of
from .figures import Judged, exact_share
from .gain import LEVEL, Gain, brier_scores, paired_gain
from .metrics import Floats
from .scored import exclusive
from .sums import RESAMPLED, calibration_sums

MOST, LEAST = 64, 8
"""Cases of each corruption: as many as take half as long, all corruptions together, as measuring all cases did, within
these bounds."""

METRICS = ("ece", "smooth_ece")
"""Those of `RESAMPLED` that are given; the Brier score comes with its gain."""

AS_THEY_ARE = "as they are"


@dataclass(frozen=True)
class Corrupted:
    """Some cases under one corruption.

    Attributes:
        name: of the corruption, with its strength.
        accepted, wrong, error: by the policy, how many of those were wrong, and their share with its exact interval.
        raw: of the mean over samples, by `METRICS`.
        recalibrated: the same after recalibration; empty where there is none.
        brier: of the mean over samples, mean over cases.
        gain: how much lower recalibration makes it, with an interval; all corruptions' intervals hold together with
            95 % (Bonferroni). None where there is none.
    """

    name: str
    cases: int
    accepted: int
    wrong: int
    error: Mapping[str, float | None]
    raw: Mapping[str, float]
    recalibrated: Mapping[str, float]
    brier: float
    gain: Gain | None

    @property
    def corrupted(self) -> bool:
        return self.name != AS_THEY_ARE


@phase("making images worse")
def under_corruptions(
    model: Model,
    chosen: ChosenPolicy,
    cases: Sequence[tuple[Labelled, Judged]],
    samplers: Sequence[RunSampler],
    first_pass: RunSampler | None,
    acceptable_dice: float,
    measured: int,
    quiet: bool = True,
) -> tuple[Corrupted, ...]:
    """Empty for a regression, which has no probabilities.

    Args:
        model: without a policy.
        cases: pilot cases, on which no recalibration was fitted, as they were judged; of each patient one is taken.
        samplers, first_pass: as for `assess`.
        measured: how many cases were measured in all.
    """
    contract = model.contract
    if contract.targets:
        return ()
    ways = corruptions_of(contract)
    kept = {id(each) for each in one_each([case for case, _ in cases])}
    ordered = sorted((of for of in cases if id(of[0]) in kept), key=lambda of: digest_of(["corrupted", of[0].name]))
    some = ordered[: min(MOST, max(LEAST, measured // (2 * len(ways))))]
    level = 1.0 - (1.0 - LEVEL) / (len(ways) + 1)
    plain = [
        _Answer(of.route == "accept", of.step.loss > 0, of.step.probabilities, of.calibrated, of.case.hits)
        for _, of in some
    ]
    found = [_row(AS_THEY_ARE, chosen, plain, level)]
    served = replace(model, policy=chosen.policy)
    work = [(name, worse, case) for name, worse in ways for case, _ in some]
    answers: dict[str, list[_Answer]] = {name: [] for name, _ in ways}
    for name, worse, case in track(work, f"{contract.name}: worse images", console=Console(stderr=True), disable=quiet):
        random = np.random.default_rng(int(digest_of([name, case.name])[:16], 16))
        asked = Case(worse(case.image, random), spacing=case.spacing, group=case.group or None)
        answers[name].append(_answer(assess(served, asked, samplers, first_pass=first_pass), case, acceptable_dice))
    return (*found, *(_row(name, chosen, those, level) for name, those in answers.items()))


@dataclass(frozen=True)
class _Answer:
    """Probabilities and hits `[m, K]`, as `Step` and `Measured` have them."""

    accepted: bool
    wrong: bool
    raw: Floats
    recalibrated: Floats
    hits: Floats


def _answer(answer: Assessment, case: Labelled, acceptable_dice: float) -> _Answer:
    contract = answer.model.contract
    chosen = chosen_voxels(contract, case.image, answer.seed)

    def at_those(maps: Floats) -> Floats:
        return maps.reshape(len(contract.classes), -1).T[chosen].astype(np.float64)

    return _Answer(
        answer.decision.route is Route.ACCEPT,
        is_wrong(answer, case.truth, acceptable_dice),
        at_those(answer.uncertainty.mean),
        at_those(answer.calibrated),
        true_classes(contract, case.truth)[chosen],
    )


def _row(name: str, chosen: ChosenPolicy, answers: Sequence[_Answer], level: float) -> Corrupted:
    hits, raw, after = [[getattr(each, of) for each in answers] for of in ("hits", "raw", "recalibrated")]
    gain, one_of = None, exclusive(chosen.contract)
    before = brier_scores(raw, hits)
    if chosen.recalibrated is not None:
        gain = paired_gain(chosen.recalibrated.value, before, brier_scores(after, hits), level)
    accepted = [each for each in answers if each.accepted]
    wrong = sum(each.wrong for each in accepted)
    return Corrupted(
        name,
        len(answers),
        len(accepted),
        wrong,
        exact_share(wrong, len(accepted)),
        _figures(raw, hits, one_of),
        {} if gain is None else _figures(after, hits, one_of),
        float(before.mean()),
        gain,
    )


def _figures(given: Sequence[Floats], hits: Sequence[Floats], one_of: bool) -> dict[str, float]:
    sums = calibration_sums(list(zip(given, hits, strict=True)), one_of)
    return {name: float(RESAMPLED[name](sums, np.ones((1, len(hits))))[0]) for name in METRICS}


def verdict(rows: Sequence[Corrupted]) -> str:
    """In a line: where the recalibrated probability is worse than the raw mean; "" where nothing was looked at."""
    worse = [(row, row.gain) for row in rows if row.corrupted and row.gain is not None and row.gain.mean < 0.0]
    if not rows:
        return ""
    if rows[0].gain is None:
        return "No recalibration is used: the figures are those of the mean over samples"
    if not worse:
        return "The recalibrated probability is worse than the mean over samples under none of the corruptions"
    clear, other = ([row.name for row, gain in worse if (gain.high < 0.0) is sure] for sure in (True, False))
    said = [f"clearly under {', '.join(clear)}"] if clear else []
    said += [f"perhaps under {', '.join(other)} (the interval includes 0)"] if other else []
    return f"The recalibrated probability is worse than the mean over samples {' and '.join(said)}"
