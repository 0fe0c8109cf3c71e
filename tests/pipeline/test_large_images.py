"""Images larger than the network's window, through the real server."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from equipoise_client import AsyncUncertaintyClient, UncertaintyClient
from equipoise_client.progress import expected_runs, watching
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.publish.repository import publish
from tritonclient.utils import InferenceServerException

from ..support.asking import ask, case, poll, settled, text
from ..support.repositories import closed, gated

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(("name", "size"), [("tinyseg", (100, 150)), ("hippocampus", (140, 24, 17))])
def test_a_large_image_is_answered_as_a_whole(grpc_client, repository, name, size):
    """One request, one answer of the image's own size, equal to what the same windows give in this process."""
    model = load_model(repository / name / "1")
    sampler = OnnxSampler(repository / f"{name}_sampler" / "1" / "model.onnx", threads=1)
    image = np.random.default_rng(0).normal(100, 30, (1, *size)).astype(np.float32)
    local = assess(model, Case(image, samples=3, spacing=(1.0,) * len(size)), [sampler])
    outputs = ["mean", "variance", "epistemic", "labels", "volume", "samples_used", "record"]
    served = ask(grpc_client, name, case(image, samples=3, spacing=(1.0,) * len(size)), outputs)
    assert served["mean"].shape == (1, len(model.contract.classes), *size)
    for output in ("mean", "variance", "epistemic"):
        assert served[output][0] == pytest.approx(getattr(local.uncertainty, output), abs=1e-5)
    assert served["variance"].max() > 0.0
    assert served["volume"][0, 1, 0] == pytest.approx(local.volumes[model.contract.classes[1]].mean, rel=1e-5)
    assert served["samples_used"].item() == 3
    assert json.loads(text(served["record"]))["shape"] == [1, *size]


@pytest.mark.slow
def test_the_client_sees_how_far_it_is(tiny_segmentation, tmp_path):
    """Shares grow up to 1; what a request runs is what was expected of it, and a small image is not watched.

    The sampler is held until somebody has looked: else a client that stalls would find the image answered.
    """
    gate = tmp_path / "gate"
    gated(publish(tiny_segmentation, tmp_path / "models").with_name("tinyseg_sampler"), gate)
    image = np.random.default_rng(0).normal(100, 30, (1, 500, 400)).astype(np.float32)
    shares: list[float] = []

    def told(share: float) -> None:
        shares.append(share)
        (gate / "open").touch()

    with (
        TritonServer(tmp_path / "models", ports=Ports(0, 0, 0)) as server,
        UncertaintyClient(server.grpc_url) as client,
    ):
        contract = client.contract("tinyseg")
        with closed(gate), watching(client, contract, image.shape[1:], 60, told):
            client.predict("tinyseg", image, samples=60, outputs=())
        expected = expected_runs(contract, image.shape[1:], 60)
        poll(lambda: client.sampler_runs("tinyseg") >= expected, "all windows are counted")
        assert settled(lambda: client.sampler_runs("tinyseg")) == expected
        assert expected_runs(contract, (24, 24)) == 0
    assert shares and shares == sorted(shares) and all(0.0 <= share <= 1.0 for share in shares)


def test_a_large_image_can_be_called_off(server):
    """Cancelled in the middle, its windows are not run to the end."""
    image = np.random.default_rng(0).normal(100, 30, (1, 900, 900)).astype(np.float32)

    async def ask_and_leave() -> tuple[int, int]:
        async with AsyncUncertaintyClient(server.grpc_url, timeout=120.0) as client:
            contract = await client.contract("tinyseg")
            whole = expected_runs(contract, image.shape[1:], 1000)
            before = await client.sampler_runs("tinyseg")
            asked = asyncio.create_task(client.predict("tinyseg", image, samples=1000, outputs=()))
            while await client.sampler_runs("tinyseg") == before:
                assert not asked.done()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while True:  # until two looks a while apart see the same: nobody else asks this model meanwhile
                seen = await client.sampler_runs("tinyseg")
                await client.predict("tinyseg", image[:, :24, :24], samples=20, outputs=())
                if await client.sampler_runs("tinyseg") <= seen + 1:
                    return seen - before, whole

    run, whole = asyncio.run(asyncio.wait_for(ask_and_leave(), 120))
    assert 0 < run < whole


@pytest.mark.slow
def test_an_answer_beyond_grpc_is_refused_at_once(grpc_client):
    """The message says how large the answer would be and what to ask for instead."""
    image = np.zeros((1, 7400, 7400), np.float32)
    outputs = ["mean", "variance", "variance_corrected", "calibrated", "epistemic", "aleatoric"]
    with pytest.raises(InferenceServerException, match="ask for fewer of them"):
        ask(grpc_client, "tinyseg", case(image, samples=2), outputs)
