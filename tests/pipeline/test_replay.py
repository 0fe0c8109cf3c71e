"""A record is enough to decide again, and a log of records shows what was changed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.triton


def equipoise(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [str(Path(sys.executable).with_name("equipoise")), *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def decided(server, tmp_path_factory) -> tuple[Path, Path]:
    """A decision by the real server, and the image it is about."""
    folder = tmp_path_factory.mktemp("replay")
    image, decision = folder / "image.npy", folder / "decision.json"
    np.save(image, np.random.default_rng(0).uniform(0, 255, (1, 28, 28)).astype(np.float32))
    answered = equipoise("predict", "pneumonia", image, "--url", server.grpc_url, "--json")
    assert answered.returncode == 0, answered.stderr
    decision.write_text(answered.stdout)
    return decision, image


def test_a_replay_gives_the_same_route_and_numbers(server, decided):
    """Seed, samples and digests in the record are all that is needed beside the image."""
    again = equipoise("replay", *decided, "--url", server.grpc_url, "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout) == {"same": True, "differences": [], "explanation": None}


def test_a_changed_record_or_another_image_is_caught(server, decided, tmp_path):
    """A number that was edited shows by name; an image that is not the record's is refused."""
    decision, image = decided
    edited, other = tmp_path / "edited.json", tmp_path / "other.npy"
    document = json.loads(decision.read_text())
    document[0]["record"]["case_score"] += 0.01
    edited.write_text(json.dumps(document))
    found = equipoise("replay", edited, image, "--url", server.grpc_url, "--json")
    assert found.returncode == 1
    assert [each["what"] for each in json.loads(found.stdout)["differences"]] == ["case_score"]
    np.save(other, np.load(image) + 1)
    refused = equipoise("replay", decision, other, "--url", server.grpc_url)
    assert refused.returncode == 1 and "not the image of this record" in " ".join(refused.stderr.split())


@pytest.mark.slow
def test_the_log_of_decisions_shows_a_change(decided, tmp_path):
    """Append two decisions, verify, change one digit, and the line is named."""
    log = tmp_path / "decisions.jsonl"
    for _ in range(2):
        appended = equipoise("audit", "append", log, stdin=decided[0].read_text())
        assert appended.returncode == 0, appended.stderr
    assert equipoise("audit", "verify", log).returncode == 0
    accepted = json.loads(decided[0].read_text())[0]["record"]["route"] == "accept"
    watched = equipoise("audit", "monitor", log, "--json")
    assert watched.returncode == 0, watched.stderr
    (policy,) = json.loads(watched.stdout)  # of a policy every decision counts: referrals and drift need no verdict
    assert policy["accepted"] == accepted
    text = log.read_text()
    log.write_text(text.replace('"samples_planned":20', '"samples_planned":21', 1))
    assert log.read_text() != text
    tampered = equipoise("audit", "verify", log)
    assert tampered.returncode == 1 and "1" in tampered.stdout + tampered.stderr
