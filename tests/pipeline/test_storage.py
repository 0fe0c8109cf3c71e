"""Weights beside the graph, and half precision, through the real server."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from equipoise_core.case import Case
from equipoise_core.contract import Precision, Task
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.errors import StartError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.compile import compile_sampler
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.graph.storage import DATA, MODEL
from equipoise_export.options import Options
from equipoise_export.publish.repository import publish_pair

from ..support.asking import ask, case
from ..support.graphs import contract
from ..support.networks import Classifier

pytestmark = [pytest.mark.triton, pytest.mark.slow]

IMAGE = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One network twice: with its weights beside the graph, in single and in half."""
    torch.manual_seed(0)
    network = Classifier()
    folder = tmp_path_factory.mktemp("storage")
    base = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    for name, precision in (("outside", Precision.FP32), ("half", Precision.FP16)):
        draft = replace(base, name=name, precision=precision)
        publish_pair(compile_sampler(network, draft, torch.randn(2, 1, 16, 16), Options(largest_file=500)), folder)
    return folder


def test_weights_beside_the_graph_are_served(models):
    """The stand-in finds them through the links of the staged repository: answers are those of the file in process."""
    with TritonServer(models, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            for name in ("outside", "half"):
                file = models / f"{name}_sampler" / "1" / MODEL
                assert file.with_name(DATA).is_file()
                local = assess(load_model(models / name / "1"), Case(IMAGE, seed=7), [OnnxSampler(file, threads=1)])
                served = ask(client, name, case(IMAGE, seed=7), ["mean", "variance"])
                assert served["mean"].dtype == np.float32
                assert served["mean"][0] == pytest.approx(local.uncertainty.mean, abs=1e-5)
                assert served["variance"][0] == pytest.approx(local.uncertainty.variance, abs=1e-5)


def test_changed_weights_are_not_served(models, tmp_path):
    """The server refuses to start with them, and says which model to publish again."""
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    file = folder / "outside_sampler" / "1" / DATA
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(StartError, match=r"outside_sampler: model\.onnx has digest"):
        TritonServer(folder, ports=Ports(0, 0, 0)).start()
