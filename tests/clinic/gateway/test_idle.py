"""A gateway with nothing to do does nothing: it neither writes, nor wakes itself, nor uses a processor."""

from __future__ import annotations

import sqlite3
import time

import psutil

from ...support.gateways import configuration, gateway

RULES = '[[series]]\nmodel = "tinyseg"\nmodality = "MR"\n'
WINDOW, MOST = 2.0, 0.1  # seconds of wall time, and of processor time in it


def test_an_idle_gateway_uses_no_processor(tmp_path):
    """Seconds of processor time, of which a stalled machine gives less, not more; a start's own work may last."""
    settings = configuration(
        tmp_path, "127.0.0.1:9", RULES, receive={"port": 0}, deliver={"stow_url": "http://127.0.0.1:9/dicom-web"}
    )
    with gateway(settings) as running:
        process, used = psutil.Process(running.process.pid), []
        while len(used) < 10 and min(used, default=WINDOW) > MOST:
            before = process.cpu_times()
            time.sleep(WINDOW)
            after = process.cpu_times()
            used.append(after.user + after.system - before.user - before.system)
        running.stop()
    assert min(used) <= MOST, f"seconds of processor time in {WINDOW:g} s each: {used}"


def test_looking_for_work_is_no_change(desk):
    """Not even where results are held, studies wait and files expire: only what really changes wakes the others."""
    desk.decided(desk.received())
    desk.dispatched()
    desk.intake.take(b"no DICOM", 0.0, "test")
    desk.store.studies.settle(desk.store.studies.all()[0].uid)
    before = desk.store.changes
    desk.store.studies.next()
    desk.store.outbox.next()
    desk.store.notice()
    assert desk.dispatched() == []
    desk.store.studies.settle("1.2.3")
    desk.store.studies.settle(desk.store.studies.all()[0].uid)
    desk.intake.forget_aside(before=0.0)
    assert desk.store.studies.expired(0.0, 0.0) == []
    assert desk.store.revive() == 0
    assert desk.store.changes == before


def test_a_change_by_another_process_wakes_who_waits(desk):
    """As a verdict on the review page does."""
    desk.received()
    desk.store.notice()
    before = desk.store.changes
    with sqlite3.connect(desk.directory / "gateway.db") as other:
        other.execute("UPDATE studies SET attempts = 1")
    other.close()
    desk.store.notice()
    assert desk.store.changes == before + 1
    desk.store.wait(before, 3600.0)
    desk.store.notice()
    assert desk.store.changes == before + 1
