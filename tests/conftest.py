"""Tiny models for every test that needs a published pair but not a trained network."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from dataclasses import dataclass
from typing import Any

import onnx
import pytest
from equipoise_core.contract import Activation, Contract, Site, SiteKind, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from hypothesis import HealthCheck, settings

from .support.tiers import pytest_addoption, pytest_configure  # noqa: F401 (hooks)

# An example that a busy machine holds up is no slow example.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@dataclass(frozen=True)
class TinyProof:
    def document(self) -> Any:
        return {"parity": {"max_abs": 0.0}}


@dataclass(frozen=True)
class Tiny:
    """What `compile_sampler` would return, made by hand."""

    model: onnx.ModelProto
    contract: Contract
    proof: TinyProof = TinyProof()
    weights: None = None

    @property
    def placement(self) -> Any:
        from equipoise_export.proof.gpu import place  # torch is imported where something is published only

        return place(self.model, self.contract)


def _tiny(contract: Contract, graph: str) -> Tiny:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {graph}')
    onnx.checker.check_model(model, full_check=True)
    onnx.helper.set_model_props(model, contract.graph_metadata())
    return Tiny(model, contract)


def _contract(name: str, task: Task, sites: tuple[Site, ...]) -> Contract:
    return Contract(
        name=name,
        task=task,
        activation=Activation.SOFTMAX,
        classes=("background", "lesion"),
        channels=1,
        spatial=("X", "Y") if task is Task.SEGMENTATION else (4, 4),
        nominal=(4, 4),
        maximum=(64, 64),
        preprocessing=Preprocessing((ZScore(),)),
        sites=sites,
        spacing=((0.5, 2.0), (0.5, 2.0)) if task is Task.SEGMENTATION else None,
        samples=20,
    )


_SITE = Site("drop", SiteKind.CHANNEL, (8,), 0.5)


@pytest.fixture(scope="session")
def tiny_segmentation() -> Tiny:
    """p(lesion) = sigmoid(image · byte/64): as stochastic as one byte of mask makes it."""
    return _tiny(
        _contract("tinyseg", Task.SEGMENTATION, (_SITE,)),
        """tinyseg (float[N,1,X,Y] image, uint8[N,T,1] masks)
            => (float[N,2,X,Y] sum_p, float[N,2,X,Y] sum_p2, float[N,1,X,Y] sum_entropy, float[N,T,2] volumes)
        <float scale = {64.0}, int64[2] unit = {2,3}, int64[1] one = {1}, int64[2] plane = {3,4}, int64[1] two = {2},
         float tiny = {1e-12}>
        {
            bytes = Cast<to = 1>(masks)
            gain = Div(bytes, scale)
            gains = Unsqueeze(gain, plane)
            images = Unsqueeze(image, one)
            logit = Mul(images, gains)
            lesion = Sigmoid(logit)
            minus = Neg(logit)
            healthy = Sigmoid(minus)
            p = Concat<axis = 2>(healthy, lesion)
            sum_p = ReduceSum<keepdims = 0>(p, one)
            squared = Mul(p, p)
            sum_p2 = ReduceSum<keepdims = 0>(squared, one)
            positive = Add(p, tiny)
            logs = Log(positive)
            weighted = Mul(p, logs)
            negative = ReduceSum<keepdims = 1>(weighted, two)
            entropy = Neg(negative)
            sum_entropy = ReduceSum<keepdims = 0>(entropy, one)
            volumes = ReduceSum<keepdims = 0>(p, plane)
        }""",
    )


@pytest.fixture(scope="session")
def tiny_classifier() -> Tiny:
    """p(lesion) = sigmoid(mean of the image + byte/64 − 2)."""
    return _tiny(
        _contract("tinycls", Task.CLASSIFICATION, (_SITE,)),
        """tinycls (float[N,1,4,4] image, uint8[N,T,1] masks) => (float[N,T,2] probabilities)
        <float scale = {64.0}, float shift = {2.0}, int64[2] plane = {2,3}>
        {
            bytes = Cast<to = 1>(masks)
            gain = Div(bytes, scale)
            centred = Sub(gain, shift)
            mean = ReduceMean<keepdims = 0>(image, plane)
            one = Constant<value = int64[1] {1}>()
            means = Unsqueeze(mean, one)
            logit = Add(means, centred)
            lesion = Sigmoid(logit)
            minus = Neg(logit)
            healthy = Sigmoid(minus)
            probabilities = Concat<axis = 2>(healthy, lesion)
        }""",
    )


@pytest.fixture(scope="session")
def tiny_deterministic() -> Tiny:
    """p(lesion) = sigmoid(mean of the image): no masks, T = 1."""
    return _tiny(
        _contract("tinydet", Task.CLASSIFICATION, ()),
        """tinydet (float[N,1,4,4] image) => (float[N,1,2] probabilities)
        <int64[2] plane = {2,3}, int64[1] one = {1}>
        {
            mean = ReduceMean<keepdims = 0>(image, plane)
            logit = Unsqueeze(mean, one)
            lesion = Sigmoid(logit)
            minus = Neg(logit)
            healthy = Sigmoid(minus)
            probabilities = Concat<axis = 2>(healthy, lesion)
        }""",
    )
