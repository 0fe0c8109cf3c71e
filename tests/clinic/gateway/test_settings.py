"""The configuration file is read strictly: what is misspelt must not be believed to be in force."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from equipoise_clinic.gateway.http_session import session_of
from equipoise_clinic.gateway.settings import (
    EXAMPLE,
    BadSettings,
    Deliver,
    Handling,
    OrthancSource,
    WebSource,
    check_files,
    load_settings,
)
from msgspec.structs import fields

GOOD = 'directory = "state"\nrules = "rules.toml"\n[receive]\n[deliver]\nstow_url = "http://127.0.0.1:8042/dicom-web"\n'


def read(folder: Path, text: str):
    path = folder / "gateway.toml"
    path.write_text(text)
    return load_settings(path)


def test_the_example_can_be_used_as_it_is():
    settings = load_settings(EXAMPLE)
    assert settings.receive is not None and settings.orthanc is not None
    assert (settings.deliver.accept, settings.deliver.review) == (Handling.SEND, Handling.HOLD)


def test_the_example_says_what_the_defaults_are():
    settings = load_settings(EXAMPLE)
    for part in (settings.receive, settings.health, settings.review, settings.triton):
        assert part == type(part)()


def test_the_example_names_every_key():
    text = EXAMPLE.read_text()
    settings = load_settings(EXAMPLE)
    tables = (settings.receive, settings.orthanc, settings.triton, settings.deliver, settings.health, settings.review)
    names = {field.name for table in (settings, *tables) for field in fields(table)}
    assert [name for name in sorted(names - {"associations", "timeout_seconds"}) if name not in text] == []


def test_what_the_example_comments_out_can_be_used_too(tmp_path):
    text = re.sub(r"(?m)^# (?=\[|\w+ = )", "", EXAMPLE.read_text())
    settings = read(tmp_path, re.sub("(?m)^stow_url.*$", "", text))
    assert settings.dicomweb is not None and settings.dicomweb.query == {"ModalitiesInStudy": "MR"}
    assert settings.triton.tls_key == tmp_path / "gateway.key" and settings.deliver.host == "pacs.example.org"


def test_paths_are_relative_to_the_file(tmp_path):
    settings = read(tmp_path, GOOD)
    assert settings.directory == tmp_path / "state" and settings.audit == tmp_path / "state" / "decisions.jsonl"


def test_everything_listens_on_loopback_unless_told_otherwise(tmp_path):
    settings = read(tmp_path, GOOD)
    assert {settings.receive.host, settings.health.host, settings.review.host} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("[receive]", "[recieve]"), "recieve: no such key"),
        (GOOD.replace("[receive]\n", ""), "no source of studies"),
        (GOOD.replace('directory = "state"\n', ""), "directory is missing"),
        (GOOD + 'review = "sned"\n', "expected one of send, hold"),
        (GOOD + 'host = "pacs"\n', "either stow_url or host"),
        (GOOD + "attempts = 0\n", "deliver.attempts is 0; expected int >= 1"),
        (GOOD + 'attempts = "8"\n', "deliver.attempts is '8'; expected int"),
        (GOOD + "attempts = true\n", "expected int"),
        (GOOD + "first_seconds = 0\n", "deliver.first_seconds is 0; expected float > 0"),
        (GOOD + "password_file = 3\n", "deliver.password_file: 3; expected a path"),
        (GOOD.replace("[receive]", "receive = 3"), "receive is 3; expected a table"),
        (GOOD.replace("[receive]", "[receive]\ncallers = ['A', 3]"), r"receive.callers\[2\] is 3; expected str"),
        (
            GOOD + '[dicomweb]\nurl = "x"\nquery = { ModalitiesInStudy = 3 }\n',
            "query.ModalitiesInStudy is 3; expected s",
        ),
        (GOOD + '[review]\nhost = "0.0.0.0"\n', "reachable from elsewhere"),
        (GOOD + '[review]\ntrusted_proxies = ["proxy"]\n', "not an address"),
        (GOOD + '[review]\norigin = "https://example.org/worklist"\n', "no path"),
        ("directory = ", "cannot be read as TOML"),
        (GOOD + 'tls_root = "ca.pem"\n', r"\[deliver\] tls_root: expected https in stow_url"),
        (GOOD + '[orthanc]\nurl = "http://x"\ntls_root = "ca.pem"\n', r"\[orthanc\] tls_root: expected https in url"),
        (GOOD.replace("http://127.0.0.1:8042/dicom-web", "foo"), r"\[deliver\] stow_url = 'foo'; expected an address"),
        (GOOD.replace("http:", "https:") + 'tls_key = "x.key"\n', r"\[deliver\] tls_key: expected tls_cert with it"),
        *(
            (GOOD + f'[{table}]\nhost = "x"\ntls_root = "ca.pem"\ntls_key = "x.key"\n', rf"\[{table}\] tls_key: expect")
            for table in ("hl7", "retrieve")
        ),
        (GOOD + '[triton]\ntls_key = "x.key"\n', r"\[triton\] tls_key: expected tls_cert"),
        (GOOD.replace("[receive]", '[receive]\ntls_key = "x.key"'), r"\[receive\] tls_key: expected tls_cert"),
        (GOOD.replace("[receive]", '[receive]\ntls_clients = "ca.pem"'), r"\[receive\] tls_clients: expected tls_cert"),
        (GOOD.replace("[receive]", "[receive]\nport = 99999"), "receive.port is 99999; expected int <= 65535"),
        (GOOD + "[review]\nport = -1\n", "review.port is -1; expected int >= 0"),
        (GOOD.replace("[receive]", f'[receive]\naet = "{"A" * 28}"'), r"\[receive\] .* is not an AE title"),
        (GOOD.replace("[receive]", '[receive]\ncallers = ["A", ""]'), r"\[receive\] '' is not an AE title"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    with pytest.raises(BadSettings, match=says):
        read(tmp_path, text)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "equipoise_client.cli.main", "gateway", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_prints_the_example_and_checks_a_file(tmp_path):
    assert command("--example").stdout == EXAMPLE.read_text()
    (tmp_path / "gateway.toml").write_text(GOOD)
    (tmp_path / "rules.toml").write_text('[[series]]\nmodel = "hippocampus"\n')
    assert command(str(tmp_path / "gateway.toml"), "--check").returncode == 0
    (tmp_path / "rules.toml").write_text("[[series]]\n")
    wrong = command(str(tmp_path / "gateway.toml"), "--check")
    assert wrong.returncode == 1 and "rules.toml" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('user = "me"\npassword_file = "no.password"\n', r"\[deliver\] password_file .*no.password: cannot be read"),
        ('tls_root = "no.pem"\n', r"\[deliver\] TLS: .*no.pem cannot be used"),
        ('[dicomweb]\nurl = "https://x"\ntls_root = "no.pem"\n', r"\[dicomweb\] TLS: .*no.pem cannot be used"),
        ('[triton]\ntls_root = "gateway.toml"\n', r"\[triton\] TLS: .*gateway.toml cannot be used"),
    ],
)
def test_files_that_the_gateway_could_not_start_with_are_named(tmp_path, text, says):
    """By --check, and by the start; `--status` needs none of them."""
    settings = read(tmp_path, GOOD.replace("http:", "https:") + text)
    with pytest.raises(BadSettings, match=says):
        check_files(settings)


def test_an_archive_is_asked_with_the_authority_and_the_certificate_that_are_named(tmp_path):
    files = {"tls_root": Path("ca.pem"), "tls_cert": Path("me.pem"), "tls_key": Path("me.key")}
    for made in (
        Deliver(stow_url="https://x", **files),
        OrthancSource("https://x", **files),
        WebSource("https://x", **files),
    ):
        session = session_of(made)
        assert (session.verify, session.cert) == ("ca.pem", ("me.pem", "me.key"))


def test_the_command_counts_what_there_is(tmp_path, desk):
    desk.decided(desk.received(), route="accept")
    desk.dispatched()
    while (item := desk.store.outbox.next()[0]) is not None:
        desk.store.outbox.give_up(item, "refused")
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD.replace('"state"', '"gateway"'))
    assert json.loads(command(str(path), "--status").stdout)["cases"]["dead"] == 1
    assert "1 tried again" in command(str(path), "--retry-dead").stdout
    assert [case.state for case in desk.store.cases.all()] == ["delivering"]
