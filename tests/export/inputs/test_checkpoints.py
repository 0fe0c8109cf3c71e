"""Weights as frameworks save them: harmless whatever lies beside them, and never another network's."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equipoise_export.errors import SpecError
from equipoise_export.inputs.checkpoints import load_weights
from torch import Tensor, nn


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(0.3), nn.Conv2d(8, 2, 1))


OWN = network(1).state_dict()
OTHER = network(2).state_dict()


def under(prefix: str, weights: dict[str, Tensor] = OWN) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


TAKEN: dict[str, Any] = {
    "a state dict": OWN,
    "under a key": {"epoch": 3, "model_state_dict": OWN},
    "Lightning, a weighted loss": {"state_dict": {**under("model."), "criterion.weight": torch.ones(2)}},
    "Lightning, a metric": {"state_dict": {**under("net."), "val_dice.total": torch.zeros(1)}},
    "a loss beside a plain network": {**OWN, "loss.weight": torch.ones(2)},
    "one wrapper in another": {"state_dict": under("model._orig_mod.")},
    "DataParallel around a wrapper": under("module.model."),
    "under a name of the user's": {"state_dict": under("segmenter.")},
    "a student beside its teacher": {"state_dict": {**under("model."), **under("teacher.", OTHER)}},
    "the same weights twice": {"state_dict": {**under("a."), **under("b.")}},
    "a Namespace": {"state_dict": OWN, "hyper_parameters": argparse.Namespace(lr=1e-3)},
    "paths": {"state_dict": OWN, "hyper_parameters": {"root": pathlib.PurePosixPath("/data"), "to": Path("x")}},
    "numbers of NumPy": {"network_weights": OWN, "logging": {"dice": [np.float64(0.5)]}, "best": np.arange(3)},
    "no counters of BatchNorm": {name: value for name, value in OWN.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_frameworks_save_is_loaded(kind: str, tmp_path: Path) -> None:
    """Whatever lies beside the weights; values are the network's own, not its teacher's."""
    torch.save(TAKEN[kind], tmp_path / "weights.pt")
    module = network(3)
    load_weights(module, tmp_path / "weights.pt")
    assert all(value.equal(OWN[name]) for name, value in module.state_dict().items() if "num_batches" not in name)


REFUSED: dict[str, tuple[Any, str]] = {
    "a layer is missing": ({n: v for n, v in OWN.items() if not n.startswith("3.")}, r"missing: 3\.bias"),
    "one more layer": (under("model.", {**OWN, "4.weight": torch.ones(2)}), "not in the network: model.4.weight"),
    "one more layer that sounds like training": ({**OWN, "3.val_scale.weight": torch.ones(2)}, "3.val_scale.weight"),
    "one more layer, no prefix": ({**OWN, "4.weight": torch.ones(2)}, "not in the network: 4.weight"),
    "another shape": ({**OWN, "3.weight": torch.ones(3, 8, 1, 1)}, "of another shape: 3.weight"),
    "two networks": ({**under("ema."), **under("raw.", OTHER)}, "more than once, under 'ema.', 'raw.'"),
    "not finite": ({**OWN, "3.bias": torch.tensor([0.0, np.nan])}, "NaN or infinity in 3.bias"),
    "no weights": ({"epoch": 3, "best": 0.9}, "there is epoch, best"),
    "a pickled module": (network(1), "pickled object"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_with_what_was_found(kind: str, tmp_path: Path) -> None:
    """A network that is not the one that was trained answers, and wrongly."""
    content, found = REFUSED[kind]
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SpecError, match=found):
        load_weights(network(3), tmp_path / "weights.pt")


class Runs:
    """Code that runs where a pickle is trusted."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, Path.mkdir, pathlib.os.system])  # type: ignore[attr-defined]
def test_nothing_in_a_checkpoint_is_run(function: Callable[..., Any], tmp_path: Path) -> None:
    """Objects of foreign code become inert, or the file is refused."""
    mark = tmp_path / "ran"
    argument = f"touch {mark}" if function is os.system else mark
    torch.save({"state_dict": OWN, "extra": Runs(function, argument)}, tmp_path / "weights.pt")
    with contextlib.suppress(SpecError):
        load_weights(network(3), tmp_path / "weights.pt")
    assert not mark.exists()
