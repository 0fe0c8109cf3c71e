import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from equipoise_clinic.audit import AuditError, Kind, append, head, parse_anchor, redact, verify

START = datetime(2025, 1, 1, tzinfo=timezone.utc)
KEY = b"a key kept elsewhere"


@pytest.fixture
def log(tmp_path):
    """Five decisions and a verdict, a day apart."""
    path = tmp_path / "decisions.jsonl"
    for day in range(5):
        append(path, Kind.DECISION, {"route": "accept", "score": 0.1 * day}, START + timedelta(days=day))
    append(path, Kind.VERDICT, {"decision": 2, "by": "dr.who", "verdict": "correct"}, START + timedelta(days=5))
    return path


def faults(path, anchor=None):
    return [fault.line for fault in verify(path, anchor)]


def test_a_whole_log_has_no_faults(log):
    """Also against its own anchor, and against an earlier one after it grew."""
    anchor = head(log)
    assert faults(log, anchor) == []
    append(log, Kind.DECISION, {"route": "review"})
    assert faults(log, anchor) == []
    assert anchor.entries == 6


def test_every_one_byte_change_is_found_where_it_is(log):
    """Each byte of the file is changed in turn; the fault names its line, or the next where lines were joined."""
    original = log.read_bytes()
    anchor = head(log)
    for place, byte in enumerate(original):
        log.write_bytes(original[:place] + bytes([byte ^ 1]) + original[place + 1 :])
        line = original[:place].count(b"\n") + 1
        found = faults(log, anchor)
        assert found and found[0] == line, (place, line, found)


def test_every_removed_byte_is_found(log):
    """As above, with a byte less; only the very last newline may go unnoticed, since nothing is lost with it."""
    original = log.read_bytes()
    anchor = head(log)
    for place in range(len(original) - 1):
        log.write_bytes(original[:place] + original[place + 1 :])
        assert faults(log, anchor)[:1] == [original[:place].count(b"\n") + 1]


@pytest.mark.parametrize("line", range(1, 6))
def test_removed_and_moved_lines_are_located(log, line):
    """The line that now stands there does not continue the one before."""
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: line - 1] + lines[line:]))
    assert faults(log)[0] == line
    swapped = [*lines]
    swapped[line - 1], swapped[line] = swapped[line], swapped[line - 1]
    log.write_bytes(b"".join(swapped))
    assert faults(log)[0] == line


@pytest.mark.parametrize("kept", range(6))
def test_a_cut_off_end_is_found_by_the_anchor_only(log, kept):
    """Every shorter log is whole in itself; what was counted elsewhere shows what is gone."""
    anchor = head(log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:kept]))
    assert faults(log) == []
    assert faults(log, anchor) == [kept + 1]


def test_a_log_rewritten_from_scratch_is_found_by_the_anchor(log, tmp_path):
    """A forger who recomputes every hash still cannot meet the anchor."""
    anchor = head(log)
    forged = tmp_path / "forged.jsonl"
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        append(forged, Kind(entry["kind"]), {**entry["body"], "route": "review"}, datetime.fromisoformat(entry["at"]))
    assert faults(forged) == []
    assert faults(forged, anchor) == [6]


def test_an_anchor_is_signed(log):
    """A changed anchor, or one under another key, is refused."""
    text = head(log, KEY).text()
    assert parse_anchor(text, KEY).entries == 6
    for bad, key in ((text.replace(" 6 ", " 5 "), KEY), (text, b"another"), (head(log).text(), KEY)):
        with pytest.raises(AuditError, match="signature"):
            parse_anchor(bad, key)
    with pytest.raises(AuditError, match="no anchor"):
        parse_anchor("nonsense")


def test_deletion_keeps_the_chain_verifiable(log):
    """Contents older than the retention are gone, the chain and an earlier anchor still hold, and it says why."""
    anchor = head(log)
    deletion = redact(log, START + timedelta(days=2), "retention of 2 days")
    assert deletion.body == {"sequences": [1, 2], "reason": "retention of 2 days"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["body"] is None for line in lines] == [True, True, *[False] * 5]
    assert faults(log, anchor) == []
    assert redact(log, START, "again") is None


def test_a_silent_deletion_is_found(log):
    """A body removed without a deletion line is no retention."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[2]["body"] = None
    log.write_text("".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines))
    assert faults(log) == [3]


WRITE_A_PART = """
import os, sys
from pathlib import Path
from equipoise_clinic.audit import Kind, append

whole, part = os.write, int(sys.argv[2])

def write(descriptor, line):  # the power goes after so many bytes
    if bytes(line).startswith(b"{"):
        whole(descriptor, bytes(line)[:part])
        os._exit(9)
    return whole(descriptor, line)

os.write = write
append(Path(sys.argv[1]), Kind.DECISION, {"route": "accept"})
"""


@pytest.mark.parametrize("part", [1, 100])
def test_a_line_that_a_crash_tore_is_set_aside(log, part):
    """It was never confirmed: the log goes on where it was, whole, and the fragment is kept beside it."""
    anchor, before = head(log), log.read_bytes()
    died = subprocess.run([sys.executable, "-c", WRITE_A_PART, str(log), str(part)], capture_output=True, text=True)
    assert died.returncode == 9, died.stderr
    assert log.read_bytes() == before + log.read_bytes()[-part:] and faults(log) == [7]
    assert append(log, Kind.DECISION, {"route": "review"}).sequence == 7
    assert faults(log, anchor) == []
    assert log.read_bytes().startswith(before) and log.read_bytes().count(b"\n") == 7
    (torn,) = log.parent.glob(f"{log.name}.torn-*")
    assert len(torn.read_bytes()) == part


def test_a_last_line_without_its_end_is_a_fault(log):
    """Nothing can be appended to it, so it is not called whole."""
    log.write_bytes(log.read_bytes()[:-1])
    assert faults(log) == [6]


def test_a_deletion_reaches_what_a_link_leads_to_and_keeps_its_owner(log):
    """The service has to go on writing, and what is deleted has to be gone."""
    link = log.with_name("link.jsonl")
    link.symlink_to(log)
    log.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(log, "nobody")
    owner = log.stat()
    assert redact(link, START + timedelta(days=3), "retention") is not None
    assert link.is_symlink() and '"score":0.1' not in log.read_text() and faults(link) == []
    assert (log.stat().st_uid, log.stat().st_mode) == (owner.st_uid, owner.st_mode)
    append(link, Kind.DECISION, {"route": "review"})
    assert faults(log) == [] and not link.with_name("link.jsonl.lock").exists()


def test_a_line_is_on_the_disk_before_it_is_said(log, monkeypatch):
    """The log is synced after the last byte, and the folder too where the log is new."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda each: (synced.append(str(Path(f"/proc/self/fd/{each}").readlink())), real(each))[1]
    )
    append(log, Kind.DECISION, {})
    assert synced[-1] == str(log)
    append(log.with_name("fresh.jsonl"), Kind.DECISION, {})
    assert synced[-2:] == [str(log.with_name("fresh.jsonl")), str(log.parent)]


def test_a_damaged_log_is_neither_anchored_nor_continued(log):
    """Nothing is added after a cut-off line, and a broken log gets no fresh anchor."""
    log.write_bytes(log.read_bytes()[:-10])
    with pytest.raises(AuditError, match="cut off"):
        append(log, Kind.DECISION, {})
    with pytest.raises(AuditError, match="line 6"):
        head(log)
