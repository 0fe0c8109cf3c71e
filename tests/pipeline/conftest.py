"""The real Triton that the pipeline tests talk to.

Which one comes from the environment: EQUIPOISE_TRITON_BINARY, …_BACKENDS and …_CONFIG choose what is started
(see `equipoise_deploy.serving.engine`); EQUIPOISE_TRITON_URL (gRPC, host:port) and EQUIPOISE_TRITON_HTTP_URL name
one that runs already and serves the same models.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc
from equipoise_core.contract import Contract, load_contract
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair

from ..support.asking import CLIENTS, MODELS
from ..support.studies import PLANTED

REFERENCE = Path(__file__).parents[2] / "model_repository"


@dataclass(frozen=True)
class Served:
    """Where the server listens, as tritonclient takes it, and the public models it serves."""

    grpc_url: str
    http_url: str
    metrics_url: str | None
    models: tuple[str, ...]


@pytest.fixture(scope="session")
def repository(tmp_path_factory, tiny_segmentation, tiny_classifier, tiny_deterministic) -> Path:
    """The published reference pairs and the tiny ones."""
    folder = tmp_path_factory.mktemp("pipeline") / "models"
    for tiny in (tiny_segmentation, tiny_classifier, tiny_deterministic):
        publish_pair(tiny, folder)
    for model in REFERENCE.glob("*/config.pbtxt"):
        (folder / model.parent.name).symlink_to(model.parent)
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Served]:
    """A server over `repository`, ready by synthetic inference."""
    models = tuple(
        sorted(path.parent.name for path in repository.glob("*/config.pbtxt") if "_sampler" not in str(path))
    )
    url = os.environ.get("EQUIPOISE_TRITON_URL")
    if url:
        check_readiness(url, models)
        yield Served(url, os.environ.get("EQUIPOISE_TRITON_HTTP_URL", "127.0.0.1:8000"), None, models)
        return
    written: list[str] = []
    with TritonServer(repository, ports=Ports(0, 0, 0), on_log=written.append) as running:
        check_readiness(running.grpc_url, running.models)
        yield Served(running.grpc_url, running.http_url, running.metrics_url, running.models)
        with urllib.request.urlopen(running.metrics_url, timeout=30) as page:
            written.append(page.read().decode())
    # What the studies of this run's patients are called; numbers could stand there by chance.
    names = [value for value in PLANTED.values() if not value.isdigit()]
    assert not [name for name in (*names, "Plantedname") if any(name in line for line in written)], (
        "Triton's log or metrics name a patient"
    )


@pytest.fixture(scope="session")
def contracts(repository: Path) -> dict[str, Contract]:
    """Of every public model in `repository`, by name; the reference models are among them."""
    found = {path.parents[1].name: load_contract(path) for path in repository.glob("*/1/contract.json")}
    assert set(MODELS) <= set(found), f"published are {sorted(found)}; expected all reference models {MODELS}"
    return found


@pytest.fixture(scope="session")
def grpc_client(server: Served) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    """tritonclient's own, over gRPC."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(params=CLIENTS)
def stock(request, server: Served):
    """tritonclient's own, over gRPC and over HTTP in turn."""
    url = {"grpc": server.grpc_url, "http": server.http_url}[request.param]
    with CLIENTS[request.param].InferenceServerClient(url) as client:
        yield client
