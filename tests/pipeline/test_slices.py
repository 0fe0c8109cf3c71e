"""A network of 2D images behind a real server: one request for a volume, one decision, mL with an interval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from equipoise_client import UncertaintyClient
from equipoise_client.images import fit, read_image
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export import calibrate, export
from equipoise_export.graph.session import OnnxSampler
from torch import Tensor, nn

from ..support.asking import ask, case

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(900)]

PLANE, SPACING = 32, (4.0, 1.0, 1.0)
"""Pixels of a slice's side; mm between slices, rows and columns."""


class Bright(nn.Module):
    """What is brighter than half in the slice or, a little, in its neighbours; under masks a little more or less."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.3)
        self.mix = nn.Conv2d(3, 16, 1)
        self.sum = nn.Conv2d(16, 1, 1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([0.1, 0.8, 0.1]).reshape(1, 3, 1, 1).expand(16, 3, 1, 1))
            self.mix.bias.zero_()
            self.sum.weight.fill_(1 / 16)
            self.sum.bias.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = 20 * self.sum(self.drop(self.mix(x)))
        return torch.cat([-z, z], 1)


def ball(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Intensities `[D, H, W]`, and what is in the ball."""
    random = np.random.default_rng(seed)
    depth = int(random.integers(6, 11))
    centre, radius = np.array([depth * 2.0, 16.0, 16.0]) + random.uniform(-3, 3, 3), random.uniform(6, 11)
    grid = np.stack(np.meshgrid(*map(np.arange, (depth, PLANE, PLANE)), indexing="ij"), -1) * SPACING
    distance = np.linalg.norm(grid - centre, axis=-1)
    pixels = 100 / (1 + np.exp(2 * (distance - radius))) + random.normal(0, 3, distance.shape)
    return pixels.astype(np.float32), (distance < radius).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    """`[D, H, W]` from inferior to superior, of rows to posterior and columns to left, as nibabel's users store it."""
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])  # RAS
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(2, 1, 0)[::-1, ::-1], affine), path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported, and calibrated on made-up volumes."""
    folder = tmp_path_factory.mktemp("slices")
    made = export(
        Bright(), name="ball", task="segmentation", classes=("background", "ball"), into=folder / "models",
        example=torch.rand(2, 3, PLANE, PLANE), slices=3, orientation="SPL", spacing=((0.9, 1.1), (0.9, 1.1)),
        preprocess="divide:100", samples=8,
    )  # fmt: skip
    assert made.contract.spatial == ("D", "H", "W") and made.contract.slices == 3
    for number in range(60):
        pixels, truth = ball(number)
        write(folder / "cases/images" / f"{number}.nii.gz", pixels)
        write(folder / "cases/labels" / f"{number}.nii.gz", truth)
    found = calibrate("ball", data=folder / "cases", repository=folder / "models", stages=(0, 8))
    assert found.policy.volume is not None
    return folder


@pytest.fixture(scope="module")
def url(published: Path) -> Iterator[str]:
    with TritonServer(published / "models", ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        yield server.grpc_url


def test_a_volume_gets_one_decision_and_a_volume_in_ml(published: Path, url: str) -> None:
    """A NIfTI file in RAS with its slices last and 4 mm apart: turned, not resampled, accepted, and turned back."""
    pixels, truth = ball(1000)
    image = read_image(write(published / "new.nii.gz", pixels))
    with UncertaintyClient(url) as client:
        prepared = fit(image, client.contract("ball"))
        np.testing.assert_array_equal(prepared.pixels[0], pixels)
        assert prepared.spacing == SPACING and not prepared.doubts
        answer = prepared.judge(client.predict("ball", prepared.pixels, spacing=prepared.spacing))
    assert answer.route.value == "accept", answer.reason
    ml = truth.sum() * np.prod(SPACING) / 1000
    total = answer.volume.total
    assert total.low < total.mean < total.high and total.low <= ml <= total.high
    labels = prepared.to_source(answer.labels)
    assert labels.shape[1:] == image.pixels.shape[1:]
    overlap = labels[0] * truth.transpose(2, 1, 0)[::-1, ::-1]
    assert 2 * overlap.sum() / (labels.sum() + truth.sum()) > 0.9


def test_served_volumes_are_those_of_one_network_a_sample(published: Path, url: str) -> None:
    """The same numbers as in process, also for twice as many slices."""
    pixels, _ = ball(7)
    image = np.concatenate([pixels, pixels[::-1]])[None]
    model = load_model(published / "models/ball/1")
    sampler = OnnxSampler(published / "models/ball_sampler/1/model.onnx", threads=1)
    local = assess(model, Case(image, seed=3, samples=8, spacing=SPACING), [sampler])
    with triton.InferenceServerClient(url) as client:
        served = ask(client, "ball", case(image, seed=3, samples=8, spacing=SPACING), ["mean", "variance", "volume"])
    np.testing.assert_allclose(served["mean"][0], local.uncertainty.mean, atol=1e-5)
    np.testing.assert_allclose(served["variance"][0], local.uncertainty.variance, atol=1e-5)
    assert served["volume"][0, 1, 0] == pytest.approx(local.volumes["ball"].mean, rel=1e-5)
