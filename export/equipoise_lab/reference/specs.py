"""What each reference model is: the facts its contract, its calibration and its model card are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from equipoise_core.contract import Subject
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ScalePercentiles, ZScore
from torch import nn

WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Reference:
    """One reference model.

    Attributes:
        name: name of the public Triton model.
        task: what the network answers, per voxel or per image.
        activation: what turns its logits into probabilities; `sigmoid` goes with a single class.
        classes: names in channel order; softmax counts the background as a class.
        input_shape: nominal `(C, *S)`; segmentation takes any S, padded to `preprocessing.multiple`.
        preprocessing: what happens to the source's intensities before the network.
        spacing: accepted (low, high) voxel spacing in mm per axis, or None where images carry none.
        orientation: patient directions towards which the axes of S increase (NIfTI convention, `nibabel.aff2axcodes`);
            None where it is the image's own (rows, columns).
        modality: DICOM Modality (0008,0060) values the model is for.
        subject: what its training images showed.
        acceptable_dice: segmentation: a case whose Dice, averaged over the labels, is below this counts as a loss if
            it was accepted. None: classification, where a wrong label counts as a loss.
        stages: of its published policy, 0 for the first pass: the list that accepts no less and costs least
            (`tests/benchmarks/bench_stages.py`).
        factory: `package.module:callable` that returns the network.
        weights: safetensors file with the network's state.
    """

    name: str
    task: Literal["segmentation", "classification"]
    activation: Literal["softmax", "sigmoid"]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing
    spacing: tuple[tuple[float, float], ...] | None
    orientation: str | None
    modality: tuple[str, ...]
    acceptable_dice: float | None
    stages: tuple[int, ...]
    factory: str
    weights: Path
    subject: Subject | None = None

    def network(self) -> nn.Module:
        """The network with fresh weights."""
        module, function = self.factory.split(":")
        network: nn.Module = getattr(import_module(module), function)()
        return network

    def trained(self) -> nn.Module:
        """The network with the published weights, in eval mode."""
        from safetensors.torch import load_file

        network = self.network()
        network.load_state_dict(load_file(self.weights))
        return network.eval()


HIPPOCAMPUS = Reference(
    name="hippocampus",
    task="segmentation",
    activation="softmax",
    classes=("background", "anterior", "posterior"),
    input_shape=(1, 40, 56, 40),
    preprocessing=Preprocessing((ZScore(),), multiple=8),
    spacing=((0.9, 1.1), (0.9, 1.1), (0.9, 1.1)),
    orientation="RAS",
    modality=("MR",),
    acceptable_dice=0.80,
    stages=(0, 20),
    factory="equipoise_lab.reference.networks:hippocampus",
    weights=WEIGHTS / "hippocampus.safetensors",
    # Few MR scanners fill in Body Part Examined (it is optional there); a radiograph's standard asks for it.
    subject=Subject(body_parts=("BRAIN", "HEAD", "HIPPOCAMPUS"), optional=("body_part",)),
)

PNEUMONIA = Reference(
    name="pneumonia",
    task="classification",
    activation="softmax",
    classes=("normal", "pneumonia"),
    input_shape=(1, 28, 28),
    preprocessing=Preprocessing((ScalePercentiles(0.5, 99.5),), multiple=4),
    spacing=None,
    orientation=None,
    modality=("CR", "DX"),
    acceptable_dice=None,
    stages=(5, 10, 20),
    factory="equipoise_lab.reference.networks:pneumonia",
    weights=WEIGHTS / "pneumonia.safetensors",
    # Kermany et al. 2018: anterior-posterior chest radiographs of children of one to five years.
    subject=Subject(body_parts=("CHEST", "THORAX", "LUNG"), views=("PA", "AP"), ages=(1, 5)),
)

NUCLEI = Reference(
    name="nuclei",
    task="segmentation",
    activation="sigmoid",
    classes=("nucleus",),
    input_shape=(1, 256, 256),
    preprocessing=Preprocessing((ScalePercentiles(1.0, 99.8),), multiple=8),
    spacing=None,
    orientation=None,
    modality=("GM", "SM"),
    acceptable_dice=0.80,
    stages=(0, 20),
    factory="equipoise_lab.reference.networks:nuclei",
    weights=WEIGHTS / "nuclei.safetensors",
)

REFERENCES: Mapping[str, Reference] = MappingProxyType({r.name: r for r in (HIPPOCAMPUS, PNEUMONIA, NUCLEI)})
