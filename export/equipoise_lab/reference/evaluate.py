"""Measures a reference model on its test split, once as a point estimate and once by MC dropout.

`python -m equipoise_lab.reference.evaluate hippocampus` writes `weights/hippocampus.metrics.json`. The sampling is
the plain PyTorch loop of Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016: dropout layers in train
mode, everything else in eval mode. These figures are before calibration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_export.calibration import metrics
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from equipoise_lab.reference.data import Dataset, load, reference_split
from equipoise_lab.reference.specs import REFERENCES, WEIGHTS, Reference

SAMPLES = 20

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that are stochastic when sampling: every kind of dropout with p > 0."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    return [module for module in network.modules() if isinstance(module, kinds) and module.p > 0]


@torch.inference_mode()
def logits(reference: Reference, network: nn.Module, image: NDArray[np.float32]) -> Tensor:
    """`[K, *S]` (or `[K]`) of one image `[C, *S]` in the source's intensities, by the network as it is."""
    prepared = reference.preprocessing.pad(reference.preprocessing.normalise(image))
    prepared = np.where(prepared == np.float32(PADDING_VALUE), np.float32(reference.preprocessing.fill), prepared)
    answer: Tensor = network(torch.from_numpy(prepared)[None])[0]
    return answer[(slice(None), *map(slice, image.shape[1:]))] if reference.task == "segmentation" else answer


def probabilities(reference: Reference, network: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """One pass over an image `[C, *S]` in the source's intensities → probabilities `[K, *S]` (or `[K]`)."""
    answer = logits(reference, network, image)
    result: NDArray[np.float32] = (answer.sigmoid() if reference.activation == "sigmoid" else answer.softmax(0)).numpy()
    return result


def sample(
    reference: Reference, network: nn.Module, image: NDArray[np.float32], samples: int = SAMPLES
) -> NDArray[np.float32]:
    """`samples` passes, each under fresh dropout masks from torch's generator → probabilities `[T, K, *S]`."""
    network.eval()
    for layer in dropout_layers(network):
        layer.train()
    passes = np.stack([probabilities(reference, network, image) for _ in range(samples)])
    network.eval()
    return passes


def measure(reference: Reference, cases: Dataset, predict: Predictor) -> dict[str, Any]:
    """Metrics of `predict`: image `[C, *S]` → probabilities `[K, *S]` (or `[K]`), over all cases.

    Calibration (`ece`, `nll` in nat, `brier` in [0, 2]) of a segmentation is over all voxels of all cases together.
    """
    predicted = [predict(image) for image in cases.images]
    if reference.activation == "sigmoid":
        predicted = [np.concatenate([1 - p, p]) for p in predicted]
    answers = [p.argmax(axis=0) for p in predicted]
    flat = np.concatenate([p.reshape(len(p), -1).T for p in predicted]).astype(np.float64)
    truth = np.concatenate([target.reshape(-1) for target in cases.targets])
    quality: dict[str, Any]
    if reference.acceptable_dice is not None:
        structures = reference.classes[-(flat.shape[1] - 1) :]
        dice = np.array(
            [
                [metrics.dice(answer == label, target == label) for label in range(1, len(structures) + 1)]
                for answer, target in zip(answers, cases.targets, strict=True)
            ]
        )
        losses = dice.mean(axis=1) < reference.acceptable_dice
        quality = {
            "dice": dict(zip(structures, dice.mean(axis=0).tolist(), strict=True)),
            "dice_worst_case": float(dice.min()),
        }
    else:
        losses = np.array(answers) != truth
        quality = {
            "accuracy": float(np.mean(~losses)),
            "sensitivity": float(np.mean(~losses[truth == 1])),
            "specificity": float(np.mean(~losses[truth == 0])),
            "auc": float(roc_auc_score(truth, flat[:, 1])),
        }
    given = np.maximum(flat[np.arange(len(truth)), truth], metrics.SMALLEST)
    return quality | {
        "loss_rate": float(np.mean(losses)),
        "ece": metrics.expected_calibration_error(flat, truth),
        "nll": float(-np.log(given).mean()),
        "brier": metrics.brier_score(flat, truth),
    }


def evaluate(reference: Reference, cases: Dataset, seed: int = 0, samples: int = SAMPLES) -> dict[str, Any]:
    """Both ways of asking the trained network about the test split of `cases`, as plain JSON values."""
    network = reference.trained()
    parts = reference_split(reference.name, cases.ids)
    test = cases.select(parts.test)
    variances: list[float] = []

    def monte_carlo(image: NDArray[np.float32]) -> NDArray[np.float32]:
        passes = sample(reference, network, image, samples)
        variances.append(float(passes.var(axis=0).mean()))
        mean: NDArray[np.float32] = passes.mean(axis=0)
        return mean

    torch.manual_seed(seed)
    return {
        "model": reference.name,
        "weights_sha256": hashlib.sha256(reference.weights.read_bytes()).hexdigest(),
        "cases": {"train": len(parts.train), "calibration": len(parts.calibration), "test": len(parts.test)},
        "deterministic": measure(reference, test, lambda image: probabilities(reference, network, image)),
        "mc_dropout": {"samples": samples, "seed": seed}
        | measure(reference, test, monte_carlo)
        | {"mean_variance": float(np.mean(variances))},
    }


def write_metrics(reference: Reference, cases: Dataset, seed: int = 0) -> str:
    """Evaluates and writes `NAME.metrics.json` beside the weights; returns the JSON."""
    text = json.dumps(evaluate(reference, cases, seed), indent=2, default=float) + "\n"
    reference.weights.with_name(f"{reference.name}.metrics.json").write_text(text)
    return text


def parsed(description: str, arguments: list[str] | None, epochs: bool = False) -> tuple[argparse.Namespace, Reference]:
    """The arguments of this command and of `train`, and the model with the weights that they name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("name", choices=REFERENCES)
    if epochs:
        parser.add_argument("--epochs", type=int, help="passes over the training cases; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of NAME.safetensors and NAME.metrics.json")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return options, replace(REFERENCES[options.name], weights=options.out / f"{options.name}.safetensors")


def main(arguments: list[str] | None = None) -> None:
    options, reference = parsed("Measure a reference model on its test split.", arguments)
    print(write_metrics(reference, load(reference.name), options.seed), end="")


if __name__ == "__main__":
    main()
