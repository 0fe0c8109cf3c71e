"""The papers say what the sources say, name them, and guess nothing."""

import csv
import json
from pathlib import Path

import pytest
from equipoise_clinic.audit import Kind, append
from equipoise_core.policy import load_policy
from equipoise_deploy.dossier.cases import COLUMNS
from equipoise_deploy.dossier.command import dossier_verb
from equipoise_deploy.verbs import VERBS
from typer.testing import CliRunner

REFERENCES = Path(__file__).parents[3] / "model_repository"
NAME = "hippocampus"


@pytest.fixture
def log(tmp_path):
    """Two decisions of this model, one with a verdict, and one of another."""
    policy = load_policy(REFERENCES / NAME / "1" / "policy.json").digest
    body = {
        "model": NAME, "policy_digest": policy, "alpha": 0.1, "audit": True, "route": "accept",
        "reason": {"code": "score_accepted", "values": {}, "text": "fine"}, "shape": [1, 40, 50, 30],
        "spacing": [1.0, 1.0, 1.0], "case_score": 0.05, "volume_ml": {"total": {"mean": 3.1, "low": 2.9, "high": 3.4}},
    }  # fmt: skip
    path = tmp_path / "decisions.jsonl"
    for number in range(2):
        append(path, Kind.DECISION, {**body, "input_digest": f"{number:064x}"})
    append(path, Kind.DECISION, {**body, "model": "other", "policy_digest": "0" * 64, "input_digest": "f" * 64})
    append(path, Kind.VERDICT, {"decision": 1, "by": "dr.who", "verdict": "correct", "volume_ml": {"total": 3.0}})
    return path


def run(*words):
    return CliRunner().invoke(dossier_verb, [NAME, "--repository", str(REFERENCES), *map(str, words)])


def statements(document, paper):
    return {each["what"]: each for each in document["papers"][paper]["statements"]}


def test_every_statement_names_its_source_or_says_what_is_missing(tmp_path):
    """With nothing but the pair: numbers are those of its files, the rest is listed as not known."""
    result = run("--into", tmp_path, "--json")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / f"{NAME}.dossier.json").read_text())
    policy = load_policy(REFERENCES / NAME / "1" / "policy.json")
    card = statements(document, "model_card")
    assert card["accept"]["words"] == policy.guarantee.rule and card["accept"]["source"] == "policy.json"
    assert policy.model_digest in card["model digest"]["words"]
    assert any(what.startswith("proof of hippocampus_sampler") for what in card)
    for paper in document["papers"].values():
        for each in paper["statements"]:
            assert bool(each["source"]) != each["missing"] and each["words"]
    assert statements(document, "record_keeping")["retention"]["missing"]
    assert statements(document, "change_control_plan")["what was changed"]["missing"]
    assert (
        "not known"
        in CliRunner().invoke(dossier_verb, [NAME, "--repository", str(REFERENCES), "--into", str(tmp_path)]).stdout
    )


def test_the_page_holds_all_of_it_and_claims_no_conformity(tmp_path):
    run("--into", tmp_path)
    page = (tmp_path / f"{NAME}.dossier.html").read_text()
    document = json.loads((tmp_path / f"{NAME}.dossier.json").read_text())
    assert page.count("<tr") >= sum(len(paper["statements"]) for paper in document["papers"].values())
    assert "Nothing here claims conformity" in page
    for word in ("compliant", "complies with", "certified by", "CE mark"):
        assert word not in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


def test_what_gateway_and_log_say_is_in_it(tmp_path, log):
    """Retention, oversight, what an alarm does, and the state of the monitors."""
    (tmp_path / "rules.toml").write_text('[[series]]\nmodel = "hippocampus"\n')
    (tmp_path / "gateway.toml").write_text(
        f'directory = "{tmp_path}"\nrules = "rules.toml"\naudit = "{log}"\nkeep_audit_days = 400\n'
        'close_on_alarm = true\noversight = "head of neuroradiology"\n'
        '[receive]\n[deliver]\nhost = "pacs"\naet = "PACS"\n'
    )
    document = json.loads(run("--into", tmp_path, "--gateway", tmp_path / "gateway.toml", "--json").stdout)
    records, watching = (statements(document, name) for name in ("record_keeping", "monitoring_plan"))
    assert "400 days" in records["audit log"]["words"]
    assert records["who oversees"]["words"] == "head of neuroradiology"
    assert "4 lines, the chain is whole" in records["the log"]["words"]
    assert "closes accept" in watching["what an alarm does"]["words"]
    (policy,) = [each for what, each in watching.items() if what.startswith("policy ")]
    assert "2 accepted, 2 marked, 1 judged, 1 wrong" in policy["words"]


def test_a_damaged_log_is_stated_and_gives_no_cases(tmp_path, log):
    log.write_bytes(log.read_bytes().replace(b"dr.who", b"dr.xxx"))
    key = tmp_path / "key"
    key.write_text("0" * 32)
    document = json.loads(run("--into", tmp_path, "--audit", log, "--json").stdout)
    assert statements(document, "record_keeping")["the log"]["words"].startswith("DAMAGED: decisions.jsonl line")
    assert run("--into", tmp_path, "--audit", log, "--cases-key", key).exit_code != 0


def test_cases_are_pseudonymous_and_complete(tmp_path, log):
    """The same key finds the same case again, another does not; digests, names and times of day are not in it."""
    tables = []
    for secret in ("a" * 32, "b" * 32):
        (tmp_path / "key").write_text(secret)
        assert run("--into", tmp_path, "--audit", log, "--cases-key", tmp_path / "key").exit_code == 0
        tables.append((tmp_path / f"{NAME}.cases.csv").read_text())
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2
    assert (rows[0]["verdict"], rows[0]["measured_ml"], rows[1]["verdict"]) == ("correct", '{"total": 3.0}', "")
    assert (rows[0]["volume_ml"], rows[0]["route"], rows[0]["reason"]) == ("3.1", "accept", "score_accepted")
    assert f"{0:064x}" not in tables[0] and "dr.who" not in tables[0] and ":" not in rows[0]["day"]
    assert not {row["case"] for row in rows} & {row["case"] for row in csv.DictReader(tables[1].splitlines())}
    (tmp_path / "key").write_text("short")
    assert "at least 16" in run("--into", tmp_path, "--audit", log, "--cases-key", tmp_path / "key").output


def test_releases_are_listed_with_who_and_why(tmp_path):
    """As the store's log has them."""
    store = tmp_path / "store"
    store.mkdir()
    body = {
        "action": "promote",
        "model": NAME,
        "version": 2,
        "before": 1,
        "by": "it@host",
        "accept_changes": "new scanner",
    }
    append(store / "log.jsonl", Kind.RELEASE, body)
    document = json.loads(run("--into", tmp_path, "--store", store, "--json").stdout)
    changed = [each for each in document["papers"]["change_control_plan"]["statements"] if "it@host" in each["words"]]
    assert "promote of version 2 (before: 1), by it@host; reason: new scanner" in changed[0]["words"]
    assert changed[0]["source"] == "log.jsonl line 1"


def test_what_cannot_be_read_is_named(tmp_path):
    """A model that is not there, a bill of another kind."""
    (tmp_path / "sbom.json").write_text('{"bomFormat": "SPDX"}')
    assert "CycloneDX" in run("--into", tmp_path, "--sbom", tmp_path / "sbom.json").output
    missing = CliRunner().invoke(dossier_verb, ["nothing", "--repository", str(REFERENCES), "--into", str(tmp_path)])
    assert missing.exit_code != 0 and "nothing" in missing.output
    assert "dossier" in VERBS and Path("deploy/HAZARDS.md").is_file()
