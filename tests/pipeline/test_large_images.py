"""Images larger than the network's window, through the real server."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from equipoise_client import AsyncUncertaintyClient
from equipoise_core.case import Case
from equipoise_core.contract import Contract
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_core.tiling import Tiling
from equipoise_export.graph.session import OnnxSampler
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ..support.asking import ask, case, poll, settled, text

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


def windows(contract: Contract, size: tuple[int, ...]) -> int:
    """How many windows the model sees an image of this size in."""
    window = contract.window(size)
    return len(Tiling(contract.padded(size), window).starts)


def runs(client: InferenceServerClient) -> int:
    """How often the sampler of `tinyseg` has been run, for all clients, since the server started."""
    return sum(each.inference_count for each in client.get_inference_statistics("tinyseg_sampler").model_stats)


def test_each_window_is_run_once_for_each_sample(grpc_client, repository):
    """Nothing is run twice, and nothing is left out."""
    contract = load_model(repository / "tinyseg" / "1").contract
    image = np.random.default_rng(0).normal(100, 30, (1, 100, 150)).astype(np.float32)
    expected = settled(lambda: runs(grpc_client)) + 7 * windows(contract, (100, 150))
    ask(grpc_client, "tinyseg", case(image, samples=7), ["samples_used"])
    poll(lambda: runs(grpc_client) >= expected, "all windows are counted")
    assert settled(lambda: runs(grpc_client)) == expected


def test_a_large_image_can_be_called_off(server, grpc_client):
    """Cancelled in the middle, its windows are not run to the end."""
    image = np.random.default_rng(0).normal(100, 30, (1, 900, 900)).astype(np.float32)

    async def count() -> int:
        return await asyncio.to_thread(runs, grpc_client)

    async def ask_and_leave() -> tuple[int, int]:
        async with AsyncUncertaintyClient(server.grpc_url, timeout=120.0) as client:
            whole = 1000 * windows(await client.contract("tinyseg"), image.shape[1:])
            before = await count()
            asked = asyncio.create_task(client.predict("tinyseg", image, samples=1000, outputs=()))
            while await count() == before:
                assert not asked.done()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while True:  # until two looks a while apart see the same: nobody else asks this model meanwhile
                seen = await count()
                await client.predict("tinyseg", image[:, :24, :24], samples=20, outputs=())
                if await count() <= seen + 1:
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
