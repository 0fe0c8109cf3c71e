"""The same image, seed and number of samples give the same answer, whatever else happens on the server."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_client import AsyncUncertaintyClient
from equipoise_core.budget import at_once
from equipoise_core.contract import Contract, Task
from equipoise_core.loading import load_model
from equipoise_core.stages import chunk_of
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from numpy.typing import NDArray

from ..support.asking import MODELS, SMALL, ask, case, picture, poll, settled, text
from ..support.repositories import configure, copy_of

pytestmark = pytest.mark.triton

SAMPLES = 20
TOLERANCE = 1e-5
CHUNKS = (4, 16)
MAPS = ("mean", "variance", "epistemic")


@dataclass(frozen=True)
class Question:
    """One request: a model, a size of image, and the seed of both the image and its samples."""

    model: str
    size: tuple[int, ...]
    seed: int

    def tensors(self, contract: Contract) -> dict[str, NDArray[Any]]:
        spacing = (1.0,) * contract.rank if contract.task is Task.SEGMENTATION else None
        return case(picture(contract, self.size, self.seed), samples=SAMPLES, seed=self.seed, spacing=spacing)


def _questions() -> tuple[Question, ...]:
    """Sixteen, over all models and sizes in turn."""
    kinds = [(model, size) for model in MODELS for size in SMALL[model]]
    return tuple(Question(*kinds[i % len(kinds)], seed=i) for i in range(16))


QUESTIONS = _questions()


def _outputs(contract: Contract) -> tuple[str, ...]:
    volumes = ("volume", "volume_total") if contract.task is Task.SEGMENTATION else ()
    return (*MAPS, "case_score", *volumes, "samples_used", "route", "reason")


def _assert_same(answer: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """Within 1e-5; volumes relative to their size; words to the letter."""
    for name, values in expected.items():
        if values.dtype == object:
            assert text(answer[name]) == text(values), name
        elif name in ("volume", "volume_total"):
            np.testing.assert_allclose(answer[name], values, rtol=TOLERANCE, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_allclose(answer[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def alone(grpc_client, contracts) -> dict[Question, dict[str, NDArray[Any]]]:
    """Each question's answer with nothing else on the server."""
    return {
        q: ask(grpc_client, q.model, q.tensors(contracts[q.model]), _outputs(contracts[q.model])) for q in QUESTIONS
    }


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, repository: Path) -> Iterator[triton.InferenceServerClient]:
    """Another server over the same repository, with copies NAME_by_4 and NAME_by_16 that draw in such chunks."""
    if os.environ.get("EQUIPOISE_TRITON_URL"):
        pytest.skip("EQUIPOISE_TRITON_URL names a server that is not ours to restart or to configure")
    folder = tmp_path_factory.mktemp("restarted") / "models"
    folder.mkdir()
    for model in MODELS:
        for name in (model, f"{model}_sampler", f"{model}_first_pass"):
            (folder / name).symlink_to((repository / name).resolve())
        for chunk in CHUNKS:
            configure(copy_of(repository / model, f"{model}_by_{chunk}", folder), chunk)
    with (
        TritonServer(folder, ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        yield client


def test_among_sixteen_concurrent_mixed_requests(server, alone):
    """Every request gets the answer that it gets alone, however it was scheduled and batched with others."""

    async def all_at_once(client: AsyncUncertaintyClient, contracts: Mapping[str, Contract]) -> list[Any]:
        def predict(q: Question) -> Any:
            tensors = q.tensors(contracts[q.model])
            spacing = tensors["spacing"][0] if "spacing" in tensors else None
            image = tensors["image"][0]
            return client.predict(q.model, image, samples=SAMPLES, seed=q.seed, spacing=spacing, outputs=MAPS)

        return await asyncio.gather(*(predict(q) for q in QUESTIONS))

    async def talk() -> list[Any]:
        async with AsyncUncertaintyClient(server.grpc_url) as client:
            return await all_at_once(client, {model: await client.contract(model) for model in MODELS})

    for question, prediction in zip(QUESTIONS, asyncio.run(talk()), strict=True):
        expected = alone[question]
        for name in MAPS:
            np.testing.assert_allclose(prediction.arrays[name], expected[name][0], rtol=0, atol=TOLERANCE)
        assert prediction.case_score == pytest.approx(float(expected["case_score"][0, 0]), abs=TOLERANCE)
        assert (prediction.route.value, prediction.reason) == (text(expected["route"]), text(expected["reason"]))
        if prediction.volume is not None:
            total = prediction.volume.total
            found = [total.mean, total.sd, total.low, total.high]
            np.testing.assert_allclose(found, expected["volume_total"][0], rtol=TOLERANCE)


@pytest.mark.slow
def test_a_restarted_server_gives_the_same_answers(restarted, alone, contracts):
    """A server that starts anew gives the same answers: nothing is kept in between."""
    for q, expected in alone.items():
        _assert_same(ask(restarted, q.model, q.tensors(contracts[q.model]), tuple(expected)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS)
def test_samples_drawn_in_chunks_give_the_same_answers(restarted, alone, contracts, chunk):
    """Samples drawn in several sampler requests are the samples drawn in one."""
    for q, expected in alone.items():
        _assert_same(ask(restarted, f"{q.model}_by_{chunk}", q.tensors(contracts[q.model]), tuple(expected)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_chunk_is_what_the_sampler_is_asked_for(restarted, repository, contracts, model):
    """One T in every request: what the stages have in common, or the largest divisor of it up to what is asked for."""
    whole = load_model(repository / model / "1").chunk
    tensors = Question(model, SMALL[model][0], seed=1).tensors(contracts[model])

    def sampler_requests() -> int:
        return int(restarted.get_inference_statistics(f"{model}_sampler").model_stats[0].inference_count)

    before = settled(sampler_requests)
    for chunk in (None, *CHUNKS):
        name = f"{model}_by_{chunk}" if chunk else model
        requests = SAMPLES // chunk_of([whole], chunk)
        ask(restarted, name, tensors, ("mean",))
        poll(lambda least=before + requests: sampler_requests() >= least, f"what {name} asked for is counted")
        after = settled(sampler_requests)
        assert after - before == requests, name
        before = after


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_images_of_one_request_share_sampler_requests(restarted, repository, contracts, model):
    """Nine images are sampled a few at a time, shared out over the sampler's instances, and not one by one."""
    images = [picture(contracts[model], SMALL[model][0], seed=i) for i in range(9)]
    parameters = restarted.get_model_config(model).config.parameters
    instances = int(parameters["instances"].string_value) if "instances" in parameters else 1
    chunk = load_model(repository / model / "1").chunk
    most = at_once(contracts[model], contracts[model].window(SMALL[model][0]), chunk)

    def sampler_requests() -> int:
        statistics = restarted.get_inference_statistics(f"{model}_sampler").model_stats[0]
        return int(statistics.inference_stats.success.count)

    before = settled(sampler_requests)
    ask(restarted, model, {"image": np.stack(images), "samples": np.full((9, 1), SAMPLES, np.int32)}, ("mean",))
    groups = [min(most, 9 - first) for first in range(0, 9, most)]
    requests = sum(min(instances, group) for group in groups) * (SAMPLES // chunk)
    poll(lambda: sampler_requests() >= before + requests, "all are counted")
    assert settled(sampler_requests) - before == requests


@pytest.mark.parametrize("model", MODELS)
def test_different_seeds_differ(grpc_client, contracts, model):
    """Another seed draws other samples: the sameness above is not that of a network without dropout."""
    image = picture(contracts[model], SMALL[model][0], seed=1)
    one, two = (
        ask(grpc_client, model, case(image, samples=SAMPLES, seed=seed), ("mean", "variance")) for seed in (1, 2)
    )
    assert np.abs(one["mean"] - two["mean"]).max() > 10 * TOLERANCE
    assert np.abs(one["variance"] - two["variance"]).max() > 0.01 * one["variance"].max()


@pytest.mark.parametrize("model", MODELS)
def test_without_a_seed_the_image_is_the_seed(grpc_client, contracts, model):
    """The same image gets the same answer twice; of N images each gets its own seed and the answer it gets alone."""
    images = [picture(contracts[model], SMALL[model][0], seed=i) for i in range(3)]
    outputs = (*MAPS, "samples_used", "record")
    singles = [ask(grpc_client, model, case(image), outputs) for image in images]
    again = ask(grpc_client, model, case(images[0]), outputs)
    together = ask(grpc_client, model, {"image": np.stack(images)}, outputs)

    seeds = [json.loads(text(single["record"]))["seed"] for single in singles]
    assert len(set(seeds)) == len(images)
    assert json.loads(text(again["record"]))["seed"] == seeds[0]
    assert [json.loads(record)["seed"] for record in together["record"][:, 0]] == seeds
    for name in (*MAPS, "samples_used"):
        np.testing.assert_allclose(again[name], singles[0][name], rtol=0, atol=TOLERANCE)
        for i, single in enumerate(singles):
            np.testing.assert_allclose(together[name][i], single[name][0], rtol=0, atol=TOLERANCE)
