"""What is said about a network, by its user or its bundle → the contract without sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from equipoise_core.contract import Activation, Contract, ContractError, Precision, Subject, Task
from equipoise_core.preprocessing import NORMALISED_LIMIT, Normalisation, Preprocessing
from torch import Tensor

from .errors import SpecError
from .options import Sizes

_AXES = {1: ("X",), 2: ("H", "W"), 3: ("X", "Y", "Z")}
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Description:
    """A network and its images, as far as they are stated; None: not stated.

    Attributes:
        name: the public model's name in Triton.
        shape: `(C, *S)` of one image; the size used for warm-up.
        classes: one name per output channel; softmax segmentation: background first.
        activation: how logits become probabilities; softmax unless stated.
        normalisation: as in training; z-scores unless stated. `low` and `high` are its percentiles or intensities.
        unclear: what the intensities go through, where that is no normalisation that a contract can say.
        multiple: spatial sizes are padded to a multiple of this.
        fill: normalised intensity that the network sees in padding.
        maximum: per spatial axis the largest size served; twice that of `shape` unless stated.
        spacing: per spatial axis lowest and highest mm.
        orientation: anatomical axes as nibabel spells them (`RAS`).
        modalities: DICOM codes.
        body_parts, views, lateralities, ages, optional: see `Subject`.
        samples: T unless the policy or the caller says otherwise.
        states_moments: the network answers with its own moments; see `Contract`.
    """

    name: str | None = None
    task: Task | None = None
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    activation: Activation | None = None
    normalisation: Normalisation | None = None
    low: float = 0.0
    high: float = 0.0
    unclear: str | None = None
    multiple: int = 1
    fill: float = 0.0
    maximum: tuple[int, ...] | None = None
    spacing: tuple[tuple[float, float], ...] | None = None
    orientation: str | None = None
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    lateralities: tuple[str, ...] = ()
    ages: tuple[float, float] | None = None
    optional: tuple[str, ...] = ()
    samples: int = 20
    precision: Precision = Precision.FP32
    states_moments: bool = False

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Description:
        """From keyword arguments, with text for enums and lists for tuples.

        Raises:
            SpecError: there is no such field, or no such value of an enum.
        """
        known = [field.name for field in fields(cls) if field.name != "unclear"]
        unknown = sorted(set(stated) - set(known))
        if unknown:
            raise SpecError(f"{', '.join(unknown)} cannot be stated; there are: {', '.join(known)}")
        values = dict(stated)
        for name, kind in _ENUMS.items():
            if values.get(name) is not None:
                values[name] = _member(kind, values[name], name)
        for name in ("shape", "classes", "maximum", "modalities", *_SUBJECT):
            if isinstance(values.get(name), str):
                raise SpecError(f"{name} is {values[name]!r}; expected a list")
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        if values.get("spacing") is not None:
            values["spacing"] = tuple((float(low), float(high)) for low, high in values["spacing"])
        return cls(**values)

    def over(self, other: Description) -> Description:
        """This one, and what it leaves open as `other` states it: the intensities as a whole."""
        open_ = [
            field.name for field in fields(self) if field.name not in _INTENSITIES and not getattr(self, field.name)
        ]
        if self.normalisation is None and (other.normalisation is not None or other.unclear is not None):
            open_ += _INTENSITIES
        return replace(self, **{name: getattr(other, name) for name in open_})

    def contract(self, sizes: Sizes) -> Contract:
        """The contract without sites.

        Raises:
            SpecError: something is missing or does not fit together.
        """
        channels, *nominal = _given(self.shape, "input-shape")
        text = ",".join(map(str, (channels, *nominal)))
        if min(channels, *nominal, 1) < 1:
            raise SpecError(f"--input-shape {text}: expected positive whole numbers")
        if len(nominal) not in _AXES:
            raise SpecError(f"--input-shape {text} has {len(nominal)} spatial sizes; expected C,H,W or C,X,Y,Z")
        off = [size for size in nominal if size % self.multiple]
        if off:
            raise SpecError(f"--input-shape {text}: {off[0]} is no multiple of {self.multiple} (--multiple)")
        classes = _given(self.classes, "classes")
        if len(classes) == 1 and self.activation is not Activation.SIGMOID and not self.states_moments:
            raise SpecError(
                f"--classes {classes[0]}: the softmax of one class is always 1; state --activation sigmoid, or name "
                "the background or the negative class as well"
            )
        dynamic = sizes is not Sizes.FIXED
        if self.spacing is not None and len(self.spacing) != len(nominal):
            raise SpecError(f"--spacing describes {len(self.spacing)} axes; the image has {len(nominal)}")
        if self.unclear is not None:
            raise SpecError(
                f"what the bundle does to intensities ({self.unclear}) is no normalisation of ours: state the nearest "
                "with --normalisation (and --low, --high), and calibrate with it"
            )
        return Contract(
            name=_given(self.name, "name"),
            task=_given(self.task, "task"),
            activation=self.activation or Activation.SOFTMAX,
            classes=classes,
            channels=channels,
            spatial=_AXES[len(nominal)] if dynamic else tuple(nominal),
            nominal=tuple(nominal),
            maximum=self.maximum or tuple(2 * size if dynamic else size for size in nominal),
            preprocessing=Preprocessing(
                self.normalisation or Normalisation.ZSCORE, self.low, self.high, self.multiple, self.fill
            ),
            sites=(),
            spacing=self.spacing,
            orientation=self.orientation,
            modalities=self.modalities,
            subject=self._subject(),
            samples=self.samples,
            precision=self.precision,
            states_moments=self.states_moments,
        )

    def _subject(self) -> Subject | None:
        stated = {name: getattr(self, name) for name in _SUBJECT if getattr(self, name)}
        try:
            return Subject(**stated) if stated else None
        except (ContractError, TypeError, ValueError, IndexError) as error:
            raise SpecError(f"{error}") from error


_SUBJECT = ("body_parts", "views", "lateralities", "ages", "optional")
_ENUMS: dict[str, type[Enum]] = {
    "task": Task,
    "activation": Activation,
    "normalisation": Normalisation,
    "precision": Precision,
}
_INTENSITIES = ["normalisation", "low", "high", "unclear"]


def _member(kind: type[Enum], value: Any, name: str) -> Enum:
    """The member of an enum, also from its text."""
    try:
        return kind(value)
    except ValueError as error:
        raise SpecError(f"{name} {value!r}: expected {' or '.join(each.value for each in kind)}") from error


def _given(value: _Value | None, name: str) -> _Value:
    if value is None:
        raise SpecError(f"--{name} is missing: it is not stated anywhere else")
    return value


def example_image(draft: Contract) -> Tensor:
    """Two noise images `[2, C, *nominal]`, within what normalisation gives."""
    generator = torch.Generator().manual_seed(0)
    unit = draft.preprocessing.normalisation is not Normalisation.ZSCORE
    shape = (2, draft.channels, *draft.nominal)
    image = torch.rand(shape, generator=generator) if unit else torch.randn(shape, generator=generator)
    return image.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)
