"""Whether a policy that stopped keeping its promises is noticed, and one that keeps them is left alone."""

import json

import numpy as np
import pytest
from equipoise_clinic.audit.chain import AuditError, Kind, append
from equipoise_clinic.audit.closing import Closing, open_again
from equipoise_clinic.audit.command import audit
from equipoise_clinic.audit.entry import Entry
from equipoise_clinic.audit.evidence import ODDS, no_evidence, ratios_of_event
from equipoise_clinic.audit.monitor import Monitor, monitor
from equipoise_clinic.audit.status import LIMIT, Watched
from scipy.stats import binom
from typer import Typer
from typer.testing import CliRunner

ALPHA, EVERY = 0.1, 1000.0
APP = Typer()
APP.command()(audit)


def first_warning(wrong, every=EVERY):
    """After how many cases, or None."""
    evidence = no_evidence(len(ODDS))
    for count, each in enumerate(wrong, start=1):
        evidence = evidence.after(ratios_of_event(bool(each), ALPHA))
        if evidence.of_late >= every:
            return count
    return None


def naive_warning(wrong):
    """The same with the correction removed: as soon as more than α of at least ten cases are wrong."""
    counts = np.arange(1, len(wrong) + 1)
    late = np.flatnonzero((counts >= 10) & (np.cumsum(wrong) > ALPHA * counts))
    return int(late[0]) + 1 if len(late) else None


@pytest.mark.parametrize("rate", [ALPHA, ALPHA / 3])
def test_false_warnings_are_as_rare_as_stated(rate):
    """P(warning within n cases) ≤ n/A where the error is at most α; the naive rule breaks that by far."""
    random = np.random.default_rng(0)
    runs, cases = 500, 100
    wrong = random.random((runs, cases)) < rate
    allowed = binom.ppf(0.999, runs, cases / EVERY)
    assert sum(first_warning(run) is not None for run in wrong) <= allowed
    if rate == ALPHA:
        assert sum(naive_warning(run) is not None for run in wrong) > allowed


@pytest.mark.parametrize("good", [0, 300])
def test_too_many_errors_are_noticed_however_late_they_begin(good):
    """At three times α: within 80 audited cases in nearly all runs, after 300 good cases as soon as from the start."""
    random = np.random.default_rng(1)
    delays = []
    for _ in range(60):
        wrong = np.r_[random.random(good) < ALPHA / 3, random.random(300) < 3 * ALPHA]
        found = first_warning(wrong)
        delays.append((found or 10_000) - good)
    assert np.quantile(delays, 0.95) <= 100
    assert np.median(delays) <= 60


def decision(number, *, marked=True, route="accept", policy="aa" * 32, alpha=ALPHA):
    return {
        "format": "equipoise-record/1", "model": "toy", "policy_digest": policy, "input_digest": f"{number:064x}",
        "route": route, "audit": marked and route == "accept", "alpha": alpha,
    }  # fmt: skip


@pytest.fixture
def log(tmp_path):
    return tmp_path / "decisions.jsonl"


def test_only_marked_cases_count_and_each_once(log):
    """Unmarked ones, second opinions, the same image again and other policies are left out; open ones are counted."""
    for number in range(4):
        append(log, Kind.DECISION, decision(number))
    append(log, Kind.DECISION, decision(3))
    append(log, Kind.DECISION, decision(9, marked=False))
    append(log, Kind.DECISION, decision(10, route="review"))
    append(log, Kind.DECISION, decision(0, policy="bb" * 32))
    for sequence, verdict in ((1, "accept"), (2, "correct"), (2, "accept"), (6, "reject"), (7, "reject")):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": verdict})
    first, second = monitor(log)
    assert (first.accepted, first.marked, first.judged, first.wrong, first.waiting) == (5, 4, 2, 1, 2)
    assert (second.accepted, second.judged, second.alarm) == (1, 0, None)
    assert first.document()["monitors"][0]["watched"] == "error"


def test_a_verdict_on_any_copy_of_an_image_counts_once(log):
    """The second may be the only one that is still on a worklist."""
    for _ in range(2):
        append(log, Kind.DECISION, decision(0))
    for sequence in (2, 1):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": "reject"})
    (watch,) = monitor(log)
    assert (watch.accepted, watch.marked, watch.judged, watch.wrong) == (1, 1, 1, 1)


def test_what_the_client_held_back_was_not_accepted(log):
    """The server sees pixels alone; a wrong modality is seen beside it, and such a case is nobody's accepted one."""
    append(log, Kind.DECISION, decision(0))
    append(log, Kind.DECISION, {**decision(1), "routed": {"route": "review", "reason": "another modality"}})
    append(log, Kind.DECISION, {**decision(2), "routed": {"route": "accept", "reason": ""}})
    (watch,) = monitor(log)
    assert (watch.accepted, watch.marked) == (2, 2)


def test_a_verdict_is_of_a_decision_before_it(log):
    """A mistyped number would settle a case that nobody has seen yet."""
    append(log, Kind.DECISION, decision(0))
    words = ["verdict", str(log), "--by", "dr", "--verdict", "reject", "--sequence"]
    for sequence in ("2", "99"):
        with pytest.raises(AuditError, match=f"line {sequence} of .* holds no decision"):
            CliRunner().invoke(APP, [*words, sequence], catch_exceptions=False)
    assert CliRunner().invoke(APP, [*words, "1"], catch_exceptions=False).exit_code == 0
    with pytest.raises(AuditError, match="line 2 "):
        CliRunner().invoke(APP, [*words, "2"], catch_exceptions=False)
    append(log, Kind.VERDICT, {"decision": 4, "by": "dr", "verdict": "reject"})
    append(log, Kind.DECISION, decision(1))
    assert [(each.judged, each.waiting) for each in monitor(log)] == [(1, 1)]


def test_the_command_raises_the_alarm_and_names_the_line(log):
    """Ten wrong ones of ten: exit code 1; a log that was changed is refused instead of believed."""
    for number in range(10):
        append(log, Kind.DECISION, decision(number))
    for sequence in range(1, 11):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": "reject"})
    result = CliRunner().invoke(APP, ["monitor", str(log), "--json"])
    (watch,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert 11 <= watch["alarm"] <= 20 and watch["wrong"] == 10
    (error,) = [each for each in watch["monitors"] if each["watched"] == "error"]
    assert error["warning"] is not None and error["e_value"] > LIMIT
    words = CliRunner().invoke(APP, ["monitor", str(log)]).stdout
    assert "ALARM at line" in words and "WARNING since line" in words
    log.write_text(log.read_text().replace('"verdict":"reject"', '"verdict":"accept"', 1))
    with pytest.raises(AuditError, match="changed"):
        monitor(log)


def test_a_policy_without_alpha_needs_one(log):
    """Nothing is assumed of what a policy guarantees."""
    append(log, Kind.DECISION, decision(0, alpha=None))
    with pytest.raises(AuditError, match="--alpha"):
        monitor(log)
    assert monitor(log, alpha=0.05)[0].alpha == 0.05


def test_a_policy_that_accepts_nothing_needs_none(log):
    """Else the first case of a model without a guarantee would make the log unreadable."""
    append(log, Kind.DECISION, decision(0, alpha=None, route="review"))
    (watch,) = monitor(log)
    assert (watch.alpha, watch.accepted, watch.alarm) == (None, 0, None)


NUMBERS = {"age": {"low": 100.0, "high": 120.0}, "height": {"low": 1.0, "high": 2.0}}
EXPECTED = {"referred": 0.4, "unusual": 0.15, "missed": 0.15}


def stream(count, **body):
    """A monitor after so many accepted and marked cases, each with this body and a verdict.

    Values may be functions of the case's number.
    """
    watcher, line = Monitor(), 0

    def add(kind, content):
        nonlocal line
        line += 1
        watcher.add(Entry(line, "", "", kind, "", content))
        return line

    for number in range(count):
        own = {name: each(number) if callable(each) else each for name, each in body.items()}
        verdict = {
            "verdict": own.pop("verdict", "accept"),
            "volume_ml": own.pop("measured", None),
            "values": own.pop("numbers", None),
        }
        decided = add(Kind.DECISION, {**decision(number), "expected": EXPECTED, **own})
        add(Kind.VERDICT, {"decision": decided, "by": "dr", **verdict})
    (status,) = watcher.statuses()
    return status


def watched(status, name):
    return next((each for each in status.monitors if each.watched is name), None)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (Watched.ERROR, {"verdict": "accept"}, {"verdict": lambda n: "reject" if n % 2 else "accept"}),
        (Watched.REFERRAL, {"route": "accept"}, {"route": "review"}),
        (Watched.DRIFT, {"ood_rank": 0.45}, {"ood_rank": 1.05}),
        (
            Watched.COVERAGE,
            {"volume_ml": {"total": {"low": 1.0, "high": 3.0}}, "measured": {"total": 2.0}},
            {"volume_ml": {"total": {"low": 1.0, "high": 3.0}}, "measured": {"total": 3.5}},
        ),
        (
            Watched.COVERAGE,
            {"values": NUMBERS, "numbers": {"age": 110.0, "height": 1.5}},
            {"values": NUMBERS, "numbers": {"age": 110.0, "height": 2.5}},  # all hold at once, or the interval failed
        ),
    ],
)
def test_each_promise_has_a_monitor_of_its_own(name, good, bad):
    """What is as promised is counted and left alone; what is not alarms under its own name."""
    fine, broken = stream(120, **good), stream(120, **bad)
    assert watched(fine, name).cases == 120 and watched(fine, name).events == 0 and fine.alarm is None
    assert watched(broken, name).events > 0 and broken.alarm is not None
    assert broken.why == name.words


def test_sureness_that_stops_meaning_anything_alarms():
    """The first 300 are right as often as stated, of the next 600 half."""
    random = np.random.default_rng(5)
    right = np.r_[random.random(300) < 0.95, random.random(600) < 0.5]
    digests = [f"{int(n):064x}" for n in random.integers(2**62, size=900)]
    body = {"confidence": 0.95, "alpha": 0.49, "verdict": lambda n: "accept" if right[n] else "reject"}
    body["input_digest"] = lambda n: __import__("hashlib").sha256(digests[n].encode()).hexdigest()
    status = stream(900, **body)
    assert watched(status, Watched.CALIBRATION).cases == 900
    assert watched(status, Watched.CALIBRATION).alarm is not None


def test_only_what_is_known_is_watched():
    """A policy of another version states no rates; verdicts without volumes say nothing of intervals; rejects are no
    referrals; whoever names a seed studies the model."""
    bare = stream(5, expected=None, ood_rank=1.05)
    assert {each.watched for each in bare.monitors} == {Watched.ERROR}
    assert watched(stream(5), Watched.COVERAGE) is None
    assert watched(stream(5, route="reject"), Watched.REFERRAL) is None
    watcher = Monitor()
    watcher.add(Entry(1, "", "", Kind.DECISION, "", {**decision(0), "seed_named": True}))
    assert watcher.statuses() == []


def alarmed(log):
    for number in range(20):
        append(log, Kind.DECISION, decision(number))
    for sequence in range(1, 21):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": "reject"})


def test_an_alarm_closes_accept_until_a_named_person_opens_it(log):
    """It is noted once; a restart, the deletion of the cases, or another policy changes nothing."""
    alarmed(log)
    closing = Closing(log)
    assert closing.why("toy") == "the audit log cannot be read", "before the first look nobody knows"
    closing.look()
    assert "wrong more often" in closing.why("toy") and closing.why("other") == ""
    closing.look()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kind"] for line in lines].count("alarm") == 1
    words = ["redact", str(log), "--before", "2999-01-01", "--reason", "retention"]
    CliRunner().invoke(APP, words, catch_exceptions=False)
    again = Closing(log)
    again.look()
    assert "wrong more often" in again.why("toy"), "before any decision that is still there"
    append(log, Kind.DECISION, decision(30, policy="cc" * 32))
    again.look()
    assert "wrong more often" in again.why("toy"), "a new policy opens nothing"
    for nobody in ({"by": " ", "reason": "x"}, {"by": "dr", "reason": ""}):
        with pytest.raises(AuditError, match="named person"):
            open_again(log, "toy", **nobody)
    with pytest.raises(AuditError, match="'other' is not closed; closed are: toy"):
        open_again(log, "other", "dr.who", "repaired")


def test_opening_begins_anew(log):
    """For every policy of the model."""
    alarmed(log)
    Closing(log).look()
    words = ["open", str(log), "--model", "toy", "--by", "dr.who", "--reason", "scanner repaired"]
    assert "open again" in CliRunner().invoke(APP, words, catch_exceptions=False).stdout
    closing = Closing(log)
    (status,) = closing.look()
    assert closing.why("toy") == "" and status.alarm is None and status.monitors == ()
    with pytest.raises(AuditError, match="is not closed"):
        open_again(log, "toy", "dr.who", "once more")


def test_a_log_that_cannot_be_read_closes_everything(log):
    alarmed(log)
    log.write_text(log.read_text().replace('"verdict":"reject"', '"verdict":"accept"', 1))
    closing = Closing(log)
    with pytest.raises(AuditError):
        closing.look()
    assert closing.why("other") == "the audit log cannot be read"


def test_a_measured_volume_is_part_of_a_verdict(log):
    """Of a class that the decision knows, in mL."""
    append(log, Kind.DECISION, {**decision(0), "volume_ml": {"total": {"low": 1.0, "high": 2.0}}})
    words = ["verdict", str(log), "--sequence", "1", "--by", "dr", "--verdict", "accept", "--volume"]
    for wrong in ("liver=3", "total=-1", "total=much"):
        result = CliRunner().invoke(APP, [*words, wrong])
        assert result.exit_code == 2 and "total" in result.output
    assert CliRunner().invoke(APP, [*words, "total=1.5"], catch_exceptions=False).exit_code == 0
    assert json.loads(log.read_text().splitlines()[-1])["body"]["volume_ml"] == {"total": 1.5}


def test_a_true_number_is_part_of_a_verdict(log):
    """Of a target that the decision knows, in its unit; it may be negative."""
    append(log, Kind.DECISION, {**decision(0), "values": NUMBERS})
    words = ["verdict", str(log), "--sequence", "1", "--by", "dr", "--verdict", "accept", "--value"]
    for wrong in ("weight=3", "age=nan", "age=inf"):
        result = CliRunner().invoke(APP, [*words, wrong])
        assert result.exit_code == 2 and "age" in result.output
    assert CliRunner().invoke(APP, [*words, "age=-1.5"], catch_exceptions=False).exit_code == 0
    assert json.loads(log.read_text().splitlines()[-1])["body"]["values"] == {"age": -1.5}


def test_the_page_shows_each_monitor_and_needs_nothing_from_elsewhere(log, tmp_path):
    alarmed(log)
    page = tmp_path / "monitors.html"
    assert CliRunner().invoke(APP, ["monitor", str(log), "--report", str(page)]).exit_code == 1
    text = page.read_text()
    assert (
        "Alarm at line" in text
        and "<svg" in text
        and "http"
        not in text.replace("http://www.w3.org", "")
        .replace("http://purl.org", "")
        .replace("http://creativecommons.org", "")
    )
    assert "input_digest" not in text and f"{3:064x}" not in text
