"""Images and masks of the proof are the same bits everywhere; tolerances follow what computes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from equipoise_core.contract import Precision
from equipoise_core.known_answers import FORMAT, KnownAnswers, known_image, known_masks
from equipoise_core.record import computed_by
from equipoise_core.tolerance import SAME, TOLERANCES, precision_of, tolerance_between

IMAGES = ["8e49f18b6a96a7b0", "ef047e8ceb3e2263", "0cbd97d275dc694b", "319a6a7a7b31dc4b"]
MASKS = "63f9778cb24e0a5d"


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_the_bits_of_images_and_masks_stay(segmentation, classification):
    """A stored answer is one to these: another version of this code must make them as well."""
    images = [known_image(contract, number) for contract in (segmentation, classification) for number in (0, 1)]
    assert [_sha(image) for image in images] == IMAGES
    assert _sha(known_masks(segmentation, 0, "00" * 32)) == MASKS
    assert images[0].shape == (1, 1, 16, 16) and -2.0 <= images[0].min() < -0.5 < 0.5 < images[0].max() <= 2.0
    assert images[2].shape == (1, 1, 8, 8) and 0.0 <= images[2].min() < images[2].max() <= 1.0


def _answers(segmentation) -> KnownAnswers:
    generator = np.random.default_rng(0)
    rows = {"sum_p": 3, "sum_p2": 3, "sum_entropy": 1}
    outputs = {name: generator.random((1, 4, count, 3)).astype(np.float32) for name, count in rows.items()}
    return KnownAnswers("ab", np.array([3, 255]), {**outputs, "volumes": np.ones((1, 4, 3), np.float32)})


def test_a_document_is_read_back_as_it_was(segmentation):
    """To the last bit."""
    answers = _answers(segmentation)
    again = KnownAnswers.read(answers.document(), segmentation)
    assert again.drawn_for == "ab" and again.points.tolist() == [3, 255]
    assert all((again.outputs[name] == values).all() for name, values in answers.outputs.items())


@pytest.mark.parametrize(
    "change",
    [
        {"format": FORMAT + "0"},
        {"points": "3 256"},
        {"points": "3 x"},
        {"outputs": {}},
        {"outputs": None},
        {"outputs": {"sum_p": {"shape": [1, 4, 3, 3], "float32": "AAAA"}}},
    ],
)
def test_a_document_of_something_else_is_refused(segmentation, change):
    """Whatever is wrong with it, as a ValueError."""
    with pytest.raises(ValueError):
        KnownAnswers.read({**_answers(segmentation).document(), **change}, segmentation)
    with pytest.raises(ValueError):
        KnownAnswers.read(None, segmentation)


def test_answers_are_compared_whatever_the_chunk(segmentation):
    """Sums over any of the samples, some of them several times."""
    answers = _answers(segmentation)
    samples = [0, 1, 2, 3, 0, 1]
    single = {name: values[0].astype(np.float64) for name, values in answers.outputs.items()}
    flat = {name: np.zeros((1, values.shape[1], 256)) for name, values in single.items() if name != "volumes"}
    for name, maps in flat.items():
        total = single[name][samples].sum(axis=0)  # [rows, P + 1]
        maps[0][:, [3, 255]] = total[:, :2]
        rest = (256 * total[:, 2] - total[:, :2].sum(axis=1)) / 254
        maps[0][:, [i for i in range(256) if i not in (3, 255)]] = rest[:, None]
    found = {name: maps.reshape(1, -1, 16, 16) for name, maps in flat.items()}
    found["volumes"] = single["volumes"][samples][None]
    compared = list(answers.differences(segmentation, [0], samples, found, Precision.FP32))
    assert all(each.passed and each.difference < 1e-6 for each in compared), [str(each) for each in compared]
    found["sum_entropy"] = found["sum_entropy"] + 6 * 2e-4
    (wrong,) = [
        each for each in answers.differences(segmentation, [0], samples, found, Precision.FP32) if not each.passed
    ]
    assert wrong.output == "sum_entropy" and wrong.difference == pytest.approx(2e-4, rel=1e-3)
    assert all(each.passed for each in answers.differences(segmentation, [0], samples, found, Precision.FP16))


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, Precision.FP32),
        ({"use_tf32": "1"}, Precision.FP32),
        ({"precision_mode": "FP32", "trt_fp16_enable": "0"}, Precision.FP32),
        ({"precision_mode": "FP16"}, Precision.FP16),
        ({"trt_fp16_enable": "true"}, Precision.FP16),
    ],
)
def test_precision_is_what_computes_not_what_the_file_says(segmentation, options, precision):
    """TensorRT may compute a single-precision file in half. TensorFloat-32 has no tolerance of its own."""
    assert precision_of(Precision.FP32, options) is precision
    assert precision_of(Precision.FP16, options) is Precision.FP16
    known = {"device": "A10", "onnxruntime": "of Triton 26.07", "provider": "TensorrtExecutionProvider"}
    by = computed_by(segmentation, {**known, "provider_options": options})
    assert by["precision"] == precision.value
    assert tolerance_between(by, by) == SAME
    cpu = computed_by(segmentation, {**known, "provider": "CPUExecutionProvider", "provider_options": {}})
    assert tolerance_between(by, cpu) == TOLERANCES[precision]
    assert tolerance_between(by, {}) == TOLERANCES[Precision.FP16]
