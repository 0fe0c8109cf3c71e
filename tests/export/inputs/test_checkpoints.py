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
    "an epoch beside the weights": {**OWN, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "under params": {"params": OWN},
    "under weights": {"weights": OWN},
    "DeepSpeed": {"module": under("module."), "ds_version": "0.1"},
    "under keys of the user's": {"unet": {"best": OWN}},
    "the same average": {"model": OWN, "ema": OWN, "ema_dice": [0.5, 0.6]},
    "averaged by SWA": {"n_averaged": torch.tensor(5), **under("module.")},
    "averaged by SWA, in Lightning": {"state_dict": {**under("model."), "model.n_averaged": torch.tensor(5)}},
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
    "two networks": ({**under("ema."), **under("raw.", OTHER)}, "more than once, under ema, raw, .*weights.pt:raw"),
    "not finite": ({**OWN, "3.bias": torch.tensor([0.0, np.nan])}, "NaN or infinity in 3.bias"),
    "no weights": ({"epoch": 3, "best": 0.9}, "there is epoch, best"),
    "a pickled module": (network(1), "pickled object"),
    "a pickled module under a key": ({"model": network(1), "ema": None}, r"model: pickled objects.*state_dict\(\)"),
    "two that sound alike": ({"model": OWN, "net": OTHER}, "more than once, under model, net"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_with_what_was_found(kind: str, tmp_path: Path) -> None:
    """A network that is not the one that was trained answers, and wrongly."""
    content, found = REFUSED[kind]
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SpecError, match=found):
        load_weights(network(3), tmp_path / "weights.pt")


BESIDE: dict[str, tuple[Any, str]] = {
    "a key": ({"model": OWN, "ema": OTHER}, "ema"),
    "timm": ({"state_dict": OWN, "state_dict_ema": OTHER}, "state_dict_ema"),
    "prefixes": ({**under("model."), **under("ema_model.", OTHER)}, "ema_model"),
    "Lightning": (
        {"state_dict": {**under("model."), **under("ema.module.", OTHER)}},
        "state_dict.ema.module",
    ),
    "a dictionary within": ({"model": OWN, "ema": {"decay": 0.9, "shadow": OTHER}}, "ema.shadow"),
    "beside a plain network": ({**OWN, "swa": OTHER}, "swa"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_an_average_beside_the_network_is_noted_and_can_be_chosen(kind: str, tmp_path: Path) -> None:
    """Which of the two was validated only its user knows."""
    content, name = BESIDE[kind]
    torch.save(content, tmp_path / "weights.pt")
    module = network(3)
    (note,) = load_weights(module, tmp_path / "weights.pt")
    assert f"weights.pt:{name}" in note
    assert module[0].weight.equal(OWN["0.weight"])
    assert load_weights(module, tmp_path / f"weights.pt:{name}") == []
    assert module[0].weight.equal(OTHER["0.weight"])
    with pytest.raises(SpecError, match="no whole network under 'best'; there is"):
        load_weights(module, tmp_path / "weights.pt:best")


def test_an_average_without_names_or_buffers_is_noted(tmp_path: Path) -> None:
    """A list of tensors cannot be loaded, parameters alone are no whole network: both are said."""
    parameters = {name: OTHER[name] for name in OTHER if "running" not in name and "num_batches" not in name}
    for content, expected in (
        ({"model": OWN, "ema": {"shadow_params": list(OTHER.values())}}, "also holds ema"),
        ({"model": OWN, "averages": parameters}, "under averages"),
    ):
        torch.save(content, tmp_path / "weights.pt")
        (note,) = load_weights(network(3), tmp_path / "weights.pt")
        assert expected in note


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if "teacher" not in kind])
def test_what_holds_the_network_once_has_no_note(kind: str, tmp_path: Path) -> None:
    torch.save(TAKEN[kind], tmp_path / "weights.pt")
    assert load_weights(network(3), tmp_path / "weights.pt") == []


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
