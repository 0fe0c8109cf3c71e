"""Fits a network to labelled images: resumable, with progress, the same weights from the same seed and machine.

AdamW under a one-cycle schedule (Loshchilov and Hutter 2019; Smith and Topin 2019), bfloat16 where the processor has
it; the weights come out in float32. Cross-entropy leads the loss, because it is proper and its probabilities are what
this project is about; a soft Dice term (Milletari et al. 2016) helps it with small structures.
"""

from __future__ import annotations

import os
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equipoise_core.canonical import digest_of
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from .augmentation import Augmentation
from .data import Dataset
from .specs import Reference

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, images `[N, C, *S]` normalised and padded, targets `[N, *S]` or `[N]` int64) → what is to become small."""


class TrainingError(RuntimeError):
    """The training cannot go on; the message says why and what to do."""


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


def quickly(network: nn.Module, image: Tensor) -> Any:
    """What the network answers, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return network(image)


def cross_entropy(
    reference: Reference, dice_weight: float, network: nn.Module, image: Tensor, target: Tensor
) -> Tensor:
    """What the reference networks are fitted with."""
    return loss_of(quickly(network, image).float(), target, reference.activation, dice_weight)


def fit(
    reference: Reference,
    recipe: Recipe,
    cases: Dataset,
    seed: int,
    make: Callable[[], nn.Module] | None = None,
    loss: Loss | None = None,
    title: str | None = None,
    checkpoint: Path | None = None,
) -> nn.Module:
    """A network fitted to `cases`; the same seed on the same machine gives the same weights.

    Args:
        make: the network to start from, made after the seed was set; None: the reference's with fresh weights. Parts
            that need no gradient stay as they are, in evaluation mode.
        loss: None: cross-entropy, with the recipe's Dice term.
        title: beside the progress bar.
        checkpoint: written after every epoch. Where it exists already, training goes on from there, with the same
            result as if it had never stopped.

    Raises:
        TrainingError: the checkpoint is of another training, or the loss is not finite.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = (make or reference.network)()
    loss = loss or partial(cross_entropy, reference, recipe.dice_weight)
    layout = torch.channels_last_3d if len(reference.input_shape) == 4 else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=1e-2
    )
    steps = recipe.epochs * -(-len(cases) // recipe.batch)
    schedule = OneCycleLR(optimiser, recipe.learning_rate, total_steps=max(steps + 1, 11), pct_start=0.2)
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    state = _State(network, optimiser, schedule, random, digest_of([reference.name, repr(recipe), seed, cases.ids]))
    done, spent = state.resume(checkpoint) if checkpoint else (0, 0.0)
    begun = time.process_time()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress:
        bar = progress.add_task(title or reference.name, total=recipe.epochs, completed=done, loss=float("nan"))
        for epoch in range(done, recipe.epochs):
            losses = []
            _train_mode(network)
            for image, target in batches(reference, recipe, cases, random):
                value = loss(network, image.contiguous(memory_format=layout), target)
                optimiser.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
                losses.append(value.item())
            mean = float(np.mean(losses))
            if not np.isfinite(mean):
                raise TrainingError(f"{title or reference.name}: the loss became {mean} in epoch {epoch + 1}")
            progress.update(bar, advance=1, loss=mean)
            if checkpoint:
                state.save(checkpoint, epoch + 1, spent + time.process_time() - begun)
    return network.eval()


def _train_mode(network: nn.Module) -> None:
    """Training mode, but for the parts that are frozen: their dropout and their BatchNorm are not to act."""
    network.train()
    for part in network.modules():
        own = list(part.parameters())
        if own and not any(p.requires_grad for p in own):
            part.eval()


@dataclass(frozen=True)
class _State:
    """All that a training depends on."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: OneCycleLR
    random: np.random.Generator
    digest: str

    def save(self, path: Path, epochs: int, seconds: float) -> None:
        """In one step: a training that is killed leaves the checkpoint before or this one."""
        document = {
            "training": self.digest,
            "epochs": epochs,
            "seconds": seconds,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": repr(self.random.bit_generator.state),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(f".{os.getpid()}.partial")
        torch.save(document, partial_file)
        partial_file.replace(path)

    def resume(self, path: Path) -> tuple[int, float]:
        """Epochs that are done already, and the seconds of processor time that they took."""
        if not path.is_file():
            return 0, 0.0
        document: dict[str, Any] = torch.load(path, weights_only=True)
        if document["training"] != self.digest:
            raise TrainingError(
                f"{path} was written by a training with another recipe, seed or other cases; remove it to start anew"
            )
        self.network.load_state_dict(document["network"])
        self.optimiser.load_state_dict(document["optimiser"])
        self.schedule.load_state_dict(document["schedule"])
        torch.set_rng_state(document["torch"])
        self.random.bit_generator.state = literal_eval(document["numpy"])
        return int(document["epochs"]), float(document["seconds"])
