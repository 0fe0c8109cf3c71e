"""`equipoise load` against the real server."""

from __future__ import annotations

import json

import pytest
from equipoise_client.cli.main import main

from ..support.asking import MODELS

pytestmark = pytest.mark.triton


def loaded(capsys, server, *words: str, warmup: float = 0.2) -> tuple[int, dict]:
    """Exit code and report."""
    with pytest.raises(SystemExit) as ended:
        main(["load", *words, "--url", server.grpc_url, "--warmup", str(warmup), "--json"])
    return ended.value.code or 0, json.loads(capsys.readouterr().out)


def test_a_mix_is_sent_and_the_server_agrees_on_what_came(capsys, server, tmp_path):
    """Every request is answered and counted; Triton's own counters tell of the same ones."""
    page = tmp_path / "run.html"
    words = ["pneumonia=3", "nuclei", "--rate", "6", "--duration", "3", "--samples", "2", "--urgent", "0.5"]
    code, report = loaded(
        capsys, server, *words, "--html", str(page), "--metrics", server.metrics_url, "--slo", "errors=0%"
    )
    assert code == 0
    assert report["requests"]["failed"] == 0 and report["requests"]["sent"] > 5
    assert report["samples_per_image"] == 2.0
    assert set(report["routes"]) <= {"review", "reject"}, "the caller named T"
    assert {each["request"] for each in report["mix"]} == {
        f"{name} T=2{urgent}" for name in ("pneumonia 28x28", "nuclei 256x256") for urgent in ("", " urgent")
    }
    counted = sum(report["server"][name]["requests"] for name in ("pneumonia", "nuclei") if name in report["server"])
    assert counted >= report["requests"]["answered"], "the warm-up counts there as well"
    assert "<svg" in page.read_text()


def test_several_images_a_request_are_counted_each(capsys, server):
    """Routes and samples are of images; rates are told of both."""
    words = ["pneumonia", "--rate", "10", "--duration", "2", "--samples", "2", "--images-per-request", "3"]
    code, report = loaded(capsys, server, *words)
    assert code == 0 and report["requests"]["answered"] > 3
    assert sum(report["routes"].values()) == 3 * report["requests"]["answered"]
    assert report["samples_per_image"] == 2.0
    assert report["images_per_second"] == pytest.approx(3 * report["achieved_per_second"])
    assert [each["request"] for each in report["mix"]] == ["pneumonia 3 of 28x28 T=2"]


def test_a_broken_promise_is_an_exit_code(capsys, server):
    """For scripts: 3 where an objective was missed."""
    code, report = loaded(capsys, server, "pneumonia", "--rate", "5", "--duration", "1", "--slo", "p50=1us")
    assert code == 3
    assert report["objectives"][0]["kept"] is False


def test_closed_loop_of_every_reference_model(capsys, server):
    """Without a warm-up: however slow the machine, the first request of each caller counts."""
    words = [*MODELS, "--arrivals", "closed", "--concurrency", "2", "--duration", "2", "--samples", "2"]
    code, report = loaded(capsys, server, *words, warmup=0)
    assert code == 0
    assert report["offered_per_second"] is None and report["requests"]["answered"] > 0
