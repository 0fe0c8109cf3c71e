"""A client that knows nothing of Equipoise but the tensors' names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.triton

SCRIPT = """
import json
import sys

import numpy as np
import tritonclient.{protocol} as triton

client = triton.InferenceServerClient({url!r})
volume = np.random.default_rng(0).normal(100.0, 20.0, size=(1, 1, 16, 16, 16)).astype(np.float32)
image = triton.InferInput("image", list(volume.shape), "FP32")
image.set_data_from_numpy(volume)
wanted = [triton.InferRequestedOutput(name) for name in ("mean", "variance", "route")]
answer = client.infer("hippocampus", [image], outputs=wanted)
mean, variance, route = (answer.as_numpy(name) for name in ("mean", "variance", "route"))
json.dump(
    {{
        "mean": list(mean.shape),
        "types": [str(mean.dtype), str(variance.dtype)],
        "sums to one": float(np.abs(mean.sum(axis=1) - 1).max()),
        "variance": [list(variance.shape), float(variance.min()), float(variance.max())],
        "route": route[0, 0].decode(),
        "outputs": sorted(answer.get_output(name) is not None for name in ("mean", "variance", "route")),
        "unasked": answer.get_output("record") is not None,
        "ours": sorted(name for name in sys.modules if name.startswith("equipoise")),
    }},
    sys.stdout,
)
"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_gets_mean_variance_and_route(server, protocol):
    """A plain tritonclient script, with no code of ours, gets the mean, the variance and the route, and only those."""
    url = {"grpc": server.grpc_url, "http": server.http_url}[protocol]
    script = SCRIPT.format(protocol=protocol, url=url)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ours"] == []
    assert told["mean"] == [1, 3, 16, 16, 16]
    assert told["types"] == ["float32", "float32"]
    assert told["sums to one"] < 1e-5
    shape, lowest, highest = told["variance"]
    assert shape == told["mean"]
    assert 0.0 <= lowest < highest <= 0.25
    assert told["route"] in ("review", "reject")  # noise without a spacing: never `accept`
    assert told["outputs"] == [True, True, True]
    assert not told["unasked"]
