"""What `equipoise tune` finds, and what `equipoise serve --settings` makes of it."""

from __future__ import annotations

import json

import pytest
from equipoise_client import UncertaintyClient
from equipoise_client.cli.main import main
from equipoise_deploy.errors import RepositoryError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_deploy.serving.settings import FORMAT, Settings, load_settings, settings_document
from equipoise_deploy.serving.staging import published_settings, stage_repository
from equipoise_deploy.tune.tuning import Speed, Trial, knobs, queue_for
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

ALL = Settings(aggregators=5, samplers=2, threads=1, delay=700, chunk=7, queue=9, retry_after=1500)


def test_settings_reach_the_configurations(repository, tmp_path):
    """The public model's, its sampler's; nothing else in them changes, and the repository's own files don't at all."""
    before = {file: file.read_bytes() for file in repository.rglob("*.pbtxt")}
    stage_repository(repository, tmp_path, "embedded", 2, {"tinyseg": ALL})
    public, sampler = (
        text_format.Parse((tmp_path / name).read_text(), ModelConfig())
        for name in ("tinyseg/config.pbtxt", "tinyseg_sampler/configs/embedded.pbtxt")
    )
    assert public.instance_group[0].count == 5
    assert public.parameters["chunk"].string_value == "7"
    assert public.parameters["retry_after_ms"].string_value == "1500"
    policies = public.dynamic_batching.priority_queue_policy
    assert {policy.max_queue_size for policy in policies.values()} == {9}
    assert all(policy.allow_timeout_override for policy in policies.values())
    assert sampler.parameters["runs"].string_value == "2"
    assert sampler.parameters["intra_op_thread_count"].string_value == "1"
    assert sampler.dynamic_batching.max_queue_delay_microseconds == 700
    assert {file: file.read_bytes() for file in repository.rglob("*.pbtxt")} == before


def test_settings_of_no_model_are_refused(repository, tmp_path):
    """A settings file of another repository is a mistake, not something to skip in silence."""
    with pytest.raises(RepositoryError, match=r"settings for elsewhere, but .* serves tinyseg"):
        stage_repository(repository, tmp_path, "embedded", 2, {"elsewhere": ALL})


def test_settings_survive_their_file(tmp_path):
    """What was not said stays unsaid."""
    file = tmp_path / "settings.json"
    given = {"a": ALL, "b": Settings(threads=3)}
    file.write_text(json.dumps(settings_document(given, {"a": {"any": "figures"}})))
    assert load_settings(file) == (given, {"a": {"any": "figures"}})


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": "other"}', f'{{"format": "{FORMAT}"}}']
    + [
        json.dumps({"format": FORMAT, "models": {"m": {"threads": bad}}})
        for bad in (0, -1, 1.5, "2", True, [])
    ]
    + [json.dumps({"format": FORMAT, "models": {"m": {"unknown": 1}}})],
)  # fmt: skip
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text):
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(RepositoryError, match="has no valid settings"):
        load_settings(file)


def test_what_is_published_is_not_tried_again(repository):
    """Each knob's candidates leave out the value that the model runs with anyway; a deterministic one has no chunks."""
    published = published_settings(repository, "tinyseg", "embedded", 2)
    assert (published.threads, published.samplers, published.aggregators) == (1, 2, 4)
    tried = dict(knobs(published, 2, 20, varies=True))
    assert {(c["threads"], c["samplers"]) for c in tried["cores"]} == {(1, 1), (2, 1), (2, 2)}
    assert tried["aggregators"] == ({"aggregators": 8},)
    assert tried["chunk"] == ({"chunk": 5}, {"chunk": 10}) and {"delay": published.delay} not in tried["delay"]
    assert "chunk" not in dict(knobs(published, 2, 20, varies=False))
    # Where there is a single core, so many threads and instances are one and the same.
    single = published_settings(repository, "tinyseg", "embedded", 1)
    assert {(c["threads"], c["samplers"]) for c in dict(knobs(single, 1, 20, True))["cores"]} == {(1, 2)}


@pytest.mark.parametrize(
    ("ratios", "better"),
    [((1.1, 1.1, 1.1, 1.1), True), ((1.02, 1.02, 1.02), False), ((2.0, 2.0, 0.9, 0.9), False), ((), False)],
)
def test_a_candidate_wins_by_much_and_often(ratios, better):
    """By 3 % at the median, and in three of four rounds: noise does neither."""
    assert Trial(Settings(), (), ratios).better is better


def test_speed_counts_waiting_and_throughput_alike():
    """Half the latency at half the throughput is no better."""
    assert Speed(5.0, 50.0).over(Speed(10.0, 100.0)) == pytest.approx(1.0)
    assert Speed(10.0, 400.0).over(Speed(10.0, 100.0)) == pytest.approx(2.0)


@pytest.mark.parametrize(("rate", "wait", "aggregators"), [(100.0, 10.0, 4), (3.0, 10.0, 4), (0.1, 1.0, 4)])
def test_a_queue_holds_what_is_answered_in_time(rate, wait, aggregators):
    """Those before a request that is let in are answered within the wait, where one place and the aggregators are."""
    found = queue_for(rate, wait, aggregators)
    assert found.queue is not None and found.retry_after is not None and found.queue >= 1
    assert (found.queue + aggregators) / rate <= max(wait, (1 + aggregators) / rate)
    assert found.retry_after / 1e3 == pytest.approx((found.queue + aggregators) / rate / 2, abs=1e-3)


@pytest.mark.slow
@pytest.mark.triton
def test_tune_writes_what_serve_takes(repository, tmp_path, capsys):
    """Real servers, side by side; other models' settings stay, figures are kept, and the answers do not change."""
    file = tmp_path / "settings.json"
    kept = Settings(threads=3)
    file.write_text(json.dumps(settings_document({"other": kept}, {"other": {"any": "figures"}})))
    words = ["--rounds", "1", "--seconds", "0.2", "--clients", "2", "--into", str(file), "--json", "--knob", "delay"]
    with pytest.raises(SystemExit) as left:
        main(["tune", "tinyseg", str(repository), *words])
    assert left.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(file.read_text())
    steps = document["figures"]["tinyseg"]["steps"]
    assert {step["knob"] for step in steps} <= {"delay", "check"}
    assert all(trial["together_per_second"] > 0 for step in steps for trial in step["trials"])
    settings, figures = load_settings(file)
    assert settings["other"] == kept and figures["other"] == {"any": "figures"}
    found = settings["tinyseg"]
    assert found.queue and found.retry_after

    def answer(settings):
        import numpy as np

        image = np.random.default_rng(0).random((1, 24, 24), dtype=np.float32)
        with (
            TritonServer(repository, ports=Ports(0, 0, 0), settings=settings) as server,
            UncertaintyClient(server.grpc_url) as client,
        ):
            return client.predict("tinyseg", image).mean

    assert answer({"tinyseg": found}) == pytest.approx(answer({"tinyseg": ALL}), abs=1e-6)
