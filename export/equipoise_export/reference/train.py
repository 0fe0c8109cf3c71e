"""Fits a reference model: `python -m equipoise_export.reference.train hippocampus [--epochs] [--seed] [--out]`.

AdamW under a one-cycle schedule (Loshchilov and Hutter 2019; Smith and Topin 2019), bfloat16 where the processor has
it; the weights come out in float32. Cross-entropy leads the loss, because it is proper and its probabilities are what
this project is about; a soft Dice term (Milletari et al. 2016) helps it with small structures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from equipoise_export.reference.augmentation import Augmentation
from equipoise_export.reference.data import Dataset, load, reference_split
from equipoise_export.reference.evaluate import write_metrics
from equipoise_export.reference.specs import REFERENCES, WEIGHTS, Reference


@dataclass(frozen=True)
class Recipe:
    """How one model is fitted.

    Attributes:
        epochs: passes over the training cases.
        batch: images per step.
        learning_rate: the peak of the one-cycle schedule.
        augmentation: how each image is changed each time it is seen.
        dice_weight: weight of the soft Dice term beside cross-entropy; 0 leaves it out.
    """

    epochs: int
    batch: int
    learning_rate: float
    augmentation: Augmentation
    dice_weight: float = 0.0


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


def batches(
    reference: Reference, recipe: Recipe, cases: Dataset, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: images `[N, C, *S]`, padded to a common size, and targets `[N, *S]` or `[N]` int64."""
    order = random.permutation(len(cases))
    for start in range(0, len(order), recipe.batch):
        images, targets = [], []
        for index in order[start : start + recipe.batch]:
            image, target = recipe.augmentation.cut(cases.images[index], cases.targets[index], random)
            image = reference.preprocessing.normalise(image)
            image, target = recipe.augmentation.deform(image, target, random)
            images.append(recipe.augmentation.recolour(image, random))
            targets.append(target)
        if len(images) == 1:
            continue  # BatchNorm has nothing to compare a lone image with
        yield stack(images, targets, reference)


def stack(
    images: list[NDArray[np.float32]], targets: list[NDArray[np.uint8]], reference: Reference
) -> tuple[Tensor, Tensor]:
    """Pads at the end, with what the sampler puts there, to the largest size rounded up to the network's multiple."""
    multiple = reference.preprocessing.multiple
    sizes = [-(-size // multiple) * multiple for size in np.max([image.shape[1:] for image in images], axis=0)]
    batch = np.full((len(images), images[0].shape[0], *sizes), reference.preprocessing.fill, np.float32)
    for row, image in zip(batch, images, strict=True):
        row[(slice(None), *map(slice, image.shape[1:]))] = image
    if targets[0].ndim == 0:
        return torch.from_numpy(batch), torch.from_numpy(np.array(targets, np.int64))
    truth = np.zeros((len(images), *sizes), np.int64)
    for row, target in zip(truth, targets, strict=True):
        row[tuple(map(slice, target.shape))] = target
    return torch.from_numpy(batch), torch.from_numpy(truth)


def soft_dice_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """1 − soft Dice, averaged over the structures `[N, K, *S]`, each pooled over the batch; in [0, 1]."""
    axes = (0, *range(2, truth.ndim))
    overlap = 2 * (probabilities * truth).sum(axes)
    return 1 - ((overlap + 1) / (probabilities.sum(axes) + truth.sum(axes) + 1)).mean()


def loss_of(logits: Tensor, target: Tensor, activation: str, dice_weight: float) -> Tensor:
    """Cross-entropy plus weighted soft Dice of logits `[N, K, *S]` against labels `[N, *S]`."""
    if activation == "sigmoid":
        truth = target[:, None].float()
        loss = functional.binary_cross_entropy_with_logits(logits, truth)
        structures = logits.sigmoid()
    else:
        loss = functional.cross_entropy(logits, target)
        if not dice_weight:
            return loss
        # Dice is about structures: the background has none.
        truth = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
        structures = logits.softmax(1)[:, 1:]
    return loss + dice_weight * soft_dice_loss(structures, truth) if dice_weight else loss


def fit(reference: Reference, recipe: Recipe, cases: Dataset, seed: int) -> nn.Module:
    """A network fitted to `cases`; the same seed on the same machine gives the same weights."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = reference.network().train()
    layout = torch.channels_last_3d if len(reference.input_shape) == 4 else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    steps = recipe.epochs * -(-len(cases) // recipe.batch)
    schedule = OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps + 1, pct_start=0.2)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress:
        bar = progress.add_task(reference.name, total=recipe.epochs, loss=float("nan"))
        for _ in range(recipe.epochs):
            losses = []
            for image, target in batches(reference, recipe, cases, random):
                with torch.autocast("cpu", torch.bfloat16):
                    logits = network(image.contiguous(memory_format=layout))
                loss = loss_of(logits.float(), target, reference.activation, recipe.dice_weight)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.item())
            progress.update(bar, advance=1, loss=float(np.mean(losses)))
    return network.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fit a reference model and measure it on its test split.")
    parser.add_argument("name", choices=REFERENCES)
    parser.add_argument("--epochs", type=int, help="passes over the training cases; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, augmentation and dropout")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for NAME.safetensors and NAME.metrics.json")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    reference = replace(REFERENCES[options.name], weights=options.out / f"{options.name}.safetensors")
    recipe = RECIPES[options.name]
    if options.epochs:
        recipe = replace(recipe, epochs=options.epochs)
    cases = load(reference.name)
    parts = reference_split(reference.name, cases.ids)
    network = fit(reference, recipe, cases.select(parts.train), options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, reference.weights)
    print(write_metrics(reference, cases), end="")


if __name__ == "__main__":
    main()
