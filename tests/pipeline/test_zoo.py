"""Networks as people have them, published and asked through the real server: the same numbers as in process.

One server serves all. Networks that the test extra brings run in CI; the rest comes from `make zoo`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from equipoise_core.case import Case
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.loading import load_model
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.sampling import assess
from equipoise_core.steps import ZScore
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.compile import compile_sampler
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.options import Options, Sizes
from equipoise_export.publish.repository import publish_pair
from torch import nn

from ..support.asking import ask, case, text
from ..support.constructs import LAYERS, Around
from ..support.zoo import ZOO_NETWORKS, Animal, awake

pytestmark = [pytest.mark.triton, pytest.mark.timeout(1800)]


def basic_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4), dropout=0.2)


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet

    return DenseNet(3, 1, 2, init_features=4, growth_rate=4, block_config=(1, 1), dropout_prob=0.2)


def around(layer: str) -> Callable[[], nn.Module]:
    return lambda: Around(LAYERS[layer][0]())


OURS = {
    "monai_basic_unet_2d": Animal(basic_unet, "segmentation", 2, (1, 32, 48), 16, True),
    "monai_densenet_3d": Animal(densenet, "classification", 2, (1, 16, 16, 16)),
    "dropblock": Animal(around("DropBlock"), "classification", 3, (1, 8, 8)),
    "recurrent": Animal(around("LSTM"), "classification", 3, (1, 8, 8)),
}
NAMES = (
    "monai_unet_3d", "monai_densenet121_2d", "monai_unetr_2d", "nnunet_2d", "mobilenet_v3_small",
    "vision_transformer", "smp_deeplabv3plus", "timm_efficientnet_b0", "transformers_segformer",
)  # fmt: skip
GROUPS = [
    pytest.param(OURS, marks=pytest.mark.slow, id="ci"),
    pytest.param(
        {name: ZOO_NETWORKS[name] for name in NAMES}, marks=[pytest.mark.zoo, pytest.mark.exhaustive], id="zoo"
    ),
]
OUTPUTS = ["mean", "variance", "aleatoric", "epistemic", "case_score", "route", "reason"]


def contract_of(name: str, animal: Animal) -> Contract:
    size = animal.shape[1:]
    axes: tuple[int | str, ...] = {2: ("H", "W"), 3: ("X", "Y", "Z")}[len(size)] if animal.dynamic else size
    largest = tuple(2 * extent for extent in size) if animal.dynamic else size
    return Contract(
        name, Task(animal.task), Activation.SOFTMAX, tuple(map(str, range(animal.classes))), animal.shape[0], axes,
        size, largest, Preprocessing((ZScore(),), multiple=animal.multiple), (), samples=6,
    )  # fmt: skip


@pytest.fixture(scope="module", params=GROUPS)
def published(request, tmp_path_factory) -> Path:
    """All networks of a group in one repository."""
    if os.environ.get("EQUIPOISE_TRITON_URL"):
        pytest.skip("EQUIPOISE_TRITON_URL names a server that does not serve these models")
    folder = tmp_path_factory.mktemp("zoo") / "models"
    for name, animal in request.param.items():
        torch.manual_seed(0)
        network = awake(animal.make(), torch.randn(4, *animal.shape))
        publish_pair(
            compile_sampler(
                network,
                contract_of(name, animal),
                torch.randn(2, *animal.shape),
                Options(output=animal.output, sizes=Sizes.DYNAMIC),
            ),
            folder,
        )
    return folder


@pytest.fixture(scope="module")
def client(published: Path) -> Iterator[triton.InferenceServerClient]:
    with TritonServer(published, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            yield client


def test_served_networks_answer_as_in_process(published, client) -> None:
    """Every map and score of an odd-sized image is what the same ONNX file gives here; without a policy: review."""
    for place in sorted(published.glob("*/1/contract.json")):
        model = load_model(place.parent)
        contract = model.contract
        dynamic = any(isinstance(extent, str) for extent in contract.spatial)
        size = tuple(extent - 3 for extent in contract.nominal) if dynamic else contract.nominal
        image = np.random.default_rng(1).normal(100, 30, (contract.channels, *size)).astype(np.float32)
        samplers = [OnnxSampler(published / s.name / "1" / "model.onnx", threads=1) for s in contract.samplers]
        local = assess(model, Case(image, seed=7), samplers)
        served = ask(client, contract.name, case(image, seed=7), OUTPUTS)
        for output in ("mean", "variance", "aleatoric", "epistemic"):
            expected = getattr(local.uncertainty, output)
            np.testing.assert_allclose(
                np.reshape(served[output][0], np.shape(expected)),
                expected,
                atol=1e-5,
                err_msg=f"{contract.name} {output}",
            )
        assert served["variance"].max() > 0, contract.name
        assert text(served["route"]) == "review", contract.name
        assert "policy" in text(served["reason"]), contract.name
