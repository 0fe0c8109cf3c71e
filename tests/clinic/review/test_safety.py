"""Requests that a browser would not send, or should not be able to."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlencode, urlsplit

import pytest

from ...support.review_page import reviewing

TARGET = f"/cases/{'b' * 16}/verdict"


def ask(url: str, method: str, path: str, form: dict | None = None, **headers: str):
    """Status, headers and text; header names with _ for -."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    body = urlencode(form) if form is not None else None
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if form is not None:
        sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, answer.headers, text


def entered(page) -> tuple[dict[str, str], dict[str, str]]:
    """A reviewer's headers, and a form that would be taken."""
    origin = page.url.rstrip("/")
    status, headers, _ = ask(page.url, "POST", "/enter", {"token": page.token}, Origin=origin)
    assert status == 303
    good = {"Origin": origin, "Cookie": headers["Set-Cookie"].split(";")[0]}
    _, _, text = ask(page.url, "GET", "/", **good)
    csrf = text.split('name="csrf" value="')[1].split('"')[0]
    fingerprint = page.desk.store.cases.get("b" * 16).fingerprint
    return good, {"csrf": csrf, "fingerprint": fingerprint, "verdict": "accept"}


def undecided(page) -> bool:
    return page.desk.store.cases.get("b" * 16).verdict is None


def test_only_a_form_of_the_page_itself_is_taken(served):
    good, form = entered(served)
    for changed in (
        {"Origin": "https://evil.example.org"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"}, {"Cookie": "equipoise_session=guess"}, {"Host": "evil.example.org"},
        {"Content-Type": "text/plain"},
    ):  # fmt: skip
        status, _, _ = ask(served.url, "POST", TARGET, form, **{**good, **changed})
        assert status in (400, 403), changed
    without = {name: value for name, value in good.items() if name != "Origin"}
    assert ask(served.url, "POST", TARGET, form, **without)[0] == 403
    for wrong in ({"csrf": "guess"}, {"csrf": "é"}, {"verdict": "delete"}):
        assert ask(served.url, "POST", TARGET, {**form, **wrong}, **good)[0] in (400, 403), wrong
    assert undecided(served)
    assert ask(served.url, "POST", TARGET, form, **good)[0] == 303
    assert not undecided(served)


def test_nothing_is_shown_to_whom_nobody_knows(served):
    _, _, text = ask(served.url, "GET", "/")
    assert "Your token" in text and "data-case" not in text
    assert ask(served.url, "GET", f"/pictures/{'b' * 16}.png")[0] == 404
    assert ask(served.url, "GET", "/", Host="evil.example.org")[0] == 421
    assert ask(served.url, "GET", "/pictures/../gateway.db")[0] == 404


def test_every_answer_carries_the_protecting_headers(served):
    for method, path in (("GET", "/"), ("GET", "/style.css"), ("GET", "/nothing"), ("PUT", "/"), ("POST", TARGET)):
        _, headers, _ = ask(served.url, method, path)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
    origin = served.url.rstrip("/")
    _, headers, _ = ask(served.url, "POST", "/enter", {"token": served.token}, Origin=origin)
    assert {"httponly", "samesite=strict"} <= set(headers["Set-Cookie"].lower().split("; "))


def test_head_gives_the_headers_alone(served):
    status, headers, text = ask(served.url, "HEAD", "/")
    assert status == 200 and text == "" and "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_form_that_is_too_long_is_refused(served):
    """However its length is announced, or not."""
    good, form = entered(served)
    assert ask(served.url, "POST", TARGET, {**form, "more": "x" * 5000}, **good)[0] == 400
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    endless = (b"x" * 1000 for _ in range(6))
    connection.request("POST", TARGET, endless, {**good, **kind}, encode_chunked=True)
    assert connection.getresponse().status == 400
    connection.close()
    assert undecided(served)


def test_a_connection_on_which_nothing_arrives_is_closed(filled, monkeypatch):
    """Neither a silent client nor half a form keeps anything open."""
    monkeypatch.setattr("equipoise_clinic.http_server.PATIENCE", 0.5)
    with reviewing(filled) as page:
        place = urlsplit(page.url)
        for sent in (b"", b"GET / HTTP/1.1\r\nHost:", _half_a_form(page.url)):
            with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
                connection.sendall(sent)
                received = connection.makefile("rb").read()
            assert b"POST" not in sent or received.startswith(b"HTTP/1.1 400 ")


def _half_a_form(url: str) -> bytes:
    place = urlsplit(url)
    lines = (f"POST /enter HTTP/1.1|Host: {place.netloc}|Origin: {url.rstrip('/')}|Content-Length: 100|"
             "Content-Type: application/x-www-form-urlencoded||token=")  # fmt: skip
    return lines.replace("|", "\r\n").encode()


def test_an_error_is_logged_by_its_place_alone(filled, monkeypatch, capfd):
    """Its message may quote a patient's data."""

    def fails(*_: object) -> None:
        raise ValueError("DOE^JANE")

    monkeypatch.setattr(filled.store.cases, "judge", fails)
    with reviewing(filled) as page:
        good, form = entered(page)
        status, headers, text = ask(page.url, "POST", TARGET, form, **good)
    logged = capfd.readouterr().err
    assert status == 500 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert "DOE" not in text + logged
    assert json.loads(logged)["error"] == "ValueError"


def test_tokens_cannot_be_guessed_at_leisure(served):
    origin = served.url.rstrip("/")
    for _ in range(11):
        ask(served.url, "POST", "/enter", {"token": "guess"}, Origin=origin)
    _, headers, _ = ask(served.url, "POST", "/enter", {"token": served.token}, Origin=origin)
    assert "Set-Cookie" not in headers


def test_a_token_is_stored_as_its_digest_only(served):
    files = [file for file in served.desk.directory.glob("*") if file.is_file()]
    assert any(file.name == "reviewers.json" for file in files)
    assert not [file for file in files if served.token.encode() in file.read_bytes()]


def test_signing_out_ends_the_session(served):
    good, form = entered(served)
    assert ask(served.url, "POST", "/leave", {"csrf": form["csrf"]}, **good)[0] == 303
    assert ask(served.url, "POST", TARGET, form, **good)[0] == 403
    assert undecided(served)


@pytest.mark.parametrize(
    ("trusted", "names", "shown"),
    [("127.0.0.1", ["dr.jones"], True), ("127.0.0.1", [], False), ("127.0.0.1", ["dr.jones", "dr.no"], False),
     ("127.0.0.1", ["<script>"], False), ("10.1.2.3", ["dr.jones"], False)],
)  # fmt: skip
def test_a_proxy_is_believed_only_from_its_address(filled, trusted, names, shown):
    with reviewing(filled, proxy_header="X-Remote-User", trusted_proxies=[trusted]) as page:
        connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=30)
        connection.putrequest("GET", "/")
        for name in names:
            connection.putheader("X-Remote-User", name)
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert (answer.status, "Signed in as" in text) == ((200, True) if shown else (403, False))
        assert ask(page.url, "POST", "/enter", {"token": page.token}, Origin=page.url.rstrip("/"))[0] == 403


def test_a_forwarded_address_does_not_make_a_trusted_proxy(filled):
    """What a client claims about where it comes from is not believed."""
    with reviewing(filled, proxy_header="X-Remote-User", trusted_proxies=["10.1.2.3"]) as page:
        claimed = {"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3", "X-Real-IP": "10.1.2.3"}
        assert ask(page.url, "GET", "/", **{"X-Remote-User": "dr.jones", **claimed})[0] == 403


def test_the_proxys_name_is_in_the_verdict(filled):
    with reviewing(filled, proxy_header="X-Remote-User") as page:
        named = {"X-Remote-User": "dr.jones", "Origin": page.url.rstrip("/")}
        _, _, text = ask(page.url, "GET", "/", **named)
        csrf = text.split('name="csrf" value="')[1].split('"')[0]
        form = {"csrf": csrf, "fingerprint": filled.store.cases.get("b" * 16).fingerprint, "verdict": "reject"}
        assert ask(page.url, "POST", TARGET, form, **{**named, "X-Remote-User": "dr.no"})[0] == 403
        assert ask(page.url, "POST", TARGET, form, **named)[0] == 303
        assert '"by":"dr.jones"' in filled.audit.read_text()
