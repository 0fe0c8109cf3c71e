"""`equipoise calibrate` on the committed pneumonia model, with images that anybody can draw."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from equipoise_core.case import Case
from equipoise_core.contract import load_contract
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_export.calibration.calibrate import check_cases
from equipoise_export.calibration.cases import Labelled, check_scale
from equipoise_export.calibration.choose import Goals
from equipoise_export.calibration.command import app
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.sweep import sweep, with_rate
from equipoise_export.graph.session import OnnxSampler
from typer.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture
def repository(tmp_path):
    for name in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass"):
        shutil.copytree(REPOSITORY / name, tmp_path / "repository" / name, symlinks=False)
    return tmp_path / "repository"


def images(n, seed=0):
    """28×28 under noise, in turn a bright blob, which is taken for pneumonia, and dark lungs beside a spine."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:28, :28]
    drawn = []
    for index in range(n):
        a, b, w = random.uniform(6, 22), random.uniform(6, 22), random.uniform(3, 9)
        blob = 20 + 200 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / w**2)
        lung = [np.exp(-((((x - 13.5 - side) / 3.5) ** 2 + ((y - a / 2 - 5) / 11) ** 2) ** 2)) for side in (-5, 5)]
        chest = 150 - 3 * (y - 14) - 40 * (lung[0] + lung[1]) + 30 * np.exp(-(((x - 13.5) / 3) ** 2))
        drawn.append((blob if index % 2 else chest) + random.normal(0, 4, (28, 28)))
    return np.array(drawn).clip(0, 255).astype(np.uint8)


@pytest.fixture
def archive(tmp_path, repository):
    """60 cases whose labels are what the model answers, so that there is something to certify."""
    model = load_model(repository / "pneumonia" / "1")
    sampler = OnnxSampler(repository / "pneumonia_sampler" / "1" / "model.onnx")
    drawn = images(60)
    answers = [assess(model, Case(i[None].astype(np.float32)), [sampler]).uncertainty.labels[0] for i in drawn]
    np.savez(tmp_path / "cases.npz", images=drawn, labels=np.array(answers), groups=np.array(["a", "b"] * 30))
    return tmp_path / "cases.npz"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_policy_and_a_report_are_written(repository, archive):
    """The service accepts it as its own, the report stands alone, and the JSON holds the figures and groups."""
    result = run("pneumonia", "--data", archive, "--repository", repository, "--json", "--sweep-p", "0.4")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    model = load_model(repository / "pneumonia" / "1")
    assert model.in_force is not None
    assert model.policy.digest == document["policy"]
    assert model.policy.guarantee.alpha == 0.1
    assert set(document["groups"]) == {"a", "b"}
    assert [rate["p"] for rate in document["rates"]] == [None, 0.4]
    rows = document["corrupted"]["rows"]
    assert [row["name"] for row in rows][:2] == ["as they are", "noise of 0.1 sd"] and len(rows) == 7
    assert {row["cases"] for row in rows} == {8}
    page = Path(document["report"]).read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert document["accept"] in page.replace("&#39;", "'")
    assert page.count("data:image/webp") >= 4
    assert "When images get worse" in page and document["corrupted"]["verdict"] in page
    assert "smooth ECE" in page and "AUGRC" in page
    with Path(document["cases"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and {row["set"] for row in rows} == {"pilot", "calibration"}
    accepted = [row for row in rows if row["set"] == "calibration" and row["route"] == "accept"]
    assert len(accepted) == document["figures"]["Calibration cases"]["routes"]["accept"] > 0


@pytest.mark.slow
def test_each_scanner_gets_a_certificate_and_the_cases_are_examined(repository, archive):
    """Scanners with enough cases are certified, one with few is named; findings are in the JSON and in the report."""
    with np.load(archive) as full:
        scanners = np.array(["a", "b"] * 28 + ["c"] * 4)
        np.savez(archive, **{name: full[name] for name in full.files}, scanner=scanners, day=np.arange(60))
    common = ("pneumonia", "--data", archive, "--repository", repository, "--alpha", "0.2", "--group-by", "scanner")
    result = run(*common, "--order-by", "day", "--method", "best", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    groups = load_model(repository / "pneumonia" / "1").policy.groups
    assert set(groups.stages) == {"a", "b"} and set(groups.without) <= {"c"}
    asked = {each["what"]: each for each in document["examined"]}
    assert not any(each["serious"] for each in asked.values()) and "Drift over day" in asked
    page = Path(document["report"]).read_text(encoding="utf-8")
    for words in ("its cases go to review", "Drift over day", "Recalibration", "truly"):
        assert words in page


def test_each_predicted_class_has_a_certificate_of_its_own(repository, archive):
    """One stage, whatever the model has; the report has the errors by predicted class; several stages are refused."""
    common = ("pneumonia", "--data", archive, "--repository", repository, "--alpha", "0.2", "--group-by", "prediction")
    done = run(*common, "--json")
    assert done.exit_code == 0, done.output
    policy = load_model(repository / "pneumonia" / "1").policy
    assert policy.groups.by == "predicted class" and [stage.samples for stage in policy.stages] == [20]
    classes = {"normal", "pneumonia"}
    assert {*policy.groups.stages, *policy.groups.without} <= classes
    (figures,) = json.loads(done.stdout)["figures"].values()
    assert set(figures["by_prediction"]) == classes
    assert "<th>predicted</th>" in (repository / "pneumonia.calibration.html").read_text()
    refused = run(*common, "--stages", "0,20")
    assert refused.exit_code == 1 and "may change between stages" in refused.output


@pytest.mark.slow
def test_cases_of_two_patients_with_one_image_are_refused_unless_somebody_says_why(repository, archive):
    """Nothing is written; with a reason the policy keeps it."""
    policy = repository / "pneumonia" / "1" / "policy.json"
    before = policy.read_bytes()
    with np.load(archive) as full:
        doubled = full["images"].copy()
        doubled[7] = doubled[5]
        np.savez(archive, images=doubled, labels=full["labels"])
    result = run("pneumonia", "--data", archive, "--repository", repository)
    assert result.exit_code == 1 and "00005 and 00007" in " ".join(result.output.split())
    assert policy.read_bytes() == before
    result = run("pneumonia", "--data", archive, "--repository", repository, "--despite", "a phantom, says Dr A")
    assert result.exit_code == 0, result.output
    assert "a phantom, says Dr A" in load_model(repository / "pneumonia" / "1").policy.despite


def test_volumes_without_a_scale_are_refused_before_anything_is_measured():
    """They would state a guarantee of volumes that nothing backs."""
    contract = load_contract(REPOSITORY / "hippocampus" / "1" / "contract.json")
    image, truth = np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8)
    cases = [Labelled(f"{n}", f"{n}", image, truth, (1.0,) * 3 if n else None) for n in range(40)]
    with pytest.raises(CalibrationError, match=r"^0: no voxel spacing is stated \(1 of 40 cases\).*--spacing"):
        check_cases(contract, cases, dict.fromkeys(map(str, range(40)), False), 0.3, Goals("wrong"))


@pytest.fixture
def nothing_measured(monkeypatch):
    """What is wrong with the request shows before a case is run."""

    def measured(*_, **__):
        raise AssertionError("cases were measured first")

    monkeypatch.setattr("equipoise_export.calibration.calibrate.measure_all", measured)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--test", "cases.npz"), "the same image is among the cases that thresholds are chosen on"),
        (("--test", "renamed.npz"), "the same image is among the cases that thresholds are chosen on"),
        (("--test", "patients.npz"), "the same patient is among the cases that thresholds are chosen on"),
        (("--order-by", "day"), "day '31.01.2026': expected a number or a date such as 2026-01-31"),
        (("--report", "cases.npz/report.html"), "exists"),
        (("--report", "."), "is a folder"),
        (("--stages", "inf"), "expected numbers separated by commas"),
        (("--stages", "nan,20"), "expected numbers separated by commas"),
        (("--spacing", "inf,1"), "expected numbers separated by commas"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_measured(
    repository, tmp_path, monkeypatch, nothing_measured, change, said
):
    """Hours of work would be lost; and test cases that the policy was chosen on test nothing."""
    monkeypatch.chdir(tmp_path)
    drawn, more, labels = images(60), images(10, seed=1), np.array([0, 1] * 30)
    named = {"ids": np.array([f"case {n}" for n in range(60)]), "patients": np.array([f"Mr {n}" for n in range(60)])}
    days = np.array(["31.01.2026"] * 60)
    np.savez("cases.npz", images=drawn, labels=labels, day=days, **named)
    np.savez("renamed.npz", images=np.concatenate([more, drawn[7:8]]), labels=labels[:11])
    np.savez("patients.npz", images=more, labels=labels[:10], patients=np.array(["Mr 3"] * 10))
    result = run("pneumonia", "--data", "cases.npz", "--repository", repository, *change)
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())


def test_other_images_that_are_numbered_alike_are_other_patients(repository, tmp_path, monkeypatch, nothing_measured):
    """Nobody named them; and the report's folder is made."""
    np.savez(tmp_path / "cases.npz", images=images(60), labels=np.array([0, 1] * 30))
    np.savez(tmp_path / "test.npz", images=images(10, seed=1), labels=np.array([0, 1] * 5))
    common = ("--repository", repository, "--report", tmp_path / "out" / "r.html")
    with pytest.raises(AssertionError, match="measured first"):
        raise run("pneumonia", "--data", tmp_path / "cases.npz", "--test", tmp_path / "test.npz", *common).exception
    assert (tmp_path / "out").is_dir()


def test_test_cases_need_a_scale_too():
    """Where the model's answers are measures; no spacing is negative."""
    contract = load_contract(REPOSITORY / "hippocampus" / "1" / "contract.json")
    image, truth = np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8)
    check_scale(contract, [Labelled("a", "a", image, truth, (1.0,) * 3)])
    for spacing, said in ((None, "no voxel spacing"), ((1.0, -1.0, 1.0), "above 0"), ((1.0, np.inf, 1.0), "above 0")):
        with pytest.raises(CalibrationError, match=said):
            check_scale(contract, [Labelled("a", "a", image, truth, spacing)])


def test_too_few_cases_write_nothing(repository, archive):
    """The message says how many it takes; the policy that was there stays."""
    before = (repository / "pneumonia" / "1" / "policy.json").read_bytes()
    few = archive.with_name("few.npz")
    with np.load(archive) as full:
        np.savez(few, images=full["images"][:20], labels=full["labels"][:20])
    result = run("pneumonia", "--data", few, "--repository", repository)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "at least 22 labelled cases, each of another patient; 14 were given" in said
    assert "about 32 patients in all; there are 20" in said
    assert (repository / "pneumonia" / "1" / "policy.json").read_bytes() == before


def test_data_without_one_of_the_classes_write_nothing(repository, archive):
    """Normal chests alone cannot say how sure a pneumonia is."""
    before = (repository / "pneumonia" / "1" / "policy.json").read_bytes()
    with np.load(archive) as full:
        np.savez(one := archive.with_name("one.npz"), images=full["images"], labels=np.zeros(60, np.uint8))
    result = run("pneumonia", "--data", one, "--repository", repository)
    assert result.exit_code == 1
    assert "none shows pneumonia" in " ".join(result.output.split())
    assert (repository / "pneumonia" / "1" / "policy.json").read_bytes() == before


def test_a_higher_dropout_rate_scatters_samples_more(repository):
    """At the network's own p the changed sampler is the same function; at a higher one samples scatter more."""
    model = load_model(repository / "pneumonia" / "1")
    proto = onnx.load(repository / "pneumonia_sampler" / "1" / "model.onnx")
    own = model.contract.sites[0].p
    assert with_rate(proto, model.contract, own)[0].SerializeToString() == proto.SerializeToString()
    cases = [Labelled(f"{i}", f"{i}", image[None].astype(np.float32), np.uint8(1)) for i, image in enumerate(images(6))]
    assert len(sweep(model, [proto], cases, [0.1, 0.6], 0.8, "lack_of_confidence", quiet=True)) == 3
    spread = []
    for p in (0.05, 0.6):
        changed, contract = with_rate(proto, model.contract, p)
        sampler = OnnxSampler(changed.SerializeToString())
        asked = type(model)(contract, None, "", "")
        spread.append(np.mean([assess(asked, Case(c.image), [sampler]).uncertainty.variance.mean() for c in cases]))
    assert spread[1] > 2 * spread[0]
