"""Trains the methods on one data set; the weights lie in one folder, and what is there is not trained again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Activation, Contract
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.options import Options, Sizes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..reference.build import draft_contract
from ..reference.data import Dataset
from ..reference.networks import UNet
from ..reference.specs import Reference
from ..reference.train import RECIPES
from ..reference.training import Loss, TrainingError, fit

DYNAMIC = Options(sizes=Sizes.DYNAMIC)
"""A network that does not work at the sizes that its draft promises is refused."""


@dataclass(frozen=True)
class Product:
    """What a method publishes.

    Attributes:
        members: one sampler, or those of an ensemble.
        first_pass: one pass before any sample is drawn, or None.
    """

    members: tuple[Compiled, ...]
    first_pass: Compiled | None = None


@dataclass(frozen=True)
class Workshop:
    """One data set's trainings.

    Attributes:
        cases: training cases; no method sees any others.
        folder: of weights, checkpoints and times; a training that is in it is not repeated.
        seed: of weights, batches, augmentation and dropout; members of ensembles count on from it.
        from_scratch: train the base network too, instead of taking the published reference weights.
        epochs: None, or at most so many for every training: to try things out.
    """

    reference: Reference
    cases: Dataset
    folder: Path
    seed: int = 0
    from_scratch: bool = False
    epochs: int | None = None

    @property
    def rank(self) -> int:
        return len(self.reference.input_shape) - 1

    @property
    def activation(self) -> Activation:
        return Activation(self.reference.activation)

    @property
    def classes(self) -> int:
        return len(self.reference.classes)

    def base(self) -> UNet:
        """The network that other methods start from: the reference model's, dropout and all."""
        if self.from_scratch:
            network = self.fit("base", epochs=RECIPES[self.reference.name].epochs)
        else:
            network = self.reference.trained()
        assert isinstance(network, UNet)
        return network

    def fit(
        self,
        name: str,
        make: Callable[[], nn.Module] | None = None,
        loss: Loss | None = None,
        *,
        epochs: int,
        learning_rate: float | None = None,
        cases: Dataset | None = None,
        member: int = 0,
    ) -> nn.Module:
        """A trained network, in evaluation mode: found in the folder, or trained now and left there.

        Raises TrainingError where the folder holds a result of that name by another training.

        Args:
            name: of the training and its files.
            make, loss: as for `training.fit`.
            learning_rate: None: the reference recipe's.
            cases: None: all training cases.
            member: trainings that differ in nothing else differ in this.
        """
        weights, checkpoint = self.folder / f"{name}.safetensors", self.folder / f"{name}.checkpoint"
        recipe = RECIPES[self.reference.name]
        recipe = replace(
            recipe, epochs=min(epochs, self.epochs or epochs), learning_rate=learning_rate or recipe.learning_rate
        )
        cases = cases or self.cases
        training = self.identity(name, repr(recipe), cases.ids, member)
        if weights.is_file():
            self.known(name, training)
            network = (make or self.reference.network)()
            network.load_state_dict(load_file(weights))
            return network.eval()
        title = f"{self.reference.name}: {name}"
        network = fit(self.reference, recipe, cases, self.seed + member, make, loss, title, checkpoint)
        seconds = torch.load(checkpoint, weights_only=True)["seconds"]
        self.note(name, {"training": training, "epochs": recipe.epochs, "seconds": seconds})
        unfinished = weights.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, unfinished)
        unfinished.replace(weights)
        checkpoint.unlink()
        return network

    def identity(self, *what: Any) -> str:
        """Digest of a training and of all that its result depends on in this workshop: the base network's too."""
        return digest_of([self.reference.name, self.seed, self.from_scratch, self.epochs, self.cases.ids, *what])

    def known(self, name: str, training: str) -> dict[str, Any]:
        """What was noted of a result that is in the folder; raises TrainingError where it is another training's."""
        path = self.folder / f"{name}.json"
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if document.get("training") != training:
            raise TrainingError(
                f"{self.folder}: {name} was trained with another seed, recipe, number of epochs, base network or other "
                f"cases; name another folder (--work), or remove {name}.* from this one to train it anew"
            )
        return document

    def note(self, name: str, document: dict[str, Any]) -> None:
        """Keeps what is to be reported of a training beside its weights."""
        unfinished = self.folder / f"{name}.json.partial"
        unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.folder / f"{name}.json")

    def seconds(self, names: Sequence[str]) -> float:
        """Processor time of trainings, by the start of their names."""
        notes = [path for path in sorted(self.folder.glob("*.json")) if path.stem.startswith(tuple(names))]
        return float(sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in notes))

    def compiled(self, network: nn.Module, draft: Contract, options: Options = DYNAMIC) -> Compiled:
        """The network as a proven sampler."""
        example = torch.randn(2, *self.reference.input_shape, generator=torch.Generator().manual_seed(0))
        return compile_sampler(network.eval(), draft, example, options)

    @cached_property
    def draft(self) -> Contract:
        return draft_contract(self.reference)


class SamplerTeacher:
    """`student.Teacher` over a compiled sampler: the student learns from what is served.

    Args:
        samples: T for each image each time it is seen; variance and mutual information are corrected by T/(T − 1),
            the latter to first order.
    """

    def __init__(self, compiled: Compiled, samples: int) -> None:
        self._sampler = OnnxSampler(compiled.model.SerializeToString(), threads=1, weights=compiled.weights)
        self._contract, self._samples = compiled.contract, samples

    def __call__(self, image: Tensor, seen: int) -> tuple[Tensor, Tensor, Tensor]:
        layout = mask_layout(self._contract, tuple(image.shape[2:]))
        masks = [draw_masks(layout, seen + n, self._contract.digest, 0, self._samples) for n in range(len(image))]
        outputs = self._sampler(image.contiguous().numpy(), np.stack(masks))
        count = self._samples
        mean = outputs["sum_p"] / count
        variance = np.maximum(outputs["sum_p2"] / count - mean**2, 0.0) * count / (count - 1)
        wide = np.clip(mean, 1e-7, 1 - 1e-7)
        surprise = -wide * np.log(wide)
        if self._contract.activation is Activation.SOFTMAX:
            total = surprise.sum(axis=1, keepdims=True)
        else:
            total = surprise - (1 - wide) * np.log(1 - wide)
        epistemic = np.maximum(total - outputs["sum_entropy"] / count, 0.0) * count / (count - 1)
        return torch.from_numpy(mean), torch.from_numpy(variance), torch.from_numpy(epistemic)
