"""Which answers to a health probe count as plausible, and when a model says of itself that it is ready."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_client.images.synthetic import synthetic_image
from equipoise_core.contract import FirstPass, Sampler
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import parse_steps
from equipoise_deploy.errors import NotReadyError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import plausible_variance
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair
from tritonclient.utils import InferenceServerException

from ...support.repositories import hold

AGGREGATOR = Path(__file__).parents[3] / "model_repository/hippocampus/1/model.py"

# For `hold`: answers by what it says of itself, since this server does not ask.
ASKED = """
def _respond(self, request):
    assert self.is_ready() is True
    STOPPING.touch()
    assert self.is_ready() is False
    STOPPING.unlink()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError("asked", pb_utils.TritonError.ALREADY_EXISTS))

TritonPythonModel._respond = _respond
"""


def test_synthetic_image_has_the_nominal_size_and_structure(tiny_segmentation):
    """Every channel varies: a constant image would hide masks that do not act."""
    image = synthetic_image(tiny_segmentation.contract)
    assert image.shape == (1, 1, 4, 4) and image.dtype == np.float32
    assert np.isfinite(image).all() and image.std() > 0


@pytest.mark.parametrize(
    ("steps", "low", "high"),
    [("identity", 0.0, 1.0), ("window:-57,164", -57.0, 164.0), ("rgb divide:255 imagenet", 0.0, 255.0)],
)
def test_synthetic_image_has_the_scale_of_the_contract(tiny_segmentation, steps, low, high):
    """A network that takes intensities as they are would be saturated by others."""
    preprocessing = Preprocessing(parse_steps(steps))
    image = synthetic_image(replace(tiny_segmentation.contract, preprocessing=preprocessing, channels=3))
    assert low <= image.min() < image.max() <= high and np.ptp(image) > 0.3 * (high - low)


def test_no_variance_between_samples_is_not_ready(tiny_segmentation, tiny_deterministic):
    """Masks that do not act are the one failure that a look at the mean does not show."""
    answer = {"mean": np.full((1, 2), 0.5, np.float32), "variance": np.zeros((1, 2), np.float32)}
    with pytest.raises(NotReadyError, match="variance 0"):
        plausible_variance(tiny_segmentation.contract, answer)
    assert plausible_variance(tiny_deterministic.contract, answer) == 0.0
    sure = {**answer, "mean": np.array([[1.0, 3e-9]], np.float32)}
    assert plausible_variance(tiny_segmentation.contract, sure) == 0.0, "where nothing can vary, nothing is missing"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answer_that_is_not_finite_is_not_ready(tiny_segmentation, value):
    """NaN compares false with everything, so it has a check of its own."""
    answer = {"mean": np.array([value], np.float32), "variance": np.array([0.1], np.float32)}
    with pytest.raises(NotReadyError, match="mean that is not finite"):
        plausible_variance(tiny_segmentation.contract, answer)


@pytest.fixture
def aggregator(monkeypatch, tmp_path):
    """The public model's module, over a backend that knows which models are ready."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.ready = {"a_sampler", "b_sampler", "first_pass"}
    backend.is_model_ready = lambda name: name in backend.ready
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("EQUIPOISE_STOPPING", str(tmp_path / "stopping"))
    spec = importlib.util.spec_from_file_location("aggregator", AGGREGATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_ready_while_all_that_it_asks_is(aggregator, tiny_classifier):
    """Not once the server stops, nor without one of its samplers or its first pass."""
    model = object.__new__(aggregator.TritonPythonModel)
    files = Sampler("a_sampler", "00"), Sampler("b_sampler", "11")
    contract = replace(tiny_classifier.contract, samplers=files, first_pass=FirstPass("first_pass", "22"))
    model.model = types.SimpleNamespace(contract=contract)
    assert model.is_ready() is True
    aggregator.STOPPING.touch()
    assert model.is_ready() is False
    aggregator.STOPPING.unlink()
    for gone in list(aggregator.pb_utils.ready):
        aggregator.pb_utils.ready.remove(gone)
        assert model.is_ready() is False, gone
        aggregator.pb_utils.ready.add(gone)


@pytest.mark.slow
@pytest.mark.triton
def test_a_served_model_can_ask_for_its_samplers(tiny_classifier, tmp_path):
    """The backend's own question, from within a model's process: ready, not ready while stopping."""
    publish_pair(tiny_classifier, tmp_path / "models")
    hold(tmp_path / "models" / "tinycls", ASKED)
    image = np.zeros((1, 1, 4, 4), np.float32)
    with (
        TritonServer(tmp_path / "models", ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="asked"),
    ):
        client.infer("tinycls", [triton.InferInput("image", image.shape, "FP32").set_data_from_numpy(image)])
