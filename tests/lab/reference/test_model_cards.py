"""The model cards say what was measured, no better and no worse."""

import hashlib
import json
from pathlib import Path

import pytest
from equipoise_lab.reference.data import REPOSITORY
from equipoise_lab.reference.specs import REFERENCES, Reference

MODELS = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())


def measured(reference: Reference) -> dict:
    return json.loads(reference.weights.with_name(f"{reference.name}.metrics.json").read_text())


@MODELS
def test_metrics_belong_to_the_weights(reference: Reference) -> None:
    """Weights that were fitted anew have to be measured anew."""
    assert measured(reference)["weights_sha256"] == hashlib.sha256(reference.weights.read_bytes()).hexdigest()


@MODELS
def test_weights_load_into_the_network_that_they_are_for(reference: Reference) -> None:
    """Names and shapes agree, and the network comes back in eval mode."""
    assert not reference.trained().training


@MODELS
def test_samples_differ_and_their_mean_is_no_worse(reference: Reference) -> None:
    """Sampling must tell something (variance > 0) and cost next to nothing in quality."""
    single, sampled = measured(reference)["deterministic"], measured(reference)["mc_dropout"]
    assert sampled["mean_variance"] > 0
    assert sampled["loss_rate"] <= single["loss_rate"] + 0.02


@MODELS
def test_model_card_carries_the_measured_figures(reference: Reference) -> None:
    """Every figure of the metrics file stands in the card, with three decimals or as a percentage with one."""
    card = Path(REPOSITORY / "model_repository" / reference.name / "README.md").read_text()
    assert "Not a medical device" in card
    figures = measured(reference)
    for size in figures["cases"].values():
        assert f"{size:,}" in card
    for way in ("deterministic", "mc_dropout"):
        for name, figure in flat(figures[way]).items():
            if name not in ("samples", "seed", "mean_variance"):
                assert f"{figure:.3f}" in card or f"{100 * figure:.1f} %" in card, f"{way} {name} {figure}"


def flat(figures: dict) -> dict:
    """Dice per label lifted to the level of the other figures."""
    return {k: v for k, v in figures.items() if k != "dice"} | figures.get("dice", {})
