"""Raw images through a real server: what it answers is what the network answers to the training's own preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from equipoise_client import EquipoiseError, UncertaintyClient
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export import export
from equipoise_export.options import Options
from torch import Tensor, nn

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MEAN, STD = (torch.tensor(n).reshape(3, 1, 1) for n in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
CASES: dict[str, tuple[str, int, Callable[[Tensor], Tensor]]] = {
    "windowed": ("scale_range:-57,164,clip", 1, lambda x: ((x + 57) / 221).clamp(0, 1)),
    "nonzero": ("zscore:nonzero", 1, lambda x: torch.where(x == 0, x, standardised(x, x[x != 0]))),
    "imagenet": ("rgb divide:255 imagenet", 3, lambda x: (x.repeat(3, 1, 1) / 255 - MEAN) / STD),
}


def standardised(image: Tensor, values: Tensor) -> Tensor:
    return (image - values.mean()) / values.std(correction=0)


def network(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 64, 3)).eval()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = Path(tmp_path_factory.mktemp("preprocessing"))
    for name, (steps, channels, transform) in CASES.items():
        export(
            network(channels), into=models, name=name, task="classification", classes=("a", "b", "c"),
            example=torch.rand(2, channels, 8, 8), preprocess=steps, transform=transform,
            options=Options(deterministic=True),
        )  # fmt: skip
    with TritonServer(models, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        yield server.grpc_url


@pytest.mark.parametrize("name", CASES)
def test_a_raw_image_is_answered_as_after_the_trainings_transforms(served: str, name: str) -> None:
    """Far below and above the window, with zeros; grey for a network of three channels."""
    _, channels, transform = CASES[name]
    random = np.random.default_rng(3)
    image = (random.normal(60.0, 300.0, (1, 8, 8)) * (random.random((1, 8, 8)) < 0.7)).astype(np.float32)
    with UncertaintyClient(served) as client, torch.no_grad():
        found = client.predict(name, image, outputs=("mean",)).mean
        expected = network(channels)(transform(torch.from_numpy(image))[None])[0].softmax(0).numpy()
        np.testing.assert_allclose(np.asarray(found).reshape(-1), expected, atol=1e-5)
        with pytest.raises(EquipoiseError, match="C = 1"):
            client.predict(name, np.zeros((3, 8, 8), np.float32))
