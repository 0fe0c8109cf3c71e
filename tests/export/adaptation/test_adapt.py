"""A site's policy: closed without labels, opened by the site's own, closed again by images that differ."""

import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.case import Model
from equipoise_core.contract import Activation, Contract, Sampler, SiteKind, Task
from equipoise_core.contract import Site as DropoutSite
from equipoise_core.decision import Route
from equipoise_core.policy import load_policy, parse_policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_core.volume import widened
from equipoise_export.adaptation import adapt as adapt_module
from equipoise_export.adaptation.adapt import AdaptedSite
from equipoise_export.adaptation.decide import accepting, begin, changed, decide_site, images_needed
from equipoise_export.adaptation.errors import AdaptationError
from equipoise_export.adaptation.report import render_report
from equipoise_export.adaptation.site import Known, load_site
from equipoise_export.calibration.cases import Measured, Step
from equipoise_export.calibration.choose import Goals, Method, choose_policy, serve
from equipoise_export.calibration.table import TableError, load_table, table_of

SAMPLES = (5, 20)
BOTH = ((True, True), (True, True))
"""A label that shows both classes."""


def contract_of(task):
    segmentation = task is Task.SEGMENTATION
    return Contract(
        "toy", task, Activation.SOFTMAX, ("background", "ill") if segmentation else ("normal", "ill"), 1, (8, 8),
        (8, 8), (8, 8), Preprocessing((ZScore(),)), (DropoutSite("head", SiteKind.ELEMENT, (8,), 0.5),), samples=20,
        samplers=(Sampler("toy_sampler", "00" * 32),), spacing=((0.5, 2.0),) * 2 if segmentation else None,
    )  # fmt: skip


def draw(n, seed, *, task=Task.CLASSIFICATION, moved=0.0, error=0.4):
    """Cases whose score predicts errors and whose first statistic may be moved; volumes are the worse the larger it is.

    Args:
        error: how often cases are wrong, in multiples of score².
    """
    random = np.random.default_rng(seed)
    cases = []
    for index in range(n):
        score, where = random.uniform(0.0, 0.4), random.normal() + moved
        loss = float(random.random() < error * score**2)
        truth = random.uniform(5.0, 10.0)
        mean = truth + random.normal() * np.exp(0.5 * where)
        volumes = {"ill": (mean, mean - 0.5, mean + 0.5)} if task is Task.SEGMENTATION else {}
        names = ("lack_of_confidence", "predictive_entropy", "mutual_information")
        if task is Task.SEGMENTATION:
            names = ("sample_disagreement", "lack_of_soft_dice_confidence", "rim_epistemic")
        share = {"foreground_share": float(np.exp(random.normal(-1, 0.1)))} if volumes else {}
        dice = 1.0 - score if volumes else float("nan")
        steps = []
        for samples in SAMPLES:
            drawn = score * np.exp(random.normal(0, 0.2 / np.sqrt(samples)))
            scores = {name: float(drawn * scale) for name, scale in zip(names, (1.0, 2.0, 0.1), strict=True)}
            p = np.array([[1.0 - score, score]])
            margins = (abs(mean - truth) / 2.0, abs(mean - truth)) if volumes else None
            steps.append(Step(samples, scores, share, loss, dice, volumes, (), p, margins=margins))
        cases.append(
            Measured(
                f"{seed}-{index}",
                f"{seed}-{index}",
                "",
                f"{seed * 100_000 + index:064x}",
                {"a": where, "b": float(random.normal())},
                tuple(steps),
                {"ill": truth} if volumes else {},
                np.eye(2)[[int(loss)]],
                (1.0, 1.0) if volumes else None,
            )
        )
    return cases


class Elsewhere:
    """A model that was calibrated at another site."""

    def __init__(self, task=Task.CLASSIFICATION, **how):
        self.contract, self.task, self.how = contract_of(task), task, how
        loss = "mean Dice below 0.8" if task is Task.SEGMENTATION else "wrong label"
        self.goals = Goals(loss, method=Method.NONE)
        cases = draw(200, 2, task=task, **how)
        self.policy = choose_policy(
            self.contract, draw(100, 1, task=task, **how), cases, self.goals, stages=SAMPLES
        ).policy
        self.table = table_of(self.policy.digest, self.goals, 0.8, cases)

    def begin(self, images=60, seed=3, **how):
        given = draw(images, seed, task=self.task, **how)
        return begin(self.contract, self.policy, self.table, "St Anna", given, 0.1, 0.1)

    def labelled(self, site, n, seed, shown=BOTH, **how):
        """The site with n more labelled cases."""
        cases = draw(n, seed, task=self.task, **how)
        added = [Known(case, site.patient(case.patient), site.calls + 1, shown) for case in cases]
        return dataclasses.replace(site, cases=(*site.cases, *added))

    def decide(self, site):
        return decide_site(self.contract, site, self.table)


@pytest.fixture(scope="module")
def elsewhere():
    return Elsewhere()


@pytest.fixture(scope="module")
def begun(elsewhere):
    return elsewhere.begin()


def test_without_labels_nothing_is_accepted(elsewhere, begun):
    """However good and however alike the images are; and the policy is read back as it was written."""
    policy = elsewhere.decide(begun).policy
    assert policy.guarantee is None
    assert all(stage.accept_up_to is None for stage in policy.stages)
    assert [stage.samples for stage in policy.stages] == [stage.samples for stage in elsewhere.policy.stages]
    assert policy.adapted.site == "St Anna" and policy.adapted.source == elsewhere.policy.digest
    assert parse_policy(json.loads(policy.dumps())) == policy
    assert "St Anna" in policy.population


def test_what_was_found_against_the_calibration_cases_stays_with_the_policy(elsewhere):
    """The other site's cases still have a part in volume intervals and in which thresholds are tried."""
    source = dataclasses.replace(elsewhere.policy, despite="one image twice (says Dr A)")
    site = begin(elsewhere.contract, source, elsewhere.table, "St Anna", draw(60, 3), 0.1, 0.1)
    assert elsewhere.decide(site).policy.despite == source.despite


def test_a_policy_that_is_not_adapted_keeps_its_digest(elsewhere):
    assert "adapted" not in elsewhere.policy.document()


def test_candidates_go_from_strict_to_the_other_sites_own(elsewhere, begun):
    """Fixed before any label, each stage's threshold rising, and none more permissive than the other site's."""
    for stage, own in enumerate(elsewhere.policy.stages):
        limits = [stages[stage].accept_up_to for stages in begun.candidates]
        assert limits == sorted(limits) and len(set(limits)) == len(limits) > 1
        assert limits[-1] == own.accept_up_to
    shares = elsewhere.decide(begun).accepts
    assert (np.diff(shares) > 0).all() and shares[0] > 0.2


def test_labels_open_accept_step_by_step(elsewhere, begun):
    """Right cases: few open nothing, more open one threshold after the other; the policy states the counts."""
    opened = []
    for n in (10, 60, 300):
        verdict = elsewhere.decide(elsewhere.labelled(begun, n, 4, error=0.0))
        opened.append(verdict.growth.open)
        if verdict.policy.guarantee:
            assert verdict.policy.guarantee.errors == 0
            assert verdict.policy.guarantee.cases == n == verdict.policy.adapted.labelled
            assert "St Anna" in verdict.policy.guarantee.rule and "fair sample" in verdict.policy.guarantee.rule
            assert verdict.policy.stages == begun.candidates[verdict.growth.open]
    assert opened[0] is None and opened[-1] == len(begun.candidates) - 1


def test_labels_still_needed_follow_what_was_seen(elsewhere, begun):
    """Right cases bring the end nearer, wrong ones put it off, an open threshold needs none, a refuted one is never."""

    def needed(site, candidate=0):
        return adapt_module.labels_needed(site, elsewhere.decide(site), candidate)

    fresh = needed(begun)
    assert needed(begun, 1) >= fresh > 10
    assert needed(elsewhere.labelled(begun, 10, 4, error=0.0)) < fresh
    assert needed(elsewhere.labelled(begun, 300, 4, error=0.0)) == 0
    few, many = elsewhere.labelled(begun, 5, 4, error=1e6), elsewhere.labelled(begun, 300, 4, error=1e6)
    assert needed(few) > fresh and needed(many) is None


@pytest.fixture
def adapted_again(elsewhere, begun, tmp_path, monkeypatch):
    """A site that is open and in force at its last threshold, and `adapt` with further labelled cases, not measured."""
    site = elsewhere.labelled(begun, 300, 4, error=0.0)
    version = tmp_path / "repository" / "toy" / "1"
    version.mkdir(parents=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "state.json").write_text(site.dumps())
    adapt_module.table_file(tmp_path / "repository", "toy").write_text(elsewhere.table.dumps())

    def again(more, in_force, **how):
        (version / "policy.json").write_text(in_force)
        known = [Known(case, site.patient(case.patient), 2, BOTH) for case in more]
        policy = load_policy(version / "policy.json") if in_force.startswith("{") else None
        patched = {
            "load_model": lambda _: Model(elsewhere.contract, policy, "", "code"),
            "labelled_cases": lambda *_, **__: [],
            "_with_labels": lambda _, site, *__: (dataclasses.replace(site, cases=(*site.cases, *known)), {}),
            "renew_configurations": lambda *_: None,
        }
        for name, stub in patched.items():
            monkeypatch.setattr(adapt_module, name, stub)
        found = adapt_module.adapt(
            "toy", repository=tmp_path / "repository", folder=tmp_path / "site", labelled="more", **how
        )
        return found, (version / "policy.json").read_text()

    return again, elsewhere.decide(site).policy.dumps()


def test_a_threshold_that_labels_refute_is_closed_at_once(adapted_again, elsewhere, begun):
    """Without being asked to install it, though stricter ones stay open; what opens further waits to be asked."""
    again, in_force = adapted_again
    stricter = dataclasses.replace(parse_policy(json.loads(in_force)), stages=begun.candidates[0]).dumps()
    found, now = again([], stricter)
    assert found.verdict.policy.stages == begun.candidates[-1] and not found.installed and now == stricter

    def route(stages, case):
        return serve(elsewhere.contract, accepting(begun.bounds, stages, 0.1, 0.1), case).route

    between = [
        dataclasses.replace(case, steps=tuple(dataclasses.replace(step, loss=1.0) for step in case.steps))
        for case in draw(1000, 11)
        if [route(stages, case) is Route.ACCEPT for stages in begun.candidates[-2:]] == [False, True]
    ]
    found, now = again(between, in_force)
    assert found.verdict.growth.refuted[-1].tolist() == [False] * (len(begun.candidates) - 1) + [True]
    assert found.installed and now == found.verdict.policy.dumps()
    assert found.verdict.policy.stages == begun.candidates[-2]


def test_a_site_is_adapted_where_the_policy_in_force_cannot_be_read(adapted_again):
    """It accepts nothing; the state is not lost, and a new policy replaces it on request."""
    again, _ = adapted_again
    found, now = again([], "not JSON")
    assert not found.installed and now == "not JSON"
    found, now = again([], "not JSON", install=True)
    assert found.installed and now == found.verdict.policy.dumps()


def test_a_site_where_the_model_errs_is_never_opened(elsewhere, begun):
    """Its images are the same, its truth is not: no weight could have told."""
    verdict = elsewhere.decide(elsewhere.labelled(begun, 300, 5, error=20.0))
    assert verdict.policy.guarantee is None
    assert "more errors than allowed" in verdict.why


def test_a_class_that_was_never_seen_keeps_accept_closed(elsewhere, begun):
    normal = ((True, False), (True, True))
    verdict = elsewhere.decide(elsewhere.labelled(begun, 300, 4, shown=normal, error=0.0))
    assert verdict.policy.guarantee is None
    assert "shows ill" in verdict.why


def test_images_that_differ_close_what_labels_opened(elsewhere, begun):
    """And nothing opens it again; images of the same kind leave it open."""
    site = elsewhere.labelled(begun, 300, 4, error=0.0)
    assert changed(site, draw(60, 8)) is None
    why = changed(site, draw(60, 8, moved=2.0))
    assert "differ in ood_distance" in why
    verdict = elsewhere.decide(dataclasses.replace(site, closed=why))
    assert verdict.policy.guarantee is None and verdict.why == why


def test_later_looks_at_images_seldom_close_a_site_without_a_reason(begun):
    """Over 20 looks in a row fewer than 1 % of sites by the promise; tried on looks at the first level."""
    closed = sum(changed(begun, draw(40, 100 + seed)) is not None for seed in range(200))
    assert closed <= 4
    assert changed(dataclasses.replace(begun, looks=12), draw(40, 8, moved=0.4)) is None


def test_thresholds_that_the_weighted_cases_speak_against_are_dropped():
    """Where the statistic is high, uncertain cases are wrong; the site has only such images. The strictest stays."""
    elsewhere = Elsewhere()

    def judged(case):
        wrong = [float(case.statistics["a"] > 0.5 and step.scores["lack_of_confidence"] > 0.1) for step in case.steps]
        steps = (dataclasses.replace(step, loss=loss) for step, loss in zip(case.steps, wrong, strict=True))
        return dataclasses.replace(case, steps=tuple(steps))

    table = dataclasses.replace(elsewhere.table, cases=tuple(map(judged, elsewhere.table.cases)))
    site = begin(elsewhere.contract, elsewhere.policy, table, "St Anna", draw(80, 3, moved=1.2), 0.1, 0.1)
    alike = begin(elsewhere.contract, elsewhere.policy, elsewhere.table, "St Anna", draw(80, 3), 0.1, 0.1)
    assert not alike.dropped
    assert site.dropped and len(site.candidates) + len(site.dropped) == len(alike.candidates)
    assert site.candidates[0] == alike.candidates[0]
    assert "is to be expected at St Anna" in site.dropped[0]


def test_what_cannot_be_adapted_is_refused(elsewhere):
    needed = images_needed(elsewhere.goals.false_alarms)
    with pytest.raises(AdaptationError, match=f"at least {needed}"):
        elsewhere.begin(images=needed - 1)
    blank = dataclasses.replace(
        elsewhere.policy,
        guarantee=None,
        stages=tuple(dataclasses.replace(stage, accept_up_to=None) for stage in elsewhere.policy.stages),
    )
    with pytest.raises(AdaptationError, match="accepts nothing at its own site"):
        begin(elsewhere.contract, blank, elsewhere.table, "St Anna", draw(60, 3), 0.1, 0.1)


def test_the_state_is_read_back_and_may_not_be_changed(elsewhere, begun, tmp_path):
    """It gives the same policy again; it names no patient; a changed number is refused."""
    site = elsewhere.labelled(begun, 40, 4)
    path = tmp_path / "state.json"
    path.write_text(site.dumps())
    again = load_site(path)
    assert again.digest == site.digest
    assert elsewhere.decide(again).policy == elsewhere.decide(site).policy
    assert "4-7" not in path.read_text()
    assert again.patient("4-7") == site.cases[7].patient != elsewhere.begin().patient("4-7")
    document = json.loads(path.read_text())
    document["cases"][0]["case"]["steps"][0]["loss"] = 0.5
    path.write_text(json.dumps(document))
    with pytest.raises(AdaptationError, match="it was changed"):
        load_site(path)


def test_the_table_is_read_back(elsewhere, tmp_path):
    (tmp_path / "toy.json").write_text(elsewhere.table.dumps())
    again = load_table(tmp_path / "toy.json")
    assert again.digest == elsewhere.table.digest and again.goals == elsewhere.goals
    assert "2-7" not in (tmp_path / "toy.json").read_text()
    document = json.loads((tmp_path / "toy.json").read_text())
    del document["digest"]
    (tmp_path / "toy.json").write_text(json.dumps(document))
    with pytest.raises(TableError, match="states no digest: it was changed"):
        load_table(tmp_path / "toy.json")


def test_a_margin_that_nothing_covers_is_read_back(volumes, tmp_path):
    """Infinity is no JSON."""
    case = volumes.table.cases[0]
    endless = dataclasses.replace(
        case, steps=tuple(dataclasses.replace(step, margins=(1.5, np.inf)) for step in case.steps)
    )
    table = dataclasses.replace(volumes.table, cases=(endless, *volumes.table.cases[1:]))
    (tmp_path / "toy.json").write_text(table.dumps())
    again = load_table(tmp_path / "toy.json")
    assert again.digest == table.digest and again.cases[0].full.margins == (1.5, np.inf)


@pytest.fixture(scope="module")
def volumes():
    return Elsewhere(Task.SEGMENTATION)


def test_volume_intervals_follow_the_images(volumes):
    """Where images are like those with the larger errors the intervals widen, and say that they are approximate."""
    alike, moved = (volumes.decide(volumes.begin(images=100, moved=far)) for far in (0.0, 1.0))
    assert alike.policy.volume.widening["ill"] < moved.policy.volume.widening["ill"]
    assert "no guarantee" in moved.policy.volume.rule and "worth" in moved.volume
    test = draw(400, 9, task=Task.SEGMENTATION, moved=1.0)
    inside = {}
    for name, policy in (("source", volumes.policy), ("site", moved.policy)):
        widening = policy.volume.widening["ill"]
        low, high = np.array([widened(*case.full.volumes["ill"], widening) for case in test]).T
        truth = np.array([case.truths["ill"] for case in test])
        inside[name] = ((low <= truth) & (truth <= high)).mean()
    assert inside["source"] < 0.85 and 0.87 <= inside["site"] <= 0.99


def test_volume_intervals_are_refused_where_the_other_sites_cases_say_nothing(volumes):
    """Until there are labelled cases of the site itself."""
    site = volumes.begin(images=100, moved=8.0)
    verdict = volumes.decide(site)
    assert verdict.policy.volume is None and verdict.volume.startswith("none: ")
    verdict = volumes.decide(volumes.labelled(site, 30, 6, moved=8.0))
    assert verdict.policy.volume.cases == 30 and "all of them of St Anna" in verdict.volume


def test_margins_of_outlines_move_with_the_images_or_say_why_not(volumes):
    """Weighted they are approximate; where the other site says nothing there are none, and the policy says so; the
    site's own labelled cases promise again."""
    alike, moved = (volumes.decide(volumes.begin(images=100, moved=far)) for far in (0.0, 1.0))
    assert volumes.policy.outline.outer * 0.7 < alike.policy.outline.outer < moved.policy.outline.outer
    assert "no guarantee" in moved.policy.outline.rule and "outlines" not in moved.policy.adapted.rule
    test = np.array([case.full.margins for case in draw(400, 9, task=Task.SEGMENTATION, moved=1.0)])
    inside = {
        name: (test <= (policy.outline.inner, policy.outline.outer)).all(axis=1).mean()
        for name, policy in (("source", volumes.policy), ("site", moved.policy))
    }
    assert inside["source"] < 0.85 and 0.87 <= inside["site"] <= 0.99
    far = volumes.begin(images=100, moved=8.0)
    lost = volumes.decide(far)
    assert lost.policy.outline is None and lost.outline.startswith("none: ")
    assert f"margins of outlines: {lost.outline}" in lost.policy.adapted.rule
    own = volumes.decide(volumes.labelled(far, 30, 6, moved=8.0))
    assert own.policy.outline.cases == 30 and "all of them of St Anna" in own.outline
    assert parse_policy(json.loads(own.policy.dumps())) == own.policy


def test_a_table_of_an_earlier_version_promises_no_margins(volumes):
    cases = tuple(
        dataclasses.replace(case, steps=tuple(dataclasses.replace(step, margins=None) for step in case.steps))
        for case in volumes.table.cases
    )
    table = dataclasses.replace(volumes.table, cases=cases)
    verdict = decide_site(volumes.contract, volumes.begin(), table)
    assert verdict.policy.outline is None and "earlier version" in verdict.outline


@pytest.mark.parametrize("labelled", [0, 80])
@pytest.mark.parametrize("task", list(Task)[:2])
def test_the_report_says_whether_accept_is_open(task, labelled, elsewhere, volumes, tmp_path):
    """With its figures, no script, and everything a JSON can say."""
    at = volumes if task is Task.SEGMENTATION else elsewhere
    site = at.begin()
    if labelled:
        site = at.labelled(site, labelled, 4, error=0.0)
    verdict = at.decide(site)
    found = AdaptedSite(site, verdict, tmp_path, {}, False)
    json.dumps(found.document(), allow_nan=False)
    page = render_report(at.contract, found.document(), site, verdict, at.table)
    assert ("accept is open" in page) == bool(labelled)
    assert page.count("<svg") == (5 if labelled else 3)
    assert "<script" not in page
