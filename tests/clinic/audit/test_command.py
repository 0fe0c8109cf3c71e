"""`equipoise audit` as it is typed: what is logged, and what cannot be done in a line each."""

import io
import json
import sys

import pytest
from equipoise_client.cli.main import main
from equipoise_clinic.audit import Kind, append, entries

FAILED = {"file": "lost.png", "record": None, "route": "review", "error": "not a picture"}


def run(capsys, monkeypatch, *words, given=""):
    """Exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, words)])
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, " ".join(told.err.split())


def answer(file):
    return {"file": file, "route": "review", "reason": "doubt", "record": {"format": "r", "file_digest": file}}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_that_failed_does_not_take_the_others_decisions_with_it(capsys, monkeypatch, tmp_path, place):
    """They are logged with their final routes; the command says which answer is none, and that not all went well."""
    answers = [answer("a"), answer("b")]
    answers.insert(place, FAILED)
    log = tmp_path / "log.jsonl"
    code, _, said = run(capsys, monkeypatch, "append", log, given=json.dumps(answers))
    assert [entry.body["file_digest"] for entry in entries(log)] == ["a", "b"]
    assert all(entry.body["routed"] == {"route": "review", "reason": "doubt"} for entry in entries(log))
    assert code == 1 and f"entry {place} (lost.png) holds no record" in said and "2 of 3 answers were" in said
    assert run(capsys, monkeypatch, "append", log, given=json.dumps(answer("c")))[0] == 0


@pytest.mark.parametrize("given", ["", "no JSON", "[]", "[1]", "null"])
def test_without_a_decision_nothing_is_logged(capsys, monkeypatch, tmp_path, given):
    code, _, said = run(capsys, monkeypatch, "append", tmp_path / "log.jsonl", given=given)
    assert code == 1 and said.startswith("error: ") and not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("head", "log.jsonl", "--key", "absent"), "absent: No such file"),
        (("head", "log.jsonl", "--key", "."), ".: Is a directory"),
        (("head", "log.jsonl", "--key", "empty"), "empty is empty; expected a key"),
        (("verify", "log.jsonl", "--anchor", "absent"), "absent: No such file"),
        (("verify", "log.jsonl", "--anchor", "binary"), "is no anchor; expected"),
        (("monitor", "absent.jsonl"), "absent.jsonl: cannot be read"),
        (("monitor", "log.jsonl", "--report", "empty/page.html"), "empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    append(tmp_path / "log.jsonl", Kind.DECISION, {"route": "review"})
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    code, _, told = run(capsys, monkeypatch, *words)
    assert code == 1 and told.startswith("error: ") and said in told


def test_a_log_without_decisions_says_so_and_the_report_gets_its_folder(capsys, monkeypatch, tmp_path):
    (tmp_path / "log.jsonl").touch()
    page = tmp_path / "new" / "page.html"
    code, said, _ = run(capsys, monkeypatch, "monitor", tmp_path / "log.jsonl", "--report", page)
    assert code == 0 and "holds no decision" in said and page.is_file()
    assert json.loads(run(capsys, monkeypatch, "monitor", tmp_path / "log.jsonl", "--json")[1]) == []
