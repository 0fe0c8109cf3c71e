"""What is said about a network, by its user or its bundle → the contract without sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import torch
from equipoise_core.contract import Activation, Contract, ContractError, Precision, Subject, Task, check_name
from equipoise_core.preprocessing import NORMALISED_LIMIT, Preprocessing, named
from equipoise_core.steps import Ends, Step, parse_steps
from equipoise_core.targets import Target
from torch import Tensor

from .errors import SpecError
from .options import Answers, Sizes, member
from .typed import bounds
from .volume import check_stated, of_slices, with_slices

_AXES = {1: ("X",), 2: ("H", "W"), 3: ("X", "Y", "Z")}


@dataclass(frozen=True)
class Description:
    """A network and its images, as far as they are stated; None: not stated.

    Attributes:
        name: the public model's name in Triton.
        shape: `(C, *S)` of one image as the network takes it; the size used for warm-up.
        classes: one name per output channel; softmax segmentation: background first.
        targets: of a regression, the numbers that it answers, in this order, as `age:mo` with their unit in UCUM's
            spelling.
        activation: how logits become probabilities; softmax unless stated.
        preprocess: what happens to intensities, as in training; z-scores unless stated.
        unclear: why what the intensities go through cannot be said in such steps.
        intensities: lowest and highest of the images, where no step says them.
        multiple: spatial sizes are padded to a multiple of this.
        fill: normalised intensity that the network sees in padding.
        maximum: per spatial axis the largest size served; twice that of `shape` unless stated.
        spacing: per spatial axis lowest and highest mm; of slices those in the plane are enough.
        orientation: anatomical axes as nibabel spells them (`RAS`).
        slices: see `Contract`; `shape` is then that of a slice, or of a volume `(C, D, H, W)`, and so is `maximum`.
        modalities: DICOM codes.
        body_parts, views, lateralities, ages, optional: see `Subject`.
        samples: T unless the policy or the caller says otherwise.
        states_moments: the network answers with its own moments; see `Contract`.
    """

    name: str | None = None
    task: Task | None = None
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    activation: Activation | None = None
    preprocess: tuple[Step, ...] | None = None
    unclear: str | None = None
    intensities: Ends | None = None
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
    slices: int | None = None

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Description:
        """From keyword arguments, with text for enums, lists for tuples, and spelled steps.

        Preprocessing can also be said by `normalisation` (`zscore`, `percentile`, `window`, `identity`) with `low` and
        `high`.

        Raises:
            SpecError: there is no such field, or no such value of an enum.
        """
        known = [*(field.name for field in fields(cls) if field.name not in _NOT_STATED), *_NAMED]
        unknown = sorted(set(stated) - set(known))
        if unknown:
            raise SpecError(f"{', '.join(unknown)} cannot be stated; there are: {', '.join(known)}")
        values = {name: value for name, value in stated.items() if name not in _NAMED}
        values["preprocess"] = _steps(values.get("preprocess"), *(stated.get(name) for name in _NAMED))
        for name, kind in _ENUMS.items():
            if values.get(name) is not None:
                values[name] = member(kind, values[name], name)
        for name in ("classes", "targets", *_CODES, "optional", "shape", "maximum"):
            if values.get(name) is not None:
                values[name] = _tuple(values[name], name, int if name in ("shape", "maximum") else str)
        for name in _CODES:  # DICOM spells them so
            values[name] = tuple(code.strip().upper() for code in values.get(name) or ())
        for name in ("multiple", "samples", "slices", "fill"):
            if values.get(name) is not None:
                values[name] = _number(values[name], name, float if name == "fill" else int)
        if values.get("orientation") is not None:
            values["orientation"] = str(values["orientation"]).strip().upper()
        if values.get("spacing") is not None:
            values["spacing"] = _pairs(values["spacing"], "spacing")
        if values.get("ages") is not None:
            (values["ages"],) = _pairs([values["ages"]], "ages")
        return cls(**values)

    def over(self, other: Description) -> Description:
        """This one, and what it leaves open as `other` states it: the intensities as a whole."""
        open_ = [
            field.name
            for field in fields(self)
            if field.name not in _INTENSITIES and not _is_stated(getattr(self, field.name))
        ]
        if self.preprocess is None:
            open_ += _INTENSITIES
        if self.task is Task.REGRESSION:  # a bundle's channels are classes unless its user says otherwise
            open_ = [name for name in open_ if name not in ("classes", "activation")]
        return replace(self, **{name: getattr(other, name) for name in open_})

    def contract(self, sizes: Sizes, answers: Answers = Answers.UNSTATED) -> Contract:
        """The contract without sites.

        Raises:
            SpecError: something is missing or does not fit together.
        """
        regression = self.task is Task.REGRESSION
        named = {"targets": self.targets} if regression else {"classes": self.classes}
        needed = {"name": self.name, "task": self.task, "input-shape": self.shape, **named}
        missing = [f"--{option}" for option, value in needed.items() if value is None]
        if missing:
            are = "is" if len(missing) == 1 else "are"
            raise SpecError(f"{', '.join(missing)} {are} missing: not stated anywhere else")
        assert self.name is not None and self.task is not None and self.shape is not None
        self._check_kind(self.task, answers)
        for option, number in (("--multiple", self.multiple), ("--samples", self.samples)):
            if number < 1:
                raise SpecError(f"{option} {number}: expected a whole number from 1 on")
        if self.slices is not None:
            return self._of_volume(self.slices, self.shape, sizes)
        targets = _targets(self.targets or ())
        channels, *nominal = self.shape
        text = ",".join(map(str, (channels, *nominal)))
        if min(channels, *nominal, 1) < 1:
            raise SpecError(f"--input-shape {text}: expected positive whole numbers")
        if len(nominal) not in _AXES:
            raise SpecError(f"--input-shape {text} has {len(nominal)} spatial sizes; expected C,H,W or C,X,Y,Z")
        off = [size for size in nominal if size % self.multiple]
        if off:
            raise SpecError(f"--input-shape {text}: {off[0]} is no multiple of {self.multiple} (--multiple)")
        classes, activation = self.classes or (), self.activation or Activation.SOFTMAX
        if len(classes) == 1 and activation is not Activation.SIGMOID and not self.states_moments:
            raise SpecError(
                f"--classes {classes[0]}: the softmax of one class is always 1; state --activation sigmoid, or name "
                "the background or the negative class as well"
            )
        dynamic = sizes is not Sizes.FIXED
        most = self.maximum or tuple(2 * size if dynamic else size for size in nominal)
        if len(most) != len(nominal) or any(large < size for large, size in zip(most, nominal, strict=True)):
            raise SpecError(
                f"--maximum {','.join(map(str, most))}: expected {len(nominal)} sizes, none below those of "
                f"--input-shape {text}"
            )
        if self.spacing is not None and len(self.spacing) != len(nominal):
            raise SpecError(f"--spacing describes {len(self.spacing)} axes; the image has {len(nominal)}")
        if self.unclear is not None:
            raise SpecError(
                f"{self.unclear}. State what happens to intensities with --preprocess (equipoise export --help lists "
                "the steps), and calibrate with it"
            )
        steps = parse_steps("zscore") if self.preprocess is None else self.preprocess
        try:
            return Contract(
                name=_servable(self.name),
                task=self.task,
                activation=Activation.SIGMOID if regression else activation,
                classes=classes,
                channels=channels,
                spatial=_AXES[len(nominal)] if dynamic else tuple(nominal),
                nominal=tuple(nominal),
                maximum=most,
                preprocessing=Preprocessing(steps, self.multiple, self.fill, None if steps else self.intensities),
                sites=(),
                spacing=self.spacing,
                orientation=self.orientation,
                modalities=self.modalities,
                subject=self._subject(),
                samples=self.samples,
                precision=self.precision,
                states_moments=self.states_moments,
                targets=targets,
                noise=answers.noise,
            )
        except ContractError as error:
            raise SpecError(str(error)) from error

    def _check_kind(self, task: Task, answers: Answers) -> None:
        """Raises SpecError where what is said of numbers is said of classes, or the other way round."""
        of_numbers = answers in (Answers.MEAN, Answers.MEAN_VARIANCE, Answers.MEAN_LOG_VARIANCE)
        if task is Task.REGRESSION:
            wrong = {
                "--classes": bool(self.classes),
                "--activation": self.activation is not None,
                f"--answers {answers.value}": not of_numbers and answers is not Answers.UNSTATED,
                "--states-moments": self.states_moments,
            }
            instead = (
                "a regression has --targets NAME:UNIT (age:mo), and --answers mean, mean_variance or mean_log_variance"
            )
        else:
            wrong = {
                "--targets": bool(self.targets),
                f"--answers {answers.value}": of_numbers,
            }
            instead = f"a {task.value} has --classes; numbers are answered by --task regression"
        if found := [option for option, given in wrong.items() if given]:
            raise SpecError(f"{', '.join(found)}: {instead}")

    def _of_volume(self, slices: int, shape: tuple[int, ...], sizes: Sizes) -> Contract:
        """The contract of a network that takes volumes slice by slice."""
        check_stated(self.task, self.orientation, slices)
        channels, depth, plane = of_slices(shape, slices)
        largest = None if self.maximum is None else self.maximum[-2:]
        of_slice = replace(
            self, shape=(channels, *plane), maximum=largest, spacing=None, orientation=None, slices=None
        ).contract(sizes)
        try:
            return with_slices(of_slice, slices, depth, self.maximum, self.spacing, self.orientation)
        except ContractError as error:
            raise SpecError(str(error)) from error

    def _subject(self) -> Subject | None:
        stated = {name: getattr(self, name) for name in _SUBJECT if getattr(self, name)}
        try:
            return Subject(**stated) if stated else None
        except (ContractError, TypeError, ValueError, IndexError) as error:
            raise SpecError(f"{error}") from error


def _is_stated(value: Any) -> bool:
    """What an option is where it is left out says nothing; a 0 that stands for no number of anything does."""
    return value is not None and value is not False and value not in ((), "") and repr(value) != "0.0"


_CODES = ("modalities", "body_parts", "views", "lateralities")
_SUBJECT = ("body_parts", "views", "lateralities", "ages", "optional")
_ENUMS: dict[str, type[Enum]] = {
    "task": Task,
    "activation": Activation,
    "precision": Precision,
}
_INTENSITIES = ["preprocess", "unclear"]
_NOT_STATED = ("unclear", "intensities")
_NAMED = ("normalisation", "low", "high")


def _tuple(value: Any, name: str, of: type) -> tuple[Any, ...]:
    """A list of names or whole numbers; one whole number is a list of one. Raises SpecError."""
    try:
        entries = tuple(
            [value] if of is int and not isinstance(value, str) and not hasattr(value, "__len__") else value
        )
        if of is int and all(int(each) == each for each in entries):
            return tuple(map(int, entries))
        if of is str and not isinstance(value, str) and all(isinstance(each, str) for each in entries):
            return entries
    except (TypeError, ValueError):
        pass
    raise SpecError(f"{name} is {value!r}; expected a list of {'names' if of is str else 'whole numbers'}")


def _number(value: Any, name: str, of: type) -> Any:
    """Raises SpecError."""
    try:
        number = of(value)
        if not isinstance(value, (bool, str)) and number != value:
            raise ValueError
        return number
    except (TypeError, ValueError):
        raise SpecError(f"{name} is {value!r}; expected a {'whole number' if of is int else 'number'}") from None


def _pairs(value: Any, name: str) -> tuple[tuple[float, float], ...]:
    """`0.8:1.2,1` or (0.8, (1, 2)): a number or the lowest and the highest of each axis. Raises SpecError."""
    if isinstance(value, str):
        return tuple(bounds(entry, f"--{name}") for entry in value.split(","))
    try:
        ends = [(each, each) if isinstance(each, (int, float)) else tuple(each) for each in value]
        return tuple((float(low), float(high)) for low, high in ends)
    except (TypeError, ValueError):
        raise SpecError(
            f"{name} is {value!r}; expected for each axis a number or (lowest, highest), such as [(0.8, 1.2), 1.0]"
        ) from None


def _servable(name: str) -> str:
    try:
        check_name(name)
    except ContractError as error:
        raise SpecError(f"--name: {error}") from error
    return name


def _targets(spelled: Sequence[str]) -> tuple[Target, ...]:
    try:
        return tuple(Target.parse(each) for each in spelled)
    except ValueError as error:
        raise SpecError(f"--targets: {error}") from error


def _steps(
    spelled: str | Sequence[str | Step] | None, name: str | None, low: float | None, high: float | None
) -> tuple[Step, ...] | None:
    """The steps that are spelled, or those of a normalisation's name; None: neither is stated."""
    ends = [option for option, value in (("--low", low), ("--high", high)) if value is not None]
    if spelled and (name is not None or ends):
        raise SpecError("--preprocess states all that happens to intensities; leave --normalisation, --low, --high out")
    try:
        if spelled is not None and len(spelled):
            parts = [spelled] if isinstance(spelled, str) else spelled
            return tuple(step for part in parts for step in (parse_steps(part) if isinstance(part, str) else (part,)))
        if name is None and not ends:
            return None
        if ends and name not in ("window", "percentile"):
            raise SpecError(f"{' and '.join(ends)} are the ends of --normalisation window or percentile; state which")
        return named(str(getattr(name, "value", name)), low or 0.0, high or 0.0)
    except TypeError as error:
        raise SpecError(f"preprocess is {spelled!r}; expected spelled steps, such as 'scale_range:0,255'") from error
    except ValueError as error:
        raise SpecError(str(error)) from error


def example_image(draft: Contract) -> Tensor:
    """Two noise images `[2, C, *nominal]`, within what preprocessing gives."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand((2, draft.channels, *draft.nominal), generator=generator)
    low, high = (
        torch.from_numpy(end).float().reshape(-1, *[1] * len(draft.nominal))
        for end in draft.preprocessing.normalised_range(draft.channels)
    )
    return (low + (high - low) * unit).clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)
