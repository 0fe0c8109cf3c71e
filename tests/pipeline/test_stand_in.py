"""The embedded stand-in behaves as the native ONNX Runtime backend would, on the real server."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton

pytestmark = pytest.mark.pipeline

SAMPLER = "tinyseg_sampler"
OUTPUTS = ("sum_p", "sum_p2", "sum_entropy", "volumes")


def _case(images: int, samples: int, size: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.normal(size=(images, 1, *size)).astype(np.float32),
        "masks": generator.integers(0, 256, size=(images, samples, 1), dtype=np.uint8),
    }


def _inputs(case: dict[str, np.ndarray]) -> list[triton.InferInput]:
    types = {"image": "FP32", "masks": "UINT8"}
    return [
        triton.InferInput(name, array.shape, types[name]).set_data_from_numpy(array) for name, array in case.items()
    ]


def _ask_together(client, requests) -> list:
    """Sends all before the first answer, so that the batcher can put them together; answers in the order of sending."""
    answers: list = [None] * len(requests)
    done = threading.Semaphore(0)

    def receive(position):
        def store(result, error):
            answers[position] = error if error is not None else result
            done.release()

        return store

    for position, (case, outputs) in enumerate(requests):
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        client.async_infer(SAMPLER, _inputs(case), receive(position), outputs=wanted)
    for _ in requests:
        assert done.acquire(timeout=60)
    return answers


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def test_mixed_shapes_together_equal_onnx_runtime_alone(client, tiny_segmentation):
    """Each request gets its own numbers back, whatever it was batched with, and only the outputs it asked for."""
    session = ort.InferenceSession(tiny_segmentation.model.SerializeToString(), providers=["CPUExecutionProvider"])
    cases = [_case(1 + i % 3, (4, 16)[i % 2], ((4, 4), (8, 6))[i % 4 // 2], seed=i) for i in range(24)]
    asked = [OUTPUTS if i % 3 else OUTPUTS[:1] for i in range(24)]
    for case, outputs, answer in zip(
        cases, asked, _ask_together(client, list(zip(cases, asked, strict=True))), strict=True
    ):
        expected = session.run(list(outputs), case)
        assert {tensor.name for tensor in answer.get_response().outputs} == set(outputs)
        for name, array in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(answer.as_numpy(name), array, atol=1e-5)


def test_requests_of_one_shape_share_runs(client):
    """Many small requests are executed in fewer runs: that is what the batcher is for."""
    before = client.get_inference_statistics(SAMPLER).model_stats[0]
    requests = [(_case(1, 4, (64, 64), seed=i), OUTPUTS) for i in range(64)]
    assert all(not isinstance(answer, Exception) for answer in _ask_together(client, requests))
    after = client.get_inference_statistics(SAMPLER).model_stats[0]
    assert after.inference_count - before.inference_count == 64
    assert after.execution_count - before.execution_count < 64


def test_a_bad_request_fails_alone(client):
    """No samples is refused or answered with nothing; its batch-mates get their numbers."""
    good = [(_case(1, 4, (4, 4), seed=i), OUTPUTS) for i in range(8)]
    bad = (_case(1, 4, (4, 4), seed=99), ("absent",))
    answers = _ask_together(client, [*good[:4], bad, *good[4:]])
    assert isinstance(answers[4], Exception)
    assert all(not isinstance(answer, Exception) for answer in answers[:4] + answers[5:])
