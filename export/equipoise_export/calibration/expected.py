"""How often a watched event may happen in service while cases are like the calibration cases."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise_core.decision import Route
from equipoise_core.monitoring import DOUBT, UNUSUAL
from scipy.stats import beta


def expected_rates(
    routes: Sequence[Route], candidates: float, missed: tuple[int, int] | None, distance: bool
) -> dict[str, float]:
    """Event → the rate that it has at most, each with confidence 1 − `DOUBT`; see `Monitoring.expected`.

    The thresholds that were chosen are allowed for, since the bounds hold for all candidates at once. The bounds on
    what is typical and the widening of intervals come from the same cases, which is not allowed for: each holds back as
    many new cases on average.

    Args:
        routes: of the calibration cases, under the thresholds that were chosen.
        candidates: thresholds that could have been chosen on these cases.
        missed: of the accepted ones with an interval, those whose truth lies outside, and how many there are.
        distance: whether the policy knows an out-of-distribution distance.
    """
    doubt = DOUBT / candidates
    rates = {"referred": most_events(len(routes) - routes.count(Route.ACCEPT), len(routes), doubt)}
    if missed is not None and missed[1]:
        rates["missed"] = most_events(*missed, doubt)
    if distance:
        rates |= unusual_rate(len(routes))
    return rates


def unusual_rate(cases: int) -> dict[str, float]:
    """Of images beyond nine tenths of so many."""
    return {"unusual": most_outside(cases, max(1, int(UNUSUAL * cases)))}


def most_events(events: int, cases: int, doubt: float) -> float:
    """Upper confidence bound of a rate of which `events` of `cases` were seen (Clopper & Pearson 1934)."""
    return 1.0 if events >= cases else float(beta.ppf(1.0 - doubt, events + 1, cases - events))


def most_outside(cases: int, place: int, doubt: float = DOUBT) -> float:
    """The share of new exchangeable numbers above the `place`-th smallest of `cases`, at most, but for `doubt`.

    The share below is at least Beta(place, cases + 1 − place) over calibrations (Vovk 2012).
    """
    return float(1.0 - beta.ppf(doubt, place, cases + 1 - place))
