"""Every method of the catalogue through the real server, against its own PyTorch module by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from equipoise_client import UncertaintyClient
from equipoise_client.errors import InvalidInput
from equipoise_core.case import Case
from equipoise_core.contract import Activation, ContractError
from equipoise_core.loading import load_model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.policy import Guarantee, Policy
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.sampling import Run, get_ready
from equipoise_core.stages import Stage
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.compile import compile_sampler, compile_unproven
from equipoise_export.graph.session import published_samplers
from equipoise_export.options import Options
from equipoise_export.publish.repository import publish_pair
from equipoise_lab.methods.backbones import TransUNet, UNetPlusPlus
from equipoise_lab.methods.calibrated import CalibratedEnsemble
from equipoise_lab.methods.heteroscedastic import HeteroscedasticUNet
from equipoise_lab.methods.segwithu import SegWithU
from equipoise_lab.methods.student import Student
from equipoise_lab.reference.networks import UNet

from ..support.asking import ask, case, text
from ..support.graphs import contract

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(900)]  # eight exports, before the first test

SAMPLES = 8
IMAGES = 10
NOISE = {"output": "logits", "log_variance": "log_variance"}


def unet(seed: int, dropout: float = 0.3) -> UNet:
    """Its head is scaled up, so that masks move its answer as training would."""
    torch.manual_seed(seed)
    return scaled(UNet(2, 3, (4, 8, 8), (4, 6), dropout))


def scaled(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        network.head.weight *= 60
    return network.eval()


def single_passes() -> dict[str, torch.nn.Module]:
    tables = [np.linspace(0, 0.9, 4), np.array([0, 0.1, 0.6, 0.7])]
    segwithu = SegWithU(unet(0), 2, Activation.SOFTMAX, width=4)
    with torch.no_grad():
        segwithu.to_class.weight *= 20
    return {
        "segwithu": segwithu.eval(),
        "student": Student(unet(0), Activation.SOFTMAX).eval(),
        "calibrated": CalibratedEnsemble([unet(n) for n in range(3)], tables, Activation.SOFTMAX).eval(),
    }


def sampled() -> dict[str, tuple[torch.nn.Module, dict[str, str]]]:
    torch.manual_seed(0)
    return {
        "heteroscedastic": (HeteroscedasticUNet(unet(0)).eval(), NOISE),
        "unetpp": (scaled(UNetPlusPlus(2, 3, (4, 8, 8), (4, 6), 0.3)), {}),
        "transunet": (scaled(TransUNet(2, 3, (4, 8, 8), (4, 6), 0.3, layers=1)), {}),
    }


SINGLE, SAMPLED = tuple(single_passes()), tuple(sampled())


@dataclass(frozen=True)
class Served:
    client: triton.InferenceServerClient
    url: str
    models: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    torch.manual_seed(0)
    example = torch.randn(2, 1, 32, 32)
    models = tmp_path_factory.mktemp("methods") / "models"
    draft = contract(classes=3, spatial=("H", "W"), nominal=(32, 32), multiple=4)
    draft = replace(draft, maximum=(64, 64), samples=SAMPLES, spacing=((0.5, 2.0), (0.5, 2.0)))
    stating = {}
    for name, network in single_passes().items():
        told = replace(draft, name=name, states_moments=True)
        stating[name] = compile_sampler(network, told, example, Options(deterministic=True))
        publish_pair(stating[name], models)
    for name, (network, options) in sampled().items():
        publish_pair(compile_sampler(network, replace(draft, name=name), example, Options(**options)), models)
    cascade = replace(draft, name="cascade")
    first_pass = compile_sampler(
        single_passes()["student"], replace(cascade, states_moments=True), example, Options(deterministic=True)
    )
    folder = publish_pair(compile_sampler(unet(0), cascade, example), models, first_pass=first_pass)
    published = load_model(folder / "1")
    samplers, first = published_samplers(models, published.contract)

    def certainty(number: int) -> float:
        ready = get_ready(published, Case(blended(number)), (0, SAMPLES))
        ((answer,), *_) = Run(published, [ready], samplers, first_pass=first).assessments(until_decided=False)
        return answer.scores["rim_uncertainty"]

    median = float(np.median([certainty(number) for number in range(IMAGES)]))
    stages = (Stage(0, "rim_uncertainty", median), Stage(SAMPLES, "sample_disagreement", 1.0))
    guarantee = Guarantee(0.1, 0.1, "test", 9, 9, 0, "test")
    policy = Policy(published.contract.model_digest, "cd", stages, guarantee)
    (folder / "1" / "policy.json").write_text(policy.dumps(), encoding="utf-8")
    with TritonServer(models, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            yield Served(client, server.grpc_url, models)


def blended(number: int) -> np.ndarray:
    """From noise to an edge without any."""
    noise = np.random.default_rng(number).normal(100, 30, (1, 32, 32))
    edge = 400.0 * (np.indices((32, 32)).sum(0) > 30)[None]
    return (noise + (edge - noise) * number / (IMAGES - 1)).astype(np.float32)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(5).normal(100, 30, (1, 30, 37)).astype(np.float32)


def prepared(image: np.ndarray, told) -> torch.Tensor:
    """As the server prepares it: normalised, padded to the network's multiple."""
    padded = told.preprocessing.pad(told.preprocessing.normalise(image))
    return torch.from_numpy(np.where(padded == np.float32(PADDING_VALUE), np.float32(0), padded))[None]


@pytest.mark.parametrize("name", SINGLE)
def test_one_pass_is_served_as_pytorch_states_it(served, image, name) -> None:
    told = load_model(served.models / name / "1").contract
    with torch.no_grad():
        stated = single_passes()[name](prepared(image, told))[0, :, :30, :37].double().numpy()
    mean, square, entropy, own = np.split(stated, [3, 6, 7])
    answer = ask(
        served.client,
        name,
        case(image),
        ["mean", "variance", "aleatoric", "epistemic", "uncertainty", "labels", "samples_used"],
    )
    assert answer["mean"][0] == pytest.approx(mean, abs=1e-5)
    assert answer["variance"][0] == pytest.approx(np.maximum(square - mean**2, 0), abs=1e-5)
    total = -(mean * np.log(np.maximum(mean, 1e-38))).sum(0)
    assert answer["aleatoric"][0, 0] == pytest.approx(np.minimum(entropy[0], total), abs=1e-5)
    assert answer["epistemic"][0, 0] == pytest.approx(np.maximum(total - entropy[0], 0), abs=1e-5)
    assert answer["uncertainty"][0] == pytest.approx(own, abs=1e-4)
    assert np.array_equal(answer["labels"][0, 0], mean.argmax(0)) and answer["samples_used"].item() == 1
    assert answer["variance"].max() > 1e-3  # there is something to compare


def test_our_client_gives_the_networks_own_ranking(served, image) -> None:
    """Where the network states one; elsewhere the request says that there is none."""
    with UncertaintyClient(served.url) as client:
        found = client.predict("student", image, outputs=("uncertainty", "epistemic"))
        assert found.uncertainty.shape == (1, 30, 37) and found.uncertainty == pytest.approx(found.epistemic, abs=1e-5)
        with pytest.raises(InvalidInput, match="uncertainty"):
            client.predict("unetpp", image, outputs=("uncertainty",))


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_served_as_pytorch_draws_them(served, image, name) -> None:
    """Under the masks of the record's seed, one PyTorch pass after the other; law of total variance."""
    told = load_model(served.models / name / "1").contract
    network, options = sampled()[name]
    draft = replace(told, sites=(), samplers=())
    _, drawn = compile_unproven(network, draft, torch.randn(2, 1, 32, 32), Options(**options))
    answer = ask(served.client, name, case(image), ["mean", "variance", "epistemic", "aleatoric", "record"])
    seed = int(json.loads(text(answer["record"]))["seed"])
    ready = prepared(image, told).numpy()
    masks = draw_masks(mask_layout(told, ready.shape[2:]), seed, told.model_digest, 0, SAMPLES)
    with drawn.ready():
        logits = np.stack([drawn(told, ready, mask) for mask in masks])[:, :, :30, :37].astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    within, between = (p * (1 - p)).mean(0), p.var(0)
    assert answer["mean"][0] == pytest.approx(p.mean(0), abs=1e-5)
    assert answer["variance"][0] == pytest.approx(between, abs=1e-5)
    assert within + between == pytest.approx(p.mean(0) * (1 - p.mean(0)), abs=1e-12)
    entropies = -(p * np.log(p)).sum(1).mean(0)
    assert answer["aleatoric"][0, 0] == pytest.approx(entropies, abs=1e-5)
    assert between.max() > 1e-3


def test_the_first_pass_spares_samples_and_the_record_replays(served) -> None:
    """Certain images cost one pass, others are sampled; both records say so, and the same image gives the same."""
    used = []
    for number in range(IMAGES):
        request = case(blended(number), spacing=[1.0, 1.0])
        first, again = (ask(served.client, "cascade", request, ["samples_used", "record", "route"]) for _ in range(2))
        record = json.loads(text(first["record"]))
        assert record == json.loads(text(again["record"]))
        assert record["first_pass"] == (first["samples_used"].item() == 0)
        assert text(first["route"]) == "accept"
        used.append(first["samples_used"].item())
    assert used.count(0) == used.count(SAMPLES) == IMAGES // 2


def test_naming_samples_skips_the_first_pass(served, image) -> None:
    answer = ask(served.client, "cascade", case(image, samples=SAMPLES, spacing=[1.0, 1.0]), ["record", "route"])
    assert not json.loads(text(answer["record"]))["first_pass"] and text(answer["route"]) == "review"


def test_the_first_pass_takes_a_large_image_in_windows(served) -> None:
    """As many at a time as its instances take: nothing went wrong, and it is reviewed for its size alone."""
    maximum = load_model(served.models / "cascade" / "1").contract.maximum
    image = np.random.default_rng(0).normal(100, 20, (1, *(2 * size for size in maximum))).astype(np.float32)
    answer = ask(served.client, "cascade", case(image, spacing=[1.0, 1.0]), ["record", "route"])
    assert text(answer["route"]) == "review"
    assert json.loads(text(answer["record"]))["problems"] == []


def test_a_broken_first_pass_keeps_the_model_from_loading(served, tmp_path) -> None:
    copy = tmp_path / "models"
    copy.mkdir()
    for folder in served.models.iterdir():
        (copy / folder.name).symlink_to(folder)
    (copy / "cascade_first_pass").unlink()
    with pytest.raises(ContractError, match=r"cascade_first_pass: .* no file"):
        load_model(copy / "cascade" / "1")
