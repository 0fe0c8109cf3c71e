"""`equipoise compare` over small models of every kind, published here, on images that anybody can draw."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from equipoise_core.contract import Contract
from equipoise_core.loading import load_model
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.choose import Goals
from equipoise_export.calibration.figures import figures as calibrate_figures
from equipoise_export.calibration.figures import judge
from equipoise_export.publish.repository import publish_pair
from equipoise_lab.compare import results as module
from equipoise_lab.compare.case_sets import CORRUPTIONS, deal, gather, reference_case_sets
from equipoise_lab.compare.command import app
from equipoise_lab.compare.errors import ComparisonError
from equipoise_lab.compare.figures import figures, ones
from equipoise_lab.compare.results import check_alike, load_compared, load_training, results_on
from typer.testing import CliRunner

ONE_PASS = """single (float[N,1,X,Y] image) => (float[N,2,X,Y] sum_p, float[N,2,X,Y] sum_p2, float[N,1,X,Y] sum_entropy,
        float[N,1,2] volumes)
    <int64[2] plane = {2,3}, int64[1] one = {1}, float tiny = {1e-12}>
    {
        lesion = Sigmoid(image)
        minus = Neg(image)
        healthy = Sigmoid(minus)
        sum_p = Concat<axis = 1>(healthy, lesion)
        sum_p2 = Mul(sum_p, sum_p)
        positive = Add(sum_p, tiny)
        logs = Log(positive)
        weighted = Mul(sum_p, logs)
        negative = ReduceSum<keepdims = 1>(weighted, one)
        sum_entropy = Neg(negative)
        total = ReduceSum<keepdims = 0>(sum_p, plane)
        volumes = Unsqueeze(total, one)
    }"""


@dataclass(frozen=True)
class Pair:
    """What `publish` takes."""

    model: onnx.ModelProto
    contract: Contract
    proof: object
    placement: object
    weights: None = None


def changed(tiny, name, scale=None, graph=None):
    """Under another name, with steeper logits, or with another graph that makes one pass."""
    contract = replace(tiny.contract, name=name, sites=() if graph else tiny.contract.sites)
    model = onnx.ModelProto()
    model.CopyFrom(
        onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {graph}') if graph else tiny.model
    )
    for entry in model.graph.initializer:
        if entry.name == "scale" and scale:
            entry.CopyFrom(onnx.numpy_helper.from_array(np.float32(scale), "scale"))
    onnx.helper.set_model_props(model, contract.graph_metadata())
    return Pair(model, contract, tiny.proof, tiny.placement)


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_segmentation, tiny_deterministic):
    """A sampled model, a steeper one, both as an ensemble, one pass, and a classifier."""
    into = tmp_path_factory.mktemp("models")
    publish_pair(tiny_segmentation, into)
    publish_pair(changed(tiny_segmentation, "steep", scale=16), into)
    members = [changed(tiny_segmentation, "both", scale=scale) for scale in (64, 16)]
    publish_pair(members[0], into, further=members[1:])
    publish_pair(changed(tiny_segmentation, "single", graph=ONE_PASS), into)
    publish_pair(tiny_deterministic, into)
    stated = {"title": "a small network", "seconds": 12.5, "note": "one core"}
    (into / "steep" / "training.json").write_text(json.dumps(stated), encoding="utf-8")
    return into


def drawn(n, seed=0):
    """Bright discs, the noisier the harder. Returns images and masks `[n, 16, 16]`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    images, masks = [], []
    for _ in range(n):
        a, b, r = random.uniform(5, 11), random.uniform(5, 11), random.uniform(3, 5)
        mask = (y - a) ** 2 + (x - b) ** 2 < r**2
        images.append(100.0 * mask + random.normal(0, random.choice([8.0] * 9 + [60.0]), mask.shape))
        masks.append(mask)
    return np.array(images, np.float32), np.array(masks, np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """120 cases of 60 patients, and images of noise without labels."""
    folder = tmp_path_factory.mktemp("cases")
    images, masks = drawn(120)
    patients = np.array([f"patient {index // 2}" for index in range(120)])
    np.savez(folder / "cases.npz", images=images, masks=masks, patients=patients, spacing=np.array([1.0, 1.0]))
    noise = np.random.default_rng(9).normal(0, 1, (15, 16, 16)).astype(np.float32)
    np.savez(folder / "noise.npz", images=noise, spacing=np.array([1.0, 1.0]))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def told(repository, data):
    """One run over all kinds of model."""
    page = data / "page.html"
    result = run(
        "tinyseg", "steep", "both", "single", "--repository", repository, "--data", data / "cases.npz",
        "--shifted", data / "noise.npz", "--threads", 1, "--repetitions", 1000, "--acceptable-dice", 0.4, "--json",
        "--report", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse), page.read_text(encoding="utf-8")


ASKED = {
    "dice", "ece", "smooth_ece", "classwise_ece", "brier", "nll", "ece_recalibrated", "smooth_ece_recalibrated",
    "nll_recalibrated", "aurc", "e_aurc", "augrc", "risk_at_80", "risk_at_90", "risk_at_95", "auroc_errors",
    "aurc_pairwise_dice", "augrc_pairwise_dice", "aurc_less_pairwise_dice", "risk_accepted",
    "auroc_shifted", "auroc_shifted_ood_distance", "coverage_lesion", "width_ml_lesion", "coverage_total",
    "width_ml_total", "accepted", "error_among_accepted", "samples",
}  # fmt: skip


@pytest.mark.slow
def test_every_figure_of_every_model_is_there(told):
    """With an interval around it, and the whole story beside it: why, samples, time, training."""
    document, _ = told
    assert [model["name"] for model in document["models"]] == ["tinyseg", "steep", "both", "single"]
    assert {figure["name"] for figure in document["figures"]} == ASKED
    for model in document["models"]:
        assert set(model["figures"]) == ASKED
        for name, of in model["figures"].items():
            assert set(of) == {"value", "low", "high", "left_out"}
            if of["value"] is None:
                assert (model["name"], name.endswith("pairwise_dice")) == ("single", True), name
            elif "ece" not in name and name != "error_among_accepted":  # ECE leans upwards when resampled
                rounding = 1e-12 * abs(of["value"])  # sums of resampled cases are taken in another order
                assert of["low"] - rounding <= of["value"] <= of["high"] + rounding, name
        assert model["milliseconds"]["least"] <= model["milliseconds"]["median"] <= model["milliseconds"]["greatest"]
        assert model["accepted"]["cases"] == 40
        assert model["certified"] == model["accept"].startswith("accepted ")
    assert any(model["certified"] and model["accepted"]["accepted"] for model in document["models"])
    assert min(model["milliseconds"]["ratio"] for model in document["models"]) == 1.0
    trained = [model["training"] for model in document["models"]]
    assert trained == [None, {"title": "a small network", "seconds": 12.5, "note": "one core"}, None, None]
    assert [model["samples"]["full"] for model in document["models"]] == [20, 20, 20, 1]
    assert [model["samplers"] for model in document["models"]] == [1, 1, 2, 1]


def test_patients_are_dealt_once_and_stay_apart(told):
    """A third of 60 patients is measured on; their cases come in twos."""
    document, _ = told
    assert document["cases"]["test"] == {"cases": 40, "patients": 20}
    assert document["cases"]["pilot"] == {"cases": 24, "patients": 12}
    assert document["cases"]["calibration"] == {"cases": 56, "patients": 28}
    assert document["cases"]["shifted"]["cases"] == 15


def test_differences_are_to_the_first_and_counted(told):
    """One for each other model and ranked figure; a sentence with a direction only where it is shown."""
    document, _ = told
    ranked = [figure["name"] for figure in document["figures"] if figure["better"]]
    pairs = [(each["figure"], each["model"]) for each in document["differences"]]
    assert pairs == [(figure, model) for figure in ranked for model in ("steep", "both", "single")]
    assert document["comparisons"]["made"] == len(pairs)
    for each in document["differences"]:
        claims = bool(re.search(r"has a (lower|higher)|takes (fewer|more)", each["words"]))
        assert claims == each["shown"], each
        if each["shown"]:
            assert each["joint_low"] * each["joint_high"] > 0
    samples = {each["model"]: each for each in document["differences"] if each["figure"] == "samples"}
    assert samples["single"]["words"].startswith("single takes fewer samples than tinyseg: −")


def test_ood_distance_is_the_same_for_all_models(told):
    """It looks at the input only; the page says so."""
    document, page = told
    assert document["ood_distance_equal"] is True
    values = {model["figures"]["auroc_shifted_ood_distance"]["value"] for model in document["models"]}
    assert len(values) == 1
    assert "equal for all models here" in page


def test_the_page_stands_alone(told):
    """Four plots in it, no script, nothing from the network; every model and every sentence."""
    document, page = told
    assert page.count("<svg") == 4
    assert "<script" not in page and "<link" not in page and "@import" not in page
    foreign = re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", page)
    assert [each for each in foreign if "w3.org" not in each] == []
    for each in document["differences"]:
        if each["shown"]:
            assert each["words"] in page.replace("&#39;", "'").replace("&#43;", "+")


@pytest.mark.slow
def test_figures_are_those_of_calibrate(repository, data):
    """The same cases, judged by the same policy, give what the calibration report would say."""
    model = load_compared(repository, "tinyseg")
    sets = gather(str(data / "cases.npz"), model.contract)
    goals = Goals("mean Dice below 0.4")
    kept = {}

    def keep(contract, chosen, cases):
        judged = judge(contract, chosen, cases)
        kept[len(kept)] = judged
        return judged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "judge", keep)
        got = results_on(model, sets, goals, 0.4, 1, quiet=True)
    report = calibrate_figures(model.contract, kept[0], goals)
    of = {figure.name: figure.of(got, ones(got))[0] for figure in figures([got], True)}
    for metric in ("ece", "smooth_ece", "classwise_ece", "brier", "nll"):
        assert of[metric] == pytest.approx(report["probabilities"][metric]["before"])
    assert of["ece_recalibrated"] == pytest.approx(report["probabilities"]["ece"]["after"])
    assert of["dice"] == pytest.approx(report["dice"]["mean"])
    assert of["auroc_errors"] == pytest.approx(report["selection"]["auroc_errors"]["value"])
    assert of["samples"] == report["samples"]["mean"]
    assert of["accepted"] == report["routes"]["accept"] / report["cases"]
    assert report["routes"]["accept"] > 0
    assert of["error_among_accepted"] == pytest.approx(report["error_among_accepted"]["share"])
    for name in ("lesion", "total"):
        assert of[f"coverage_{name}"] == pytest.approx(report["volume"][name]["coverage"])
        assert of[f"width_ml_{name}"] == pytest.approx(report["volume"][name]["width_ml"])


@pytest.mark.slow
def test_what_cannot_be_certified_is_no_failure(repository, data):
    """At α = .01 no threshold can be: nothing is accepted, and both JSON and page say why."""
    page = data / "strict.html"
    result = run(
        "tinyseg", "single", "--repository", repository, "--data", data / "cases.npz", "--alpha", 0.01,
        "--threads", 1, "--repetitions", 1000, "--json", "--report", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for model in json.loads(result.stdout)["models"]:
        assert model["certified"] is False
        assert "takes at least 230 labelled cases, each of another patient; 28 were given" in model["accept"]
        assert model["accepted"]["accepted"] == 0
        assert model["figures"]["accepted"]["value"] == 0.0
        assert model["figures"]["error_among_accepted"]["value"] is None
        assert model["figures"]["aurc"]["value"] is not None
        assert "auroc_shifted" not in model["figures"]
        assert model["accept"] in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_table_and_the_sentences_are_printed(repository, data):
    """For a person: names across, figures down, and where the page lies."""
    page = data / "plain.html"
    result = run(
        "tinyseg", "single", "--repository", repository, "--data", data / "cases.npz", "--threads", 1,
        "--repetitions", 1000, "--report", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in ("tinyseg", "single", "AURC ↓", "share accepted ↑", "comparisons; Bonferroni", str(page)):
        assert part in result.output


@pytest.mark.parametrize(
    ("models", "data_name", "said"),
    [
        (("tinyseg", "tinydet"), "cases.npz", "cannot be compared: task segmentation there, classification here"),
        (("tinyseg", "tinyseg"), "cases.npz", "given more than once"),
        (("tinyseg", "nobody"), "cases.npz", "no published model 'nobody'; there are both, single, steep"),
        (("tinyseg",), "nowhere", "neither a folder nor an .npz file"),
        (("tinyseg",), "noise.npz", "expected `images` and `labels` (or `masks`)"),
    ],
)
def test_what_cannot_be_compared_is_refused(repository, data, models, data_name, said):
    """In a line that says what was given and what is expected."""
    page = data / "never.html"
    result = run(*models, "--repository", repository, "--data", data / data_name, "--report", page)
    assert result.exit_code == 1
    # What the client's readers raise is told by `equipoise` itself, for every verb alike.
    assert said in " ".join(f"{result.output} {result.exception}".split())
    assert "not compared" in result.output or type(result.exception).__name__ == "InvalidInput"
    assert not page.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--data", "reference:hippocampus", "--leave-out", "x.csv"), "its parts are fixed"),
        (("--data", "cases.npz", "--report", "."), "is a folder"),
        (("--data", "cases.npz", "--test", "bare.npz"), "no voxel spacing is stated"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_measured(repository, data, monkeypatch, change, said):
    """Not left aside, and not after hours of measuring."""
    monkeypatch.chdir(data)
    monkeypatch.setattr("equipoise_lab.compare.command.results_on", None)
    monkeypatch.setattr("equipoise_lab.compare.case_sets.reference_case_sets", None)
    images, masks = drawn(4, seed=5)
    np.savez(data / "bare.npz", images=images, masks=masks)
    result = run("single", "--repository", repository, *change)
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())


def test_images_that_thresholds_were_chosen_on_are_not_measured_on(repository, data):
    """However they are called."""
    archive = data / "cases.npz"
    result = run("single", "--repository", repository, "--data", archive, "--test", archive, "--threads", 1)
    assert result.exit_code == 1
    assert "the same image is among the cases that thresholds are chosen on" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "change",
    [{"classes": ("background", "tumour")}, {"spacing": None}, {"channels": 3}, {"orientation": "RA"}],
)
def test_models_of_another_question_are_named(repository, change):
    """Classes, spacing, channels, orientation: what the cases' preparation and truth depend on."""
    model = load_compared(repository, "tinyseg")
    other = replace(model.published, contract=replace(model.contract, **change))
    with pytest.raises(ComparisonError, match=f"tinyseg and other cannot be compared: {next(iter(change))}"):
        check_alike([model, replace(model, name="other", published=other)])


@pytest.mark.parametrize("text", ["[]", "{", '{"title": "x"}', '{"title": "x", "seconds": -1}'])
def test_a_training_file_that_says_something_else_is_refused(tmp_path, text):
    """Rather than a training time that nobody stated."""
    (tmp_path / "training.json").write_text(text, encoding="utf-8")
    with pytest.raises(ComparisonError, match=r"training\.json"):
        load_training(tmp_path / "training.json")
    assert load_training(tmp_path / "absent.json") is None


def test_dealing_is_by_patient_and_the_same_in_any_order():
    """No patient on two sides; whoever comes first in the folder makes no difference."""
    blank = np.zeros((1, 4, 4), np.float32)
    cases = [Labelled(f"{i}", f"patient {i // 3}", blank, blank[0].astype(np.uint8)) for i in range(90)]
    once, again = (deal("x", given, 1 / 3, 0.3) for given in (cases, cases[::-1]))
    for name in ("pilot", "calibration", "test"):
        mine = {case.patient for case in once.parts[name]}
        assert mine == {case.patient for case in again.parts[name]}
        others = [
            case.patient for other in ("pilot", "calibration", "test") if other != name for case in once.parts[other]
        ]
        assert mine and not mine & set(others)
    assert len(once.test) == 30
    with pytest.raises(ComparisonError, match="too few to deal"):
        deal("x", cases[:3], 1 / 3, 0.3)


@pytest.mark.parametrize("name", ["hippocampus", "pneumonia", "nuclei"])
def test_reference_data_say_what_is_shifted(name):
    """Test images made worse, patient by patient, or other tissue; the shift is named in the report."""
    if name == "hippocampus":
        pytest.importorskip("nibabel")
    try:
        sets = reference_case_sets(name)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    assert sets.shift
    if name in CORRUPTIONS:
        assert [case.patient for case in sets.shifted] == [case.patient for case in sets.test]
        assert all((a.image != b.image).any() for a, b in zip(sets.shifted, sets.test, strict=True))
    else:
        assert not {case.patient for case in sets.shifted} & {case.patient for case in sets.test}
    groups = [{case.name for case in sets.parts[part]} for part in ("pilot", "calibration", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.slow
def test_reference_data_give_the_published_policy(monkeypatch):
    """The committed nuclei policy's cases, thresholds and routes: the same split, by a first pass and full T."""
    from equipoise_lab.reference.build import goals
    from equipoise_lab.reference.data import REPOSITORY
    from equipoise_lab.reference.specs import REFERENCES

    try:
        sets = reference_case_sets("nuclei")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    reference, repository = REFERENCES["nuclei"], REPOSITORY / "model_repository"
    model = load_compared(repository, "nuclei")
    monkeypatch.setattr(module, "lack_of_pairwise_dice", lambda *given: float("nan"))  # minutes, and not asked here
    got = results_on(model, sets, goals(reference), reference.acceptable_dice, quiet=True)
    policy = load_model(repository / "nuclei" / "1").policy
    assert got.chosen.policy.calibration_digest == policy.calibration_digest
    assert [stage.accept_up_to for stage in got.chosen.policy.stages] == pytest.approx(
        [stage.accept_up_to for stage in policy.stages], rel=1e-4
    )
    routes = json.loads((REPOSITORY / "export/equipoise_lab/reference/weights/nuclei.routes.json").read_text())
    assert int(got.accepted.sum()) == routes["accept"]
    assert int((got.accepted * got.loss).sum()) == routes["wrong_among_accepted"]
