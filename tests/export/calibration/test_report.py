"""The calibration report: counts that add up, cases that matter, planes that show them, a page that stands alone."""

import base64
import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from equipoise_core.contract import Activation, Contract, Task, load_contract
from equipoise_core.policy import load_policy
from equipoise_deploy.releases.publishing import CASES
from equipoise_export.calibration.cases import Labelled, Measured, Step
from equipoise_export.calibration.choose import Goals
from equipoise_export.calibration.figures import Judged, figures
from equipoise_export.calibration.report import Findings, render_report, write_cases
from equipoise_export.calibration.report.examples import KINDS, Example, Examples, choose_examples
from equipoise_export.calibration.report.pictures import draw, regions
from equipoise_export.calibration.report.summary import Share, of_hundred
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def load(name):
    return load_contract(REPOSITORY / name / "1" / "contract.json"), load_policy(
        REPOSITORY / name / "1" / "policy.json"
    )


def judged(name, *, route, wrong, score, dice=float("nan"), contract_name="pneumonia", group=""):
    """One case as it was decided by the last stage of the committed policy; `score` in units of its threshold."""
    contract, policy = load(contract_name)
    stage = policy.stages[-1]
    segmentation = contract.task is Task.SEGMENTATION
    p = np.full((1, len(contract.classes)), 0.1)
    p[0, 1] = 1 - p[0].sum() + 0.1
    hits = np.zeros_like(p)
    hits[0, 0 if wrong else 1] = 1.0
    volumes = (
        {"anterior": (1.0, 0.9, 1.1), "posterior": (2.0, 1.9, 2.1), "total": (3.0, 2.8, 3.2)} if segmentation else {}
    )
    step = Step(
        stage.samples, {stage.score: score * stage.accept_up_to}, {}, float(wrong), dice, volumes,
        (0.1,) * 101 if segmentation else (), p,
    )  # fmt: skip
    truths = {"anterior": 1.0, "posterior": 2.0, "total": 3.0} if segmentation else {}
    case = Measured(name, f"patient of {name}", group, "digest", {}, (step,), truths, hits)
    return Judged(case, policy, step, route, route, p, "because of <b>this</b>")


MANY = [
    judged("surely wrong", route="accept", wrong=True, score=0.1, group="a"),
    judged("wrong", route="accept", wrong=True, score=0.9, group="b"),
    *(judged(f"right {n}", route="accept", wrong=False, score=n / 100, group="a") for n in range(60)),
    judged("nearly accepted", route="review", wrong=False, score=1.01, group="a"),
    judged("far from accepted", route="review", wrong=False, score=3.0, group="a"),
    judged("caught", route="review", wrong=True, score=2.0, group="a"),
    judged("<i>another organ</i>", route="reject", wrong=True, score=9.0, group="a"),
]


@pytest.mark.parametrize(
    "counts", [{"a": 335, "b": 22, "c": 5}, {"a": 1, "b": 1, "c": 1}, {"a": 1000, "b": 1, "c": 0}, {"a": 0, "b": 7}]
)
def test_a_hundred_is_a_hundred(counts):
    """What occurred is seen, what did not is not, and the rest is as near as whole numbers can be."""
    shown = of_hundred(counts)
    assert sum(shown.values()) == 100
    for name, count in counts.items():
        assert (shown[name] == 0) == (count == 0)
        assert abs(shown[name] - 100 * count / sum(counts.values())) < 1.0


@pytest.mark.parametrize(
    ("share", "said"), [(0.1, (10, 100)), (0.05, (5, 100)), (0.025, (25, 1000)), (0.001, (1, 1000))]
)
def test_a_share_is_a_whole_number_of_cases(share, said):
    """ "At most 2.5 cases" would be no count."""
    assert Share.read(share) == Share(*said)


def test_the_cases_that_matter_are_shown():
    """Errors that nobody would have seen, surest first; then whatever lies nearest the threshold on either side."""
    found = {kind.title: (total, [each.case.name for each in those]) for kind, total, those in choose_examples(MANY, 2)}
    assert list(found.values()) == [
        (2, ["surely wrong", "wrong"]),
        (60, ["right 59", "right 58"]),
        (2, ["nearly accepted", "far from accepted"]),
        (1, ["caught"]),
    ]
    assert [those for _, _, those in choose_examples(MANY, 0)] == [[]] * 4


def test_the_worst_segmentation_comes_first():
    """By Dice, not by score."""
    cases = [
        judged(f"{dice}", route="accept", wrong=True, score=0.5, dice=dice, contract_name="hippocampus")
        for dice in (0.7, 0.1, 0.4)
    ]
    assert [each.case.name for each in choose_examples(cases, 3)[0][2]] == ["0.1", "0.4", "0.7"]


def answer(contract, labels, epistemic):
    unsure = np.asarray(epistemic, np.float32)[None]
    return SimpleNamespace(
        model=SimpleNamespace(contract=contract),
        uncertainty=SimpleNamespace(labels=labels, total=unsure),
        spread=SimpleNamespace(epistemic=unsure),
    )


def pixels(panel):
    assert panel.uri.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel.uri.split(",")[1]))).convert("RGB")).astype(int)


def test_a_volume_is_shown_where_label_and_answer_differ_most():
    """Across the axis that shows most of the structure, in the slice with the error; the reader is told which."""
    contract, _ = load("hippocampus")
    truth = np.zeros((20, 24, 16), np.uint8)
    truth[4:16, 4:20, 6:10] = 1
    labels = truth.copy()
    labels[5:15, 5:19, 8] = 2
    case = Labelled("c", "c", np.random.default_rng(0).random((1, 20, 24, 16), np.float32), truth, (1.0,) * 3)
    image, label, answered, unsure = draw(case, answer(contract, labels[None], np.zeros(truth.shape)))
    assert image.caption == "Image, slice 9 of 16"
    assert "red" in answered.caption and "expert" in label.caption
    redder = [(pixels(panel)[..., 0] > pixels(panel)[..., 2] + 40).mean() for panel in (image, label, answered)]
    assert redder[0] < 0.01 and redder[2] > 0.2
    assert "as probable" in unsure.caption  # samples that never disagree say nothing


def test_a_volume_of_thick_slices_is_cut_along_them():
    """Another plane would be a few lines of pixels."""
    contract, _ = load("hippocampus")
    truth = np.zeros((5, 40, 40), np.uint8)
    truth[2, 10:30, 10:30] = 1
    case = Labelled("c", "c", np.random.default_rng(0).random((1, 5, 40, 40), np.float32), truth, (5.0, 1.0, 1.0))
    panels = draw(case, answer(contract, np.zeros((1, 5, 40, 40), np.uint8), np.ones(truth.shape)))
    assert panels[0].caption == "Image, slice 3 of 5"
    assert "samples disagree" in panels[3].caption
    shape = pixels(panels[0]).shape
    assert abs(shape[0] - shape[1]) <= 2  # 40 × 40 of 1 mm


@pytest.mark.parametrize("blank", [True, False])
def test_a_picture_in_two_dimensions_needs_no_scale(blank):
    """Nothing found and nothing there is a picture as well; so are overlapping classes."""
    contract, _ = load("nuclei")
    truth = np.zeros((1, 32, 48), np.uint8)
    truth[0, 8:16, 8:16] = 0 if blank else 1
    case = Labelled("c", "c", np.random.default_rng(0).random((1, 32, 48), np.float32), truth)
    panels = draw(case, answer(contract, truth, np.zeros((32, 48))))
    assert [each.caption.split(",")[0].split(":")[0].split(";")[0] for each in panels] == [
        "Image", "Label by the expert", "Answer", "Unsure",
    ]  # fmt: skip
    height, width, _ = pixels(panels[0]).shape
    assert width / height == pytest.approx(1.5, rel=0.02)


def test_colour_stays_colour():
    """Stained tissue in grey would be another picture."""
    contract, _ = load("nuclei")
    image = np.zeros((3, 16, 16), np.float32)
    image[0], image[1, :8] = 200, 90
    panel = draw(
        Labelled("c", "c", image, np.zeros((1, 16, 16), np.uint8)),
        answer(contract, np.zeros((1, 16, 16), np.uint8), np.zeros((16, 16))),
    )[0]
    assert pixels(panel)[-20:, :, 0].mean() > pixels(panel)[-20:, :, 2].mean() + 100


def test_regions_of_both_kinds_of_labels():
    """Indices or one mask per class, with or without the axis of answers."""
    softmax, _ = load("hippocampus")
    indices = np.array([[[0, 1], [2, 2]]], np.uint8)
    assert regions(softmax, indices, (1, 2, 2)).sum(axis=(1, 2, 3)).tolist() == [1, 2]
    assert np.array_equal(regions(softmax, indices[None], (1, 2, 2)), regions(softmax, indices, (1, 2, 2)))
    sigmoid, _ = load("nuclei")
    assert sigmoid.activation is Activation.SIGMOID
    assert regions(sigmoid, np.array([[[0, 1]]], np.uint8), (1, 2)).tolist() == [[[False, True]]]


def test_every_case_is_a_line(tmp_path):
    """Sorted within its set, with its route, its reason and whether it was right."""
    contract, _ = load("pneumonia")
    write_cases(tmp_path / "c.csv", contract, {"pilot": MANY[:1], "calibration": MANY[1:]})
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(MANY)
    assert [row["set"] for row in rows][:2] == ["pilot", "calibration"]
    by_name = {row["case"]: row for row in rows}
    assert by_name["caught"]["route"] == "review" and by_name["caught"]["right"] == "no"
    assert (by_name["caught"]["answer"], by_name["caught"]["truth"]) == ("pneumonia", "normal")
    assert float(by_name["caught"]["score"]) == pytest.approx(2 * float(by_name["caught"]["threshold"]), rel=1e-4)
    assert by_name["right 3"]["group"] == "a" and by_name["right 3"]["patient"] == "patient of right 3"
    names = [row["case"] for row in rows[1:]]
    assert names == sorted(names)


def test_volumes_of_a_line_are_those_that_are_served(tmp_path):
    """With the widening of the policy, beside the label's."""
    contract, policy = load("hippocampus")
    one = judged("c", route="accept", wrong=False, score=0.5, dice=0.9, contract_name="hippocampus")
    write_cases(tmp_path / "c.csv", contract, {"calibration": [one]})
    with (tmp_path / "c.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["low_ml_total"]) == pytest.approx(2.8 - policy.volume.widening["total"], rel=1e-4)
    assert (row["volume_ml_total"], row["truth_ml_total"], row["dice"]) == ("3", "3", "0.9")


def test_cases_without_volumes_stand_beside_such_with(tmp_path):
    """Of a model without a scale some files state a spacing, others do not: a column for all, empty where unknown."""
    contract, _ = load("hippocampus")
    one, other = (judged(n, route="review", wrong=True, score=2, dice=0.5, contract_name="hippocampus") for n in "ab")
    bare = replace(one, step=replace(one.step, volumes={}), case=replace(one.case, truths={}))
    write_cases(tmp_path / "c.csv", contract, {"calibration": [bare], "test": [other]})
    with (tmp_path / "c.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["low_ml_total"], second["volume_ml_total"]) == ("", "3")


def test_where_a_narrower_interval_would_be_upside_down_its_middle_is_listed():
    """In lines and figures alike."""
    contract, policy = load("hippocampus")
    one = judged("c", route="accept", wrong=False, score=0.5, dice=0.9, contract_name="hippocampus")
    narrow = replace(policy.volume, widening=dict.fromkeys(policy.volume.widening, -0.5))
    one = replace(one, policy=replace(policy, volume=narrow))
    assert one.widened("total") == (3.0, 3.0)
    assert figures(contract, [one], Goals("wrong label"))["volume"]["total"]["coverage"] == 1.0


def findings(contract: Contract, cases, examples=(), certified=True) -> Findings:
    policy = cases[0].policy
    if not certified:
        stages = tuple(replace(stage, accept_up_to=None, review_above=None) for stage in policy.stages)
        policy = replace(policy, guarantee=None, stages=stages)
    figured = figures(contract, cases, Goals("wrong label"))
    return Findings(
        contract, policy, "no threshold could be certified", "wrong label", [("Calibration cases", "note", figured)],
        cases, {}, (), examples, "lesion.cases.csv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    contract, _ = load("pneumonia")
    picture = draw(
        Labelled("c", "c", np.zeros((1, 28, 28), np.float32), np.uint8(1)),
        SimpleNamespace(model=SimpleNamespace(contract=contract)),
    )
    examples = [
        Examples(kind, total, [Example(each, picture) for each in those])
        for kind, total, those in choose_examples(MANY, 2)
    ]
    return render_report(findings(contract, MANY, examples))


def test_the_page_begins_in_counts(page):
    """What may go wrong, how often cases come through, and for whom: before any statistics."""
    words = " ".join(page.split())
    assert "Of 100 accepted cases expect <b>at most 5</b> to be wrong" in words  # what the committed policy promises
    assert "2 of 62 accepted cases were wrong; without any review it would have been 4 of 66" in words
    assert words.index("In plain words") < words.index("Cases to look at") < words.index("What was measured")
    assert all(f">{kind.title}" in words for kind in KINDS)
    assert "surely wrong" in words and "<dt>ECE, ACE, Brier, NLL</dt>" in words


def test_names_and_reasons_are_text_on_the_page(page):
    """A file may be called anything."""
    assert "because of <b>this</b>" not in page and "because of &lt;b&gt;this" in page


def test_without_a_certificate_the_page_says_so_first():
    """And shows no accepted cases, of which there are none."""
    contract, _ = load("pneumonia")
    reviewed = [replace(each, route="review") for each in MANY]
    examples = [Examples(kind, total, []) for kind, total, _ in choose_examples(reviewed, 0)]
    words = " ".join(render_report(findings(contract, reviewed, examples, certified=False)).split())
    assert "<b>Nothing is accepted.</b>" in words and "No threshold could be certified" in words
    assert "expect <b>at most" not in words


def test_a_report_without_pictures_names_no_case():
    """It can be handed on: only the table beside it has names."""
    contract, _ = load("pneumonia")
    words = render_report(findings(contract, MANY, [Examples(k, t, []) for k, t, _ in choose_examples(MANY, 0)]))
    assert "surely wrong" not in words and "<img" not in words


def test_what_a_release_leaves_out_is_all_that_shows_or_names_a_case(page):
    """And nothing else: what is guaranteed and measured stays."""
    left = CASES.sub(b"", page.encode()).decode()
    assert "<img" not in left and "surely wrong" not in left and "because of" not in left
    assert "What is guaranteed" in left and "<dt>ECE, ACE, Brier, NLL</dt>" in left


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_a_browser_shows_it_without_asking_anybody(chromium, tmp_path, page, width, scheme):
    """Nothing is loaded, nothing sticks out of a narrow window, and the words can be told from the ground."""
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, problems = [], []
    tab.on("request", lambda request: asked.append(request.url.split(":")[0]))
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto(file.as_uri())
    assert set(asked) <= {"file", "data"} and asked.count("file") == 1 and not problems
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    light = "(colour) => colour.match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"
    ink, ground = (
        tab.evaluate(f"({light})(getComputedStyle(document.body).{each})") for each in ("color", "backgroundColor")
    )
    assert abs(ink - ground) > 150 and (ground < 60) == (scheme == "dark")
    tab.close()
