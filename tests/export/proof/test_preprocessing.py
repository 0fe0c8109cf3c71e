"""The training's own preprocessing against the contract's steps, on raw images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equipoise_export import export
from equipoise_export.errors import ProofRefused, SpecError
from torch import Tensor, nn

pytestmark = pytest.mark.torch


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 64, 2)
    )


def published(tmp_path: Path, channels: int = 1, **more: Any) -> Any:
    example = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return export(
        network(channels), into=tmp_path, name="m", task="classification", classes=("a", "b"), example=example, **more
    )


def clipped(image: Tensor) -> Tensor:
    return (image.clamp(-57, 164) + 57) / 221


def test_the_proof_says_how_far_the_steps_are_from_the_trainings_own(tmp_path: Path) -> None:
    """A check of the proof, as stored beside the sampler."""
    made = published(tmp_path, preprocess="scale_range:-57,164,clip", transform=clipped)
    check = made.proof.checks[0]
    assert check.name.startswith("preprocessing of raw images") and check.passed and check.value < 1e-6
    stored = json.loads((tmp_path / "m_sampler" / "1" / "proof.json").read_text(encoding="utf-8"))
    assert stored["checks"][0]["name"] == check.name


@pytest.mark.parametrize(
    ("steps", "transform", "said"),
    [
        ("window:-57,164", clipped, "differs from the contract's steps (scale_range:-57,164) by"),
        ("zscore", lambda x: (x - x.mean()) / (x.std() + 0.1), "differs from"),
        ("zscore", lambda x: x.repeat(3, 1, 1), "it makes [3, 8, 8]"),
        ("zscore", lambda x: x @ x.missing, "it fails on a raw image [1, 8, 8]: AttributeError"),
        ("identity", lambda x: x * float("nan"), "differs from"),
        ("scale_range:0,2 divide:0.00001", lambda x: x / 2 / 0.00001, "differs from"),  # the server clips to ±10,000
    ],
)
def test_other_steps_than_the_trainings_are_refused(steps: str, transform: Any, said: str, tmp_path: Path) -> None:
    """Also those that only differ outside of a window. Nothing is written."""
    with pytest.raises(ProofRefused) as refused:
        published(tmp_path, preprocess=steps, transform=transform)
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_grey_image_is_taken_by_a_network_of_three_channels(tmp_path: Path) -> None:
    """The public model takes one channel, its sampler three."""
    mean, std = (torch.tensor(n).reshape(3, 1, 1) for n in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    made = published(
        tmp_path,
        3,
        preprocess=["rgb", "divide:255 imagenet"],
        transform=lambda x: (x.repeat(3, 1, 1) / 255 - mean) / std,
    )
    assert (made.contract.image_channels, made.contract.channels) == (1, 3)
    for name, channels in (("m", 1), ("m_sampler", 3)):
        text = (tmp_path / name / "config.pbtxt").read_text(encoding="utf-8")
        image = text[text.index('name: "image"') :].split("}")[0]
        assert image.count(f"dims: {channels}\n") == 1


def test_what_cannot_be_said_together_is_refused(tmp_path: Path) -> None:
    """Two spellings at once, ends without a name, a name that is none."""
    for stated, said in (
        ({"preprocess": "zscore", "normalisation": "zscore"}, "--preprocess states all"),
        ({"low": 1.0, "high": 2.0}, "the ends of --normalisation window or percentile"),
        ({"normalisation": "zscore", "low": 0.0}, "the ends of"),
        ({"normalisation": "minmax"}, "expected zscore or percentile or window or identity"),
        ({"normalisation": "window", "low": 3.0}, "low < high"),
        ({"preprocess": "normalise"}, "there is no step 'normalise'; there are clip:LOW,HIGH"),
        ({"preprocess": "rgb"}, "does not fit the network"),
    ):
        with pytest.raises(SpecError) as refused:
            published(tmp_path, **stated)
        assert said in str(refused.value)


def test_a_network_that_takes_intensities_as_they_are_is_asked_about_such_as_it_was_shown(tmp_path: Path) -> None:
    """The contract keeps the example's range; of one with steps the steps say it."""
    made = published(tmp_path, normalisation="identity")
    low, high = made.contract.preprocessing.source_range
    assert 0.0 < low < 0.2 and 0.8 < high < 1.0
    assert published(tmp_path, preprocess="zscore", replace=True).contract.preprocessing.intensities is None
    assert np.isfinite([low, high]).all()
