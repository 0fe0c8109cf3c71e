"""Fits a network to labelled cases until it gets no better on others: the same weights from the same seed and machine.

AdamW (Loshchilov and Hutter 2019) at a rate that falls where the validation loss no longer does. Cross-entropy leads
the loss, because its probabilities are what this project is about; a soft Dice term (Milletari et al. 2016) helps it
with small structures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from equipoise_core.contract import Activation, Contract, Task
from equipoise_export.calibration.metrics import dice
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..reference.augmentation import Augmentation
from ..reference.training import TrainingError, soft_dice_loss
from .cases import IGNORED, MILD, Sample, batches, stack


@dataclass(frozen=True)
class Recipe:
    """How a network is fitted.

    Attributes:
        epochs: passes over the training cases, at most.
        patience: it stops after so many epochs without a smaller validation loss.
        batch: images per step.
        learning_rate: at the start.
        dice_weight: segmentation: weight of the soft Dice term beside cross-entropy.
        augment: whether images are turned, scaled, shifted and recoloured a little each time.
        seed: of batches, augmentation and dropout.
    """

    epochs: int = 200
    patience: int = 20
    batch: int = 8
    learning_rate: float = 1e-3
    dice_weight: float = 0.5
    augment: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        loss, validation_loss: mean over the cases.
        quality: on the validation cases: mean Dice over foreground classes, or the share of right labels; 0..1.
        best: its validation loss is the smallest so far.
    """

    number: int
    loss: float
    validation_loss: float
    quality: float
    best: bool


def fit(
    network: nn.Module,
    contract: Contract,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    recipe: Recipe,
    keep: Callable[[nn.Module, Epoch], None],
    device: str = "cpu",
) -> Iterator[Epoch]:
    """Trains in place, one epoch each time the iterator is asked.

    Args:
        keep: is given the network after each epoch that is the best so far.

    Raises:
        TrainingError: the network does not take the images or answers something else than logits, or a loss is not
            finite.
    """
    torch.manual_seed(recipe.seed)
    random = np.random.default_rng(recipe.seed)
    augmentation = MILD if recipe.augment else Augmentation()
    network.to(device)
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("the network has no weights that could be trained")
    _check(network, contract, train, device)
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=1e-2)
    schedule = ReduceLROnPlateau(optimiser, factor=0.3, patience=max(1, recipe.patience // 3))
    best, since = float("inf"), 0
    for number in itertools.count(1):
        losses = []
        network.train()
        for images, targets in batches(contract, train, recipe.batch, random, augmentation):
            try:
                logits = network(images.to(device)).float()
            except Exception as error:
                raise TrainingError(
                    f"the network cannot be trained on {len(images)} images at once: {type(error).__name__}: {error}; "
                    "try another --batch"
                ) from error
            loss = loss_of(contract, logits, targets.to(device), recipe.dice_weight)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 5.0)
            optimiser.step()
            losses.append(loss.item())
        validation_loss, quality = evaluate(network, contract, validation, recipe.dice_weight, device)
        mean = float(np.mean(losses))
        if not (np.isfinite(mean) and np.isfinite(validation_loss)):
            raise TrainingError(f"the loss became {mean} in epoch {number}: try a smaller --learning-rate")
        schedule.step(validation_loss)
        since = 0 if validation_loss < best else since + 1
        best = min(best, validation_loss)
        epoch = Epoch(number, mean, validation_loss, quality, since == 0)
        if epoch.best:
            keep(network, epoch)
        yield epoch
        if number >= recipe.epochs or since >= recipe.patience:
            return


def _check(network: nn.Module, contract: Contract, train: Sequence[Sample], device: str) -> None:
    """One batch in evaluation mode: what the network takes and gives, before hours are spent."""
    images, _ = stack(contract, train[:2])
    wanted = (len(images), len(contract.classes), *(images.shape[2:] if contract.task is Task.SEGMENTATION else ()))
    network.eval()
    try:
        with torch.no_grad():
            answer: Any = network(images.to(device))
            strong: Any = network(images.to(device) * 1e3)  # logits leave 0..1 then, whatever the weights begin with
    except Exception as error:
        raise TrainingError(
            f"the network does not take images {list(images.shape)}: {type(error).__name__}: {error}; check "
            "--input-shape and --multiple"
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != wanted:
        got = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise TrainingError(f"the network answers {got} to images {list(images.shape)}; expected logits {list(wanted)}")
    both = torch.stack([answer, strong])
    if bool(((both >= 0) & (both <= 1)).all()) and not bool((both == 0).all()):
        raise TrainingError(
            "the network's answers lie between 0 and 1, like probabilities: train it without its last sigmoid or "
            "softmax, and export it so"
        )


def loss_of(contract: Contract, logits: Tensor, targets: Tensor, dice_weight: float) -> Tensor:
    """Cross-entropy of logits `[N, K, *S]` or `[N, K]` against targets as `stack` gives them, plus weighted soft Dice
    of a segmentation's foreground; padding counts in neither."""
    counted = targets != IGNORED
    if contract.activation is Activation.SIGMOID:
        truth = torch.where(counted, targets, 0).float()
        loss = functional.binary_cross_entropy_with_logits(logits, truth, counted.float(), reduction="sum")
        loss = loss / counted.sum().clamp(min=1)
        probabilities = logits.sigmoid() * counted
    else:
        loss = functional.cross_entropy(logits, targets, ignore_index=IGNORED)
        if contract.task is not Task.SEGMENTATION:
            return loss
        one_hot = functional.one_hot(torch.where(counted, targets, 0), logits.shape[1]).movedim(-1, 1)
        truth = one_hot[:, 1:].float()
        probabilities = logits.softmax(1)[:, 1:] * counted[:, None]
    if contract.task is not Task.SEGMENTATION or not dice_weight:
        return loss
    return loss + dice_weight * soft_dice_loss(probabilities, truth)


def evaluate(
    network: nn.Module, contract: Contract, cases: Sequence[Sample], dice_weight: float, device: str = "cpu"
) -> tuple[float, float]:
    """Mean loss, and mean Dice over foreground classes or the share of right labels, in evaluation mode."""
    network.eval()
    losses, qualities = [], []
    with torch.no_grad():
        for case in cases:
            _, targets = stack(contract, [case])
            logits = _logits(network, contract, case, device)
            losses.append(loss_of(contract, logits, targets, dice_weight).item())
            qualities.append(_quality(contract, logits[0], case.truth))
    return float(np.mean(losses)), float(np.mean(qualities))


def _logits(network: nn.Module, contract: Contract, case: Sample, device: str) -> Tensor:
    """Of the whole image `[1, K, *S]` or `[1, K]`; one larger than the contract's largest goes in windows of it."""
    images, _ = stack(contract, [case])
    sizes = images.shape[2:]
    if contract.task is not Task.SEGMENTATION or all(s <= m for s, m in zip(sizes, contract.maximum, strict=True)):
        return network(images.to(device)).float().cpu()  # type: ignore[no-any-return]
    window = [min(size, most) for size, most in zip(sizes, contract.maximum, strict=True)]
    starts = [sorted({*range(0, size - w + 1, w), size - w}) for size, w in zip(sizes, window, strict=True)]
    logits = torch.zeros((1, len(contract.classes), *sizes))
    for corner in itertools.product(*starts):
        part = (slice(None), slice(None), *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))
        logits[part] = network(images[part].to(device)).float().cpu()
    return logits


def _quality(contract: Contract, logits: Tensor, truth: NDArray[np.uint8]) -> float:
    answer = logits.argmax(0).numpy() if contract.activation is Activation.SOFTMAX else (logits > 0).numpy()
    if contract.task is not Task.SEGMENTATION:
        return float(np.array_equal(answer, truth))
    unpadded: Any = (..., *map(slice, truth.shape[-contract.rank :]))
    answer = answer[unpadded]
    if contract.activation is Activation.SIGMOID:
        return float(np.mean([dice(found, true > 0) for found, true in zip(answer, truth, strict=True)]))
    return float(np.mean([dice(answer == k, truth == k) for k in contract.foreground]))
