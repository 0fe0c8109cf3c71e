"""Fits a reference model: `python -m equipoise_lab.reference.train hippocampus [--epochs] [--seed] [--out]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from safetensors.torch import save_file

from equipoise_lab.reference.augmentation import Augmentation
from equipoise_lab.reference.data import load, reference_split
from equipoise_lab.reference.evaluate import parsed, write_metrics
from equipoise_lab.reference.training import Recipe, fit

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "hippocampus": Recipe(
            epochs=36,
            batch=4,
            learning_rate=4e-3,
            augmentation=Augmentation(
                flips=(0,),  # left and right mirror each other; the other axes have a front and a top
                crop=3,
                rotation=10,
                scale=0.12,
                shift=3,
                contrast=0.2,
                brightness=0.3,
                gamma=0.3,
                noise=0.15,
            ),
            dice_weight=0.5,
        ),
        "pneumonia": Recipe(
            epochs=14,
            batch=128,
            learning_rate=3e-3,
            augmentation=Augmentation(
                rotation=8, scale=0.1, shift=2, contrast=0.2, brightness=0.1, gamma=0.3, noise=0.05
            ),
        ),
        "nuclei": Recipe(
            epochs=24,
            batch=8,
            learning_rate=4e-3,
            augmentation=Augmentation(
                flips=(0, 1), rotation=45, scale=0.25, shift=16, contrast=0.3, brightness=0.1, gamma=0.4, noise=0.05
            ),
            dice_weight=0.25,
        ),
    }
)


def main(arguments: list[str] | None = None) -> None:
    options, reference = parsed("Fit a reference model and measure it on its test split.", arguments, epochs=True)
    recipe = RECIPES[options.name]
    if options.epochs:
        recipe = replace(recipe, epochs=options.epochs)
    cases = load(reference.name)
    parts = reference_split(reference.name, cases.ids)
    checkpoint = reference.weights.with_suffix(".checkpoint")
    network = fit(reference, recipe, cases.select(parts.train), options.seed, checkpoint=checkpoint)
    options.out.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, reference.weights)
    checkpoint.unlink()
    print(write_metrics(reference, cases), end="")


if __name__ == "__main__":
    main()
