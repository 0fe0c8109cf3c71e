"""What the gateway's database promises."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace

import pytest
from equipoise_clinic.audit import verify
from equipoise_clinic.gateway.audit_log import write_out
from equipoise_clinic.gateway.intake import Intake
from equipoise_clinic.gateway.observe import Log
from equipoise_clinic.gateway.store import Kept, Store

from ...support.studies import read, study


def test_an_image_is_taken_once(desk):
    images = study()
    first = desk.received(images)
    again = desk.received(images)
    assert (first.revision, again) == (len(images), first)


def test_a_study_is_not_due_before_it_has_been_quiet(desk):
    images = study(count=2)
    for image in images:
        desk.intake.take(image, 1000.0, "test")
    found, waits = desk.store.studies.next()
    assert found is None and 990 < waits <= 1000
    desk.store.studies.settle(str(read(images[0]).StudyInstanceUID))
    assert desk.store.studies.next()[0] is not None


def test_an_analysis_does_not_count_when_images_came_meanwhile(desk):
    images = study()
    seen = desk.received(images[:-1])
    desk.received(images[-1:])
    assert not desk.store.studies.end(seen, "analysed")
    found, _ = desk.store.studies.next()
    assert found is not None and found.revision == len(images)


def test_a_result_of_fewer_images_than_there_are_is_not_kept(desk):
    """Its objects would have been on their way before the rest was looked at."""
    images = study()
    seen = desk.received(images[:-1])
    whole = desk.received(images[-1:])
    assert desk.decided(seen, route="accept") is Kept.STALE
    assert desk.store.cases.all() == [] and desk.dispatched() == []
    assert desk.decided(whole, case="d" * 16, route="accept") is Kept.NEW
    assert desk.dispatched() == ["delivering"]


def test_a_line_that_a_crash_tore_is_written_again(desk):
    """However much of it was there: the fragment is set aside, and the decision gets its line."""
    desk.decided(desk.received())
    (note,) = desk.store.journal.pending()
    write_out(desk.store, desk.audit)
    line = desk.audit.read_bytes()
    for cut in range(1, len(line), 7):
        desk.audit.write_bytes(line[:-cut])
        desk.audit.with_name(f"{desk.audit.name}.lock").write_bytes(b"0")  # where a line was being written
        desk.store._connection.execute("UPDATE journal SET written = 0, sequence = NULL")
        assert write_out(desk.store, desk.audit) == 1
        assert not list(verify(desk.audit))
        assert [json.loads(each)["body"]["entry"] for each in desk.audit.read_text().splitlines()] == [note.entry]


def test_a_log_that_cannot_be_written_ends_nothing():
    """On a full disk behind `2>>`, or after its reader has gone, the gateway's parts go on."""
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    for _ in range(3):
        Log(full).warning("part waits", part="analysis")
    with pytest.raises(OSError, match="No space"):
        full.close()
    Log(full).warning("part waits", part="analysis")


def test_the_same_result_twice_is_one(desk):
    received, objects = desk.received(), study(count=3)
    assert desk.decided(received, objects) is Kept.NEW
    assert desk.decided(received, objects, case="d" * 16) is Kept.SAME
    assert len(desk.store.cases.all()) == 1


def test_another_version_of_the_model_gives_another_result(desk):
    received = desk.received()
    desk.decided(received)
    assert desk.decided(received, case="d" * 16, version="e" * 64) is Kept.NEW


@pytest.mark.parametrize(
    ("route", "handling", "state"),
    [("accept", {}, "delivering"), ("review", {}, "review"), ("review", {"review": "send"}, "delivering"),
     ("accept", {"accept": "hold"}, "review"), ("reject", {}, "review")],
)  # fmt: skip
def test_routes_go_where_the_configuration_says(desk, route, handling, state):
    desk.decided(desk.received(), route=route)
    assert desk.dispatched(**handling) == [state]


def test_nothing_leaves_before_the_audit_log_has_the_decision(desk):
    desk.decided(desk.received(), route="accept")
    assert desk.store.cases.dispatch({"accept": "send"}) == []
    assert desk.store.outbox.next()[0] is None
    assert desk.dispatched() == ["delivering"]
    assert desk.store.outbox.next()[0] is not None


def test_objects_leave_in_order_and_the_last_completes_the_case(desk):
    desk.decided(desk.received(), route="accept")
    desk.dispatched()
    numbers, complete = [], []
    while (item := desk.store.outbox.next()[0]) is not None:
        numbers.append(item.number)
        complete.append(desk.store.outbox.sent(item))
    assert (numbers, complete) == ([1, 2, 3], [False, False, True])
    assert [case.state for case in desk.store.cases.all()] == ["delivered"]


@pytest.mark.parametrize(
    ("verdict", "state"), [("accept", "delivering"), ("reject", "withheld"), ("correct", "withheld")]
)
def test_a_verdict_releases_or_withholds_and_is_logged_once(desk, verdict, state):
    desk.decided(desk.received())
    desk.dispatched()
    (case,) = desk.store.cases.worklist()
    assert desk.store.cases.judge(case.key, case.fingerprint, verdict, "dr.who", 0)
    assert not desk.store.cases.judge(case.key, case.fingerprint, "accept", "dr.no", 0)
    assert desk.store.outbox.next()[0] is None, "released before the verdict was in the audit log"
    write_out(desk.store, desk.audit)
    assert (desk.store.outbox.next()[0] is not None) == (state == "delivering")
    (after,) = desk.store.cases.all()
    assert (after.state, desk.store.cases.worklist()) == (state, [])
    *_, last = [json.loads(line) for line in desk.audit.read_text().splitlines()]
    assert last["kind"] == "verdict"
    assert {key: last["body"][key] for key in ("by", "decision", "verdict")} == {
        "by": "dr.who", "decision": 1, "verdict": verdict,
    }  # fmt: skip


def test_a_verdict_is_for_the_result_that_was_seen(desk):
    desk.decided(desk.received())
    desk.dispatched()
    assert not desk.store.cases.judge("c" * 16, "0" * 64, "accept", "dr.who", 0)
    assert desk.store.cases.worklist()


def test_a_line_that_was_appended_before_a_crash_is_not_appended_again(desk):
    desk.decided(desk.received())

    class Killed(BaseException):
        pass

    def die(point: str) -> None:
        if point == "journal.appended":
            raise Killed

    with pytest.raises(Killed):
        write_out(desk.store, desk.audit, die)
    assert write_out(desk.store, desk.audit) == 1
    assert write_out(desk.store, desk.audit) == 0
    assert len(desk.audit.read_text().splitlines()) == 1
    assert not list(verify(desk.audit))
    assert desk.store.journal.decision("c" * 16) == 1


def test_late_images_replace_what_was_not_sent(desk):
    received = desk.received()
    desk.decided(received)
    desk.dispatched()
    assert desk.decided(received, case="d" * 16) is Kept.REPLACED
    states = {case.key: case.state for case in desk.store.cases.all()}
    assert states == {"c" * 16: "rejected", "d" * 16: "analysed"}
    assert desk.dispatched() == ["review"]
    assert [case.key for case in desk.store.cases.worklist()] == ["d" * 16]


def test_late_images_make_a_new_version_of_what_was_sent_and_call_a_person(desk):
    received = desk.received()
    desk.decided(received, route="accept")
    desk.dispatched()
    while (item := desk.store.outbox.next()[0]) is not None:
        desk.store.outbox.sent(item)
    assert desk.store.cases.worklist() == []
    assert desk.decided(received, case="d" * 16) is Kept.STALE, "a new version has to say what it replaces"
    assert desk.decided(received, case="e" * 16, replaces="c" * 16, route="accept") is Kept.LATE
    (case,) = desk.store.cases.worklist()
    assert (case.key, case.late, case.state) == ("c" * 16, True, "delivered")
    assert desk.dispatched() == ["delivering"]
    current = desk.store.cases.earlier(received, case.series, case.model, case.version)
    assert (current.key, current.replaces) == ("e" * 16, "c" * 16)


def test_images_that_are_again_as_they_were_make_the_sent_result_the_current_one(desk):
    """One UID never names two contents: what was sent once is not made a second time."""
    received, objects = desk.received(), study(count=3)
    desk.decided(received, objects, route="accept")
    desk.dispatched()
    assert desk.decided(received, case="d" * 16, replaces="c" * 16) is Kept.LATE
    assert desk.decided(received, objects, case="e" * 16) is Kept.SAME
    assert {case.key: case.state for case in desk.store.cases.all()} == {"c" * 16: "delivering", "d" * 16: "rejected"}
    assert not desk.store.cases.get("c" * 16).late


@pytest.mark.parametrize("dispatched", [False, True])
def test_nothing_is_sent_while_more_of_its_study_waits_to_be_analysed(desk, dispatched):
    """What it says may be of a half series; if the whole gives the same, it goes on."""
    images, objects = study(), study(count=3)
    received = desk.received(images[:-1])
    desk.decided(received, objects, route="accept")
    if dispatched:
        assert desk.dispatched() == ["delivering"]
    desk.store.studies.end(received, "analysed")
    whole = desk.received(images[-1:])
    assert desk.dispatched() == [] and desk.store.outbox.next() == (None, float("inf"))
    assert desk.decided(whole, objects, case="d" * 16, route="accept") is Kept.SAME
    assert desk.dispatched() == ([] if dispatched else ["delivering"])
    assert desk.store.outbox.next()[0].case == "c" * 16, "also while another model's series still waits"


@pytest.mark.parametrize("verdict", ["accept", "reject"])
def test_what_is_not_sent_of_a_late_result_waits_for_a_person(desk, verdict):
    received = desk.received()
    desk.decided(received, route="accept")
    desk.dispatched()
    assert desk.decided(received, case="d" * 16, replaces="c" * 16, route="accept") is Kept.LATE
    desk.dispatched()
    while (item := desk.store.outbox.next()[0]) is not None:
        assert item.case == "d" * 16
        desk.store.outbox.sent(item)
    (case,) = desk.store.cases.worklist()
    assert desk.store.cases.judge(case.key, case.fingerprint, verdict, "dr.who", 0)
    write_out(desk.store, desk.audit)
    assert (desk.store.outbox.next()[0] is not None) == (verdict == "accept")


@pytest.mark.parametrize("sent", [False, True])
def test_a_result_that_the_whole_study_does_not_give_again_holds_no_longer(desk, sent):
    """Its series came again as another modality, or a rule fits another series now: no model says anything of it."""
    images = study()
    received = desk.received(images[:-1])
    desk.decided(received, route="accept")
    if sent:
        desk.dispatched()
        desk.store.outbox.sent(desk.store.outbox.next()[0])
    desk.store.studies.end(received, "analysed")
    whole = desk.received(images[-1:])
    desk.decided(whole, case="d" * 16, model="other", route="accept")
    desk.store.studies.end(whole, "analysed")
    first, other = desk.store.cases.get("c" * 16), desk.store.cases.get("d" * 16)
    assert (first.state, first.late) == (("delivering", True) if sent else ("rejected", False))
    assert (other.state, other.late) == ("analysed", False)
    if sent:
        assert desk.store.cases.judge(first.key, first.fingerprint, "reject", "dr.who", 0)
        desk.intake.take(images[0][:-10], 0.0, "test")
        again = desk.received([*images[1:], study(count=1, StudyInstanceUID=received.uid)[0]])
        desk.store.studies.end(again, "analysed")
        assert desk.store.cases.get("c" * 16).verdict == "reject", "it is late already: nobody is asked twice"


def test_a_decision_without_objects_waits_for_a_person_whatever_its_route(desk):
    desk.decided(desk.received(), [], fingerprint="f" * 64, route="accept")
    assert desk.dispatched(review="send") == ["review"]
    (case,) = desk.store.cases.worklist()
    assert desk.store.cases.judge(case.key, case.fingerprint, "accept", "dr.who", 0)
    assert desk.store.cases.get(case.key).state == "withheld", "there is nothing to send"


def test_a_series_of_which_an_image_came_damaged_is_incomplete_until_a_good_one_comes(desk):
    images = study()
    series, lost = str(read(images[0]).SeriesInstanceUID), str(read(images[-1]).SOPInstanceUID)
    received = desk.received(images[:-1])
    desk.store.studies.end(received, "analysed")
    assert desk.store.studies.damaged("x" * 16, received.uid, series, lost, 0.0)
    assert not desk.store.studies.damaged("x" * 16, received.uid, series, lost, 0.0), "again: nothing new"
    marked = desk.store.studies.get(received.key)
    assert marked.state == "receiving" and desk.store.studies.missing(marked, series)
    assert not desk.store.studies.missing(marked, "1.2.3"), "another series is whole"
    whole = desk.received(images[-1:])
    assert not desk.store.studies.missing(whole, series)
    assert not desk.store.studies.damaged("x" * 16, received.uid, series, lost, 0.0), "a good one is here"


def test_an_archive_that_gives_less_than_it_counts_is_believed(desk):
    received = desk.received()
    desk.store.studies.absent(received.uid, "1.2.3", 8)
    assert desk.store.studies.missing(received, "1.2.3") == ("its archive has 8 images more than it has given so far",)
    desk.store.studies.absent(received.uid, "1.2.3", 0)
    assert desk.store.studies.missing(received, "1.2.3") == ()


def test_a_study_that_is_rejected_later_takes_its_unsent_result_along(desk):
    images = study()
    received = desk.received(images[:-1])
    desk.decided(received)
    desk.store.studies.end(received, "analysed")
    later = desk.received(images[-1:])
    assert later.state == "receiving"
    desk.store.studies.end(later, "rejected", "several slices lie at one position")
    assert [case.state for case in desk.store.cases.all()] == ["rejected"]
    assert desk.store.outbox.next()[0] is None


def test_a_study_that_cannot_be_taken_whole_is_not_analysed_until_more_comes(desk):
    images = study()
    received = desk.received(images[:2])
    desk.store.studies.refuse("x" * 16, received.uid, "an image cannot be fetched from the archive")
    assert desk.store.studies.next()[0] is None
    assert desk.store.studies.get(received.key).reason.startswith("an image")
    desk.store.studies.refuse("y" * 16, "1.2.3.4", "an image cannot be fetched from the archive")
    assert sorted(each.state for each in desk.store.studies.all()) == ["rejected", "rejected"]
    assert desk.received(images).state == "receiving"


def test_images_that_were_deleted_can_be_taken_again_once_more_of_their_study_comes(desk):
    images = study()
    received = desk.received(images[:-1])
    desk.store.studies.end(received, "analysed")
    (expired,) = desk.store.studies.expired(received.heard + 1, received.heard + 1)
    assert desk.intake.forget(expired)
    assert not (desk.directory / "incoming" / received.key).exists()
    assert desk.received(images[:-1]).state == "analysed", "a second push changes nothing"
    partial, series = desk.received(images[-1:]), str(read(images[0]).SeriesInstanceUID)
    assert partial.state == "receiving"
    assert desk.store.studies.deleted(partial, series) == len(images) - 1
    assert desk.store.studies.deleted(partial, "1.2.3") == 0, "another series is whole without them"
    whole = desk.received(images)
    assert desk.store.studies.deleted(whole, series) == 0
    assert len(list((desk.directory / "incoming" / received.key).iterdir())) == len(images)


def test_images_of_a_database_of_an_earlier_version_may_be_of_any_series(desk):
    """Which they were of was not noted then."""
    images = study()
    received = desk.received(images[:-1])
    desk.store.studies.end(received, "analysed")
    desk.store.close()
    with sqlite3.connect(desk.directory / "gateway.db") as old:
        old.execute("DROP INDEX one_result")
        for table in ("absent", "refusals"):
            old.execute(f"DROP TABLE {table}")
        for table, columns in (
            ("instances", ("series", "deleted", "digest", "damaged")),
            ("outbox", ("sop_class", "series")),
            ("cases", ("replaces", "revision")),
        ):
            for column in columns:
                old.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        old.execute("ALTER TABLE outbox RENAME TO parcels")
        old.execute("PRAGMA user_version = 0")
    old.close()
    desk.store = Store(desk.directory / "gateway.db")
    desk.intake = Intake(desk.spool, desk.store, desk.log, desk.metrics, lambda point: None)
    assert desk.received(images[:-1]) == replace(received, state="analysed")
    assert desk.intake.forget(desk.store.studies.get(received.key))
    partial = desk.received(images[-1:])
    assert desk.store.studies.deleted(partial, str(read(images[0]).SeriesInstanceUID)) == len(images) - 1


def test_the_images_of_a_study_that_still_waits_are_not_deleted(desk):
    received = desk.received()
    assert desk.store.studies.expired(received.heard + 1, received.heard + 1) == []
    assert not desk.intake.forget(received)


def test_the_worklist_has_the_most_uncertain_first_and_what_has_no_score_before_all(desk):
    for number, score in enumerate([0.1, 0.9, None, 0.5]):
        desk.decided(desk.received(study()), study(count=1), case=f"{number:016x}", score=score)
    assert [case.score for case in desk.store.cases.worklist()] == [None, 0.9, 0.5, 0.1]


@pytest.mark.parametrize(("marked", "listed"), [(True, 1), (False, 0)])
def test_accepted_cases_are_listed_where_they_are_drawn_for_an_audit(desk, marked, listed):
    desk.decided(desk.received(), route="accept", marked=marked)
    assert len(desk.store.cases.worklist()) == listed


def test_what_is_held_is_always_listed(desk):
    """Also what was accepted, where the configuration holds that: else nobody would ever release it."""
    desk.decided(desk.received(), route="accept")
    assert desk.dispatched(accept="hold") == ["review"]
    assert len(desk.store.cases.worklist()) == 1


def test_everything_is_there_after_a_restart(desk):
    desk.decided(desk.received())
    other = Store(desk.directory / "gateway.db")
    try:
        assert other.cases.all() == desk.store.cases.all()
        assert other.studies.all() == desk.store.studies.all()
        assert other.counts() == desk.store.counts()
    finally:
        other.close()


def test_dead_letters_are_kept_until_somebody_says_so(desk):
    desk.decided(desk.received(), route="accept")
    desk.dispatched()
    item, _ = desk.store.outbox.next()
    desk.store.outbox.give_up(item, "object 1 was refused 8 times: status 0xa900")
    while (item := desk.store.outbox.next()[0]) is not None:
        assert not desk.store.outbox.sent(item), "the others are sent; the case is not complete for that"
    assert [case.reason for case in desk.store.cases.worklist()] == ["object 1 was refused 8 times: status 0xa900"]
    assert desk.store.revive() == 1
    assert desk.store.outbox.next()[0].number == 1


def test_a_study_that_was_given_up_keeps_its_images_so_that_it_can_be_tried_again(desk):
    """Given up after a day, its images are a day old at once. They are not kept for ever."""
    received, other = desk.received(), desk.received(study())
    desk.store.studies.end(received, "dead", "analysis failed for 24 hours: ServerFailure")
    desk.store.studies.end(other, "analysed")
    later = received.heard + 1000
    assert [each.key for each in desk.store.studies.expired(later, given_up=0.0)] == [other.key]
    assert {each.key for each in desk.store.studies.expired(later, given_up=later)} == {received.key, other.key}
    assert desk.store.revive() == 1 and desk.store.studies.next()[0].key == received.key


def test_a_study_that_is_done_with_is_forgotten_and_no_other(desk):
    """Not one that still waits, whose images are here, whose result is not sent, or about which a person is asked."""
    done, open_, held = (desk.received(study()) for _ in range(3))
    waiting = desk.received(study())
    for received, key, route in ((done, "a" * 16, "accept"), (open_, "b" * 16, "review"), (held, "d" * 16, "accept")):
        desk.decided(received, study(count=3), key, route=route)
        desk.store.studies.end(received, "analysed")
    desk.dispatched(review="send")
    while (item := desk.store.outbox.next()[0]) is not None:
        desk.store.outbox.sent(item)
    later = waiting.heard + 1.0
    assert desk.store.purge(later) == 0, "its images are here"
    assert desk.intake.forget(desk.store.studies.get(done.key)) and desk.intake.forget(
        desk.store.studies.get(open_.key)
    )
    assert desk.store.purge(done.heard - 1.0) == 0, "too early"
    assert desk.store.purge(later) == 1
    assert {each.key for each in desk.store.studies.all()} == {open_.key, held.key, waiting.key}
    assert {case.key for case in desk.store.cases.all()} == {"b" * 16, "d" * 16}
    assert desk.store.purge(later) == 0
    assert desk.received(study()).state == "receiving"


def test_no_personal_data_is_in_the_database(desk):
    from ...support.studies import PLANTED

    desk.decided(desk.received())
    desk.dispatched()
    desk.store.close()
    written = b"".join(file.read_bytes() for file in desk.directory.glob("*") if file.is_file())
    assert b"review" in written
    assert [value for value in PLANTED.values() if value.encode() in written] == []
