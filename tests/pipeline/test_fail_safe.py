"""Nothing that went wrong is ever routed to `accept`, shown on the real server with one fault at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from equipoise_core.contract import load_contract
from equipoise_core.policy import Groups
from equipoise_deploy.errors import StartError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair
from onnx import helper
from tritonclient.utils import InferenceServerException

from ..support.asking import ask, case, inputs_of, poll, text
from ..support.repositories import SLOW, accepting_policy, closed, configure, copy_of, gated, hold, with_policy

pytestmark = pytest.mark.triton

IMAGE = np.random.default_rng(0).normal(100.0, 20.0, (1, 16, 16)).astype(np.float32)
SPACING = (1.0, 1.0)
TOO_BRIGHT = 5.0  # standard deviations; beyond, the sampler `notfinite` returns NaN
OUTPUTS = ("route", "reason", "record", "samples_used", "case_score")

SECONDS = 6.0  # of a chunk, out of 1.9 times as many: what is left is too little for another, and enough for a stall


def _returns_nan(model: onnx.ModelProto) -> None:
    """Adds `0 · √(TOO_BRIGHT − image)` to the logits: NaN where a voxel is brighter, nothing elsewhere."""
    _splice(
        model,
        after="images",
        replaces="logit",
        nodes=[
            helper.make_node("Constant", [], ["bright"], value_float=TOO_BRIGHT),
            helper.make_node("Constant", [], ["zero"], value_float=0.0),
            helper.make_node("Sub", ["bright", "images"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["true_logit", "nothing"], ["logit"]),
        ],
    )


BREAKS = """
import pathlib

RUNS = pathlib.Path({file!r})

def _break(execute):
    def broken(self, requests):
        runs = int(RUNS.read_text())
        RUNS.write_text(str(runs - 1))
        if runs > 0:
            return execute(self, requests)
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("out of memory")) for _ in requests]
    return broken

TritonPythonModel.execute = _break(TritonPythonModel.execute)
"""
"""A sampler that fails when the runs written in a file are used up."""


def _splice(model: onnx.ModelProto, after: str, replaces: str, nodes: list[onnx.NodeProto]) -> None:
    """Calls the value `replaces` `true_…` where it is made, and lets `nodes` make it from that."""
    graph = list(model.graph.node)
    assert any(after in node.output for node in graph)
    maker = next(i for i, node in enumerate(graph) if replaces in node.output)
    graph[maker].output[:] = [f"true_{replaces}"]
    del model.graph.node[:]
    model.graph.node.extend([*graph[: maker + 1], *nodes, *graph[maker + 1 :]])
    onnx.checker.check_model(model)


def _variant(tiny, name: str, change=lambda model: None):
    """The tiny pair under another name, its graph changed before it is published."""
    model = onnx.ModelProto()
    model.CopyFrom(tiny.model)
    change(model)
    contract = replace(tiny.contract, name=name)
    helper.set_model_props(model, contract.graph_metadata())
    return replace(tiny, model=model, contract=contract)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_segmentation, gate) -> Path:
    """One sound model, and one for each fault; all but the named fault is as in the sound one."""
    folder = tmp_path_factory.mktemp("fail_safe") / "models"
    sound = configure(with_policy(publish_pair(_variant(tiny_segmentation, "sound"), folder)))
    configure(copy_of(sound, "by_5"), chunk=5)

    (copy_of(sound, "no_policy") / "1" / "policy.json").unlink()
    foreign = replace(accepting_policy(load_contract(sound / "1" / "contract.json")), model_digest="ab" * 32)
    (copy_of(sound, "foreign_policy") / "1" / "policy.json").write_text(foreign.dumps())
    policy = (sound / "1" / "policy.json").read_text()
    (copy_of(sound, "edited_policy") / "1" / "policy.json").write_text(policy.replace("1.5", "1.4"))
    (copy_of(sound, "cut_policy") / "1" / "policy.json").write_text(policy[: len(policy) // 2])
    fixed = accepting_policy(load_contract(sound / "1" / "contract.json"))
    groups = Groups("scanner", {"A": fixed.stages}, {"A": fixed.guarantee}, {"B": 3}, "a test's")
    closed_stages = tuple(replace(stage, accept_up_to=None) for stage in fixed.stages)
    grouped = replace(fixed, stages=closed_stages, groups=groups)
    (copy_of(sound, "by_scanner") / "1" / "policy.json").write_text(grouped.dumps())
    configure(folder / "by_scanner")
    for name in ("no_policy", "foreign_policy", "edited_policy", "cut_policy"):
        configure(folder / name)

    configure(with_policy(publish_pair(_variant(tiny_segmentation, "notfinite", _returns_nan), folder)))
    configure(with_policy(publish_pair(_variant(tiny_segmentation, "breaks"), folder)), chunk=5)
    hold(folder / "breaks_sampler", BREAKS.format(file=str(gate / "runs")))
    (gate / "runs").write_text("1000")
    configure(with_policy(publish_pair(_variant(tiny_segmentation, "slow"), folder)), chunk=5)
    gated(folder / "slow_sampler", gate)
    configure(with_policy(publish_pair(_variant(tiny_segmentation, "pressed"), folder)), chunk=5)
    hold(folder / "pressed_sampler", SLOW.format(seconds=SECONDS))
    return folder


@pytest.fixture(scope="module")
def client(models) -> Iterator[triton.InferenceServerClient]:
    with (
        TritonServer(models, ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as connected,
    ):
        yield connected


def _decided(client, model: str, tensors=None, **options) -> tuple[str, str]:
    """Route and reason; the record has to state the same route."""
    tensors = case(IMAGE, spacing=SPACING) if tensors is None else tensors
    answer = ask(client, model, tensors, OUTPUTS, **options)
    route, reason = text(answer["route"]), text(answer["reason"])
    assert json.loads(text(answer["record"]))["route"] == route
    return route, reason


@pytest.mark.parametrize("model", ["sound", "by_5", "notfinite"])
def test_with_everything_in_order_the_case_is_accepted(client, model):
    """The same image on the same pair is accepted where nothing is wrong: else nothing below would show a thing."""
    route, reason = _decided(client, model)
    assert route == "accept", reason


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("no_policy", "no policy.json"),
        ("foreign_policy", "another model"),
        ("edited_policy", "was changed"),
        ("cut_policy", "cannot be read"),
    ],
)
def test_a_policy_that_cannot_be_trusted_reviews(client, model, why):
    """Missing, another model's, edited by one digit, or cut off: the service runs, and says why it accepts nothing."""
    route, reason = _decided(client, model)
    assert route == "review"
    assert why in reason


def test_only_a_certified_group_is_accepted(client):
    """The group is a parameter of the request; none, one without a certificate, or one that nobody knows is reviewed,
    and a text that the policy does not know stands in no record."""
    assert _decided(client, "by_scanner", parameters={"group": "A"})[0] == "accept"
    for parameters in (None, {"group": "B"}, {"group": "Mr Smith's"}):
        answer = ask(client, "by_scanner", case(IMAGE, spacing=SPACING), OUTPUTS, parameters=parameters)
        assert text(answer["route"]) == "review" and "certified by scanner" in text(answer["reason"])
        assert "Smith" not in text(answer["record"])
    assert _decided(client, "sound", parameters={"group": "B"})[0] == "accept"
    with pytest.raises(InferenceServerException, match="`group` is no text"):
        _decided(client, "by_scanner", parameters={"group": 3})


def test_a_sampler_that_returns_nan_reviews(client):
    """One voxel for which the network gives NaN is enough, and the numbers show it."""
    image = IMAGE.copy()
    image[0, 5, 5] = 1000.0
    assert _decided(client, "sound", case(image, spacing=SPACING))[0] == "accept"
    route, reason = _decided(client, "notfinite", case(image, spacing=SPACING))
    assert route == "review"
    assert "finite" in reason


def test_a_chunk_that_fails_after_the_first_reviews(client, gate):
    """What was drawn is kept, and reported as what it is: 15 of 20 samples, with the sampler's reason."""
    (gate / "runs").write_text("3")
    answer = ask(client, "breaks", case(IMAGE, spacing=SPACING), OUTPUTS)
    assert text(answer["route"]) == "review"
    assert "the sampler failed: out of memory" in text(answer["reason"])
    assert int(answer["samples_used"][0, 0]) == 15
    record = json.loads(text(answer["record"]))
    assert (record["samples"], record["samples_planned"], record["route"]) == (15, 20, "review")
    assert record["reason"]["code"] == "sampler_failed"
    (gate / "runs").write_text("1000")
    assert _decided(client, "breaks")[0] == "accept"


def test_a_sampler_that_fails_at_once_is_an_error(client, gate):
    """Without a single sample there is no route at all, and so nothing to accept; the sound model goes on."""
    (gate / "runs").write_text("0")
    with pytest.raises(InferenceServerException, match="the sampler failed") as caught:
        _decided(client, "breaks")
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert _decided(client, "sound")[0] == "accept"


def test_a_timeout_that_is_too_short_for_all_samples_reviews(client, gate):
    """The request's own timeout passes while the first chunk is drawn: a quarter of the samples, and a review."""
    timeout = 5.0  # seconds, so that the request is handed over in time on a busy machine
    answers: list[tuple[object, object]] = []

    def receive(result, error) -> None:
        answers.append((result, error))

    tensors = case(IMAGE, spacing=SPACING)
    with closed(gate):
        client.async_infer("slow", inputs_of(triton, tensors), receive, timeout=int(timeout * 1e6))
        poll(lambda: list(gate.glob("started-*")), "the first chunk is asked for")
        # The request's time began before the sampler was asked, however late either was.
        passed = time.monotonic() + 1.05 * timeout
        poll(lambda: time.monotonic() >= passed, "the timeout passes")
    poll(lambda: answers, "the answer")
    ((result, error),) = answers
    assert error is None, error
    assert text(result.as_numpy("route")) == "review"
    assert "timeout" in text(result.as_numpy("reason"))
    assert int(result.as_numpy("samples_used")[0, 0]) == 5
    # With the gate open and time enough the same request is accepted.
    assert _decided(client, "slow", timeout=60_000_000)[0] == "accept"


def test_near_the_deadline_an_answer_of_fewer_samples_comes_and_reviews(client):
    """A quarter of the samples took over half of the time: the service answers with those, in time, and says so."""
    tensors = case(IMAGE, spacing=SPACING)
    answer = ask(client, "pressed", tensors, OUTPUTS, timeout=int(1.9 * SECONDS * 1e6))
    assert text(answer["route"]) == "review"
    assert "timeout is near" in text(answer["reason"])
    assert int(answer["samples_used"][0, 0]) == 5
    assert np.isfinite(answer["case_score"]).all()
    assert _decided(client, "pressed", timeout=120_000_000)[0] == "accept"


def test_no_time_at_all_is_an_error(client):
    """A timeout of a microsecond cannot be met: an error or a review, but never an accept."""
    try:
        route, _ = _decided(client, "sound", timeout=1)
    except InferenceServerException as error:
        assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"), error
    else:
        assert route == "review"


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (case(IMAGE, spacing=SPACING, seed=7), "seed"),
        (case(IMAGE, spacing=SPACING, samples=19), "19 samples"),
        (case(IMAGE, spacing=SPACING, samples=20), "20 samples"),
        (case(IMAGE, spacing=SPACING, samples=1), "not a finite|1 samples"),
        (case(IMAGE, spacing=SPACING, samples=100), "100 samples"),
        (case(IMAGE), "no spacing"),
        (case(IMAGE, spacing=(1.0, 2.5)), "outside"),
        (case(IMAGE, spacing=(0.1, 1.0)), "outside"),
    ],
    ids=["own seed", "19 samples", "all 20 samples", "1 sample", "100 samples", "no spacing", "too coarse", "too fine"],
)
def test_what_the_policy_was_not_made_for_reviews(client, tensors, why):
    """A caller's own seed or T, a spacing that is missing or out of range: the numbers stay, the accept does not."""
    answer = ask(client, "sound", tensors, OUTPUTS)
    assert text(answer["route"]) == "review"
    assert any(word in text(answer["reason"]) for word in why.split("|"))
    assert np.isfinite(answer["case_score"]).all()


def test_each_of_several_images_has_its_own_route(client):
    """One image without a fitting spacing does not take the other's accept, nor the other lend it."""
    tensors = {"image": np.stack([IMAGE, IMAGE]), "spacing": np.array([SPACING, (1.0, 2.5)], np.float32)}
    answer = ask(client, "sound", tensors, ("route",))
    assert [route.decode() for route in answer["route"][:, 0]] == ["accept", "review"]


@pytest.mark.slow
def test_a_tampered_sampler_does_not_load(tmp_path, tiny_segmentation):
    """A `model.onnx` that is not the one the contract names: no start, and a message that says what to do."""
    folder = tmp_path / "models"
    publish_pair(tiny_segmentation, folder)
    file = folder / "tinyseg_sampler" / "1" / "model.onnx"
    model = onnx.load(file)
    model.doc_string = "another file, though the same graph"
    onnx.save(model, file)
    with pytest.raises(StartError) as caught:
        TritonServer(folder, ports=Ports(0, 0, 0)).start()
    for words in ("tinyseg_sampler", "model.onnx has digest", "the contract says", "publish the model again"):
        assert words in str(caught.value)
