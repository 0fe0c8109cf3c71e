"""One bet for each patient, in the order of decisions: the alarm's 5 % hold for verdicts that come as they like.

Both theory tests count runs with an alarm of the error monitor, at a true error of exactly α: at most 1/LIMIT of them,
but for chance. With the correction removed (every image a bet; verdicts as they come) most runs alarm.
"""

import numpy as np
import pytest
from equipoise_clinic.audit.entry import Entry, Kind
from equipoise_clinic.audit.evidence import ODDS, no_evidence, ratios_of_event
from equipoise_clinic.audit.monitor import Monitor
from equipoise_clinic.audit.status import LIMIT, Watched
from equipoise_clinic.audit.stream import Outcome, Stream
from scipy.stats import binom

ALPHA, RUNS = 0.1, 500
ALLOWED = binom.ppf(0.999, RUNS, 1.0 / LIMIT)


class Log:
    """Feeds a monitor with decisions and verdicts."""

    def __init__(self):
        self.monitor, self.line = Monitor(), 0

    def _add(self, kind, body):
        self.line += 1
        self.monitor.add(Entry(self.line, "", "", kind, "", body))
        return self.line

    def decide(self, number, patient=None, **further):
        named = {"patient": patient} if patient else {}
        return self._add(Kind.DECISION, {
            "model": "toy", "policy_digest": "aa" * 32, "input_digest": f"{number:064x}", "route": "accept",
            "audit": True, "alpha": ALPHA, **named, **further,
        })  # fmt: skip

    def judge(self, decision, wrong, **further):
        verdict = "reject" if wrong else "accept"
        return self._add(Kind.VERDICT, {"decision": decision, "by": "dr", "verdict": verdict, **further})

    def delete(self, *sequences):
        return self._add(Kind.DELETION, {"sequences": list(sequences)})

    def error(self):
        (status,) = self.monitor.statuses()
        return next((each for each in status.monitors if each.watched is Watched.ERROR), None)


@pytest.mark.parametrize("named", [True, False])
def test_images_of_one_patient_are_one_bet(named):
    """Twenty patients of four images each; one in ten patients is wrong throughout. Without their names, four bets."""
    random, alarms = np.random.default_rng(0), 0
    for _ in range(RUNS):
        log = Log()
        for patient, wrong in enumerate(random.random(20) < ALPHA):
            for image in range(4):
                log.judge(log.decide(4 * patient + image, f"{patient:x}" if named else None), wrong)
        alarms += log.error().alarm is not None
        assert log.error().cases == (20 if named else 80)
    assert alarms <= ALLOWED if named else alarms > 5 * ALLOWED


@pytest.mark.parametrize("in_order", [True, False])
def test_the_most_uncertain_are_judged_first(in_order):
    """A backlog of 40 cases, of which those that are wrong are judged first: as they come, six errors in a row."""
    random, alarms = np.random.default_rng(1), 0
    for _ in range(RUNS):
        wrong = random.random(40) < ALPHA
        worst_first = np.argsort(~wrong, kind="stable").tolist()
        if in_order:
            log = Log()
            lines = [log.decide(number) for number in range(40)]
            for case in worst_first:
                log.judge(lines[case], wrong[case])
            alarms += log.error().alarm is not None
        else:
            evidence, highest = no_evidence(len(ODDS)), 0.0
            for case in worst_first:
                evidence = evidence.after(ratios_of_event(bool(wrong[case]), ALPHA))
                highest = max(highest, evidence.e_value)
            alarms += highest >= LIMIT
    assert alarms <= ALLOWED if in_order else alarms > 5 * ALLOWED


def test_in_the_end_the_order_of_verdicts_makes_no_difference():
    """Nor does a case that is deleted unjudged; and what is far too often wrong alarms in any order."""
    random = np.random.default_rng(2)
    wrong = random.random(80) < 4 * ALPHA
    found = []
    for order in (np.arange(80), random.permutation(80), np.argsort(wrong, kind="stable")):
        log = Log()
        lines = []
        for number in range(80):
            lines.append(log.decide(number))
            if number == 40:
                gone = log.decide(1000)
        for case in order:
            log.judge(lines[case], wrong[case])
        before = log.error().e_value
        log.delete(gone)
        assert log.error().e_value > before  # it counted as right while it waited
        found.append(log.error())
    assert len({(each.cases, each.events) for each in found}) == 1
    assert [each.e_value for each in found] == pytest.approx([found[0].e_value] * 3)
    assert all(each.alarm is not None for each in found)


def test_a_stream_keeps_no_more_than_it_needs():
    """What is settled is one number; a case that never gets a verdict keeps what follows open."""
    stream = Stream(ALPHA, 1000.0, LIMIT)
    for line in range(1000):
        stream.add(line % 20 == 0, line)
    assert not stream._open and not stream._after and (stream.cases, stream.events) == (1000, 50)
    never, optional = stream.place(), stream.place(Outcome.OPTIONAL)
    before = stream.evidence
    stream.add(False, 1001)
    assert stream.evidence.cases == before.cases + 2  # the one that waits, and the new one
    stream.put(optional, True, 1002)
    stream.put(never, None, 1003)
    assert not stream._open and stream.evidence.cases == before.cases + 2
    assert (stream.cases, stream.events) == (1002, 51)


def test_calibration_counts_no_case_before_its_turn():
    """Which of two cases came first decides; one without a verdict holds up the others until it is deleted."""
    log = Log()
    lines = [log.decide(number, confidence=0.9) for number in range(3)]

    def counted():
        (status,) = log.monitor.statuses()
        return next((each.cases for each in status.monitors if each.watched is Watched.CALIBRATION), 0)

    log.judge(lines[2], False)
    assert counted() == 0
    log.judge(lines[0], False)
    assert counted() == 1
    log.delete(lines[1])
    assert counted() == 2


def test_opening_leaves_behind_what_was_decided_before():
    """Verdicts of cases from before the repair say nothing of after it."""
    log = Log()
    lines = [log.decide(number) for number in range(30)]
    for line in lines[:15]:
        log.judge(line, True)
    assert log.error().alarm is not None
    log._add(Kind.OPENING, {"policy": "aa" * 32, "model": "toy", "by": "dr", "reason": "repaired"})
    for line in lines[15:]:
        log.judge(line, True)
    assert log.error() is None
    log.judge(log.decide(99), False)
    assert log.error().cases == 1 and log.error().alarm is None
