"""Deep ensembles, of networks with and without dropout, through the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.command import app
from equipoise_export.graph.session import OnnxSampler
from typer.testing import CliRunner

from ..support.asking import ask, case, text
from ..support.networks import Classifier, UNet

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(900)]  # nine exports, before the first test

NETWORKS = Path(__file__).parents[1] / "support" / "networks.py"
MEMBERS = 3
CLASSIFIER = ["--task", "classification", "--input-shape", "1,16,16", "--classes", "a,b,c", "--sizes", "fixed"]
UNETS = ["--task", "segmentation", "--input-shape", "1,16,16", "--classes", "out,in", "--multiple", "4"]
MODELS = {
    "dropout": (Classifier, {}, CLASSIFIER),
    "plain": (Classifier, {"dropout": 0.0}, CLASSIFIER),
    "segments": (UNet, {"rank": 2, "channels": 1, "classes": 2, "widths": [4, 8]}, UNETS),
}


def member(make, arguments, number: int) -> torch.nn.Module:
    torch.manual_seed(number)
    return make(**arguments).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Published by the command that a user types."""
    folder = tmp_path_factory.mktemp("ensembles")
    for name, (make, arguments, options) in MODELS.items():
        words = [f"{NETWORKS}:{make.__name__}", "--name", name, *options, "--into", str(folder / "models")]
        for number in range(MEMBERS):
            weights = folder / f"{name}_{number}.pt"
            torch.save(member(make, arguments, number).state_dict(), weights)
            words += ["--weights", str(weights)]
        for key, value in arguments.items():
            words += ["--arg", f"{key}={value}"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    return folder / "models"


@pytest.fixture(scope="module")
def client(models) -> Iterator[triton.InferenceServerClient]:
    with TritonServer(models, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            yield client


def image_of(name: str, seed: int = 0) -> np.ndarray:
    size = (14, 18) if name == "segments" else (16, 16)
    return np.random.default_rng(seed).normal(100, 30, (1, *size)).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_served_members_are_merged_as_in_process(client, models, name) -> None:
    """The same numbers as each member's ONNX file gives here, chunk by chunk under the masks of its samples."""
    model = load_model(models / name / "1")
    samplers = [OnnxSampler(models / s.name / "1" / "model.onnx", threads=1) for s in model.contract.samplers]
    local = assess(model, Case(image_of(name), seed=7), samplers)
    served = ask(
        client, name, case(image_of(name), seed=7), ["mean", "variance", "epistemic", "samples_used", "record"]
    )
    assert served["mean"][0] == pytest.approx(local.uncertainty.mean, abs=1e-5)
    assert served["variance"][0] == pytest.approx(local.uncertainty.variance, abs=1e-5)
    assert served["epistemic"][0] == pytest.approx(local.uncertainty.epistemic, abs=1e-5)
    assert served["samples_used"].item() == (MEMBERS if name == "plain" else 20)
    assert json.loads(text(served["record"]))["model_digest"] == model.contract.model_digest


def test_networks_without_dropout_disagree_as_in_pytorch(client, models) -> None:
    """Mean, variance and mutual information of three plain networks, by hand (Lakshminarayanan et al. 2017)."""
    make, arguments, _ = MODELS["plain"]
    contract = load_model(models / "plain" / "1").contract
    normalised = torch.from_numpy(contract.preprocessing.normalise(image_of("plain")))[None]
    with torch.no_grad():
        p = torch.stack([member(make, arguments, n)(normalised)[0].double().softmax(0) for n in range(MEMBERS)]).numpy()
    served = ask(client, "plain", case(image_of("plain")), ["mean", "variance", "epistemic", "aleatoric"])
    assert served["mean"][0] == pytest.approx(p.mean(0), abs=1e-5)
    assert served["variance"][0] == pytest.approx(p.var(0), abs=1e-6)
    entropies = -(p * np.log(p)).sum(1)
    total = -(p.mean(0) * np.log(p.mean(0))).sum()
    assert served["aleatoric"].item() == pytest.approx(entropies.mean(), abs=1e-5)
    assert served["epistemic"].item() == pytest.approx(total - entropies.mean(), abs=1e-5)
    assert p.var(0).max() > 1e-4


def test_every_member_of_an_ensemble_changes_the_answer(client) -> None:
    """One sample comes from the first member, two from the first two: each adds a network that answers otherwise."""
    few = [ask(client, "dropout", case(image_of("dropout"), seed=1, samples=n), ["mean"])["mean"] for n in (1, 2, 3)]
    assert not np.allclose(few[0], few[1]) and not np.allclose(few[1], few[2])


@pytest.mark.parametrize("name", MODELS)
def test_many_at_once_get_what_one_alone_gets(client, name) -> None:
    """Members run at the same time, for several requests: no answer depends on its neighbours."""
    images = [image_of(name, seed) for seed in range(8)]
    alone = [ask(client, name, case(image), ["mean"])["mean"] for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: ask(client, name, case(image), ["mean"])["mean"], images))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_without_a_policy_an_ensemble_goes_to_review(client) -> None:
    for name in MODELS:
        assert text(ask(client, name, case(image_of(name)), ["route"])["route"]) == "review"
