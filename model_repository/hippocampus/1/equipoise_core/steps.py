"""What happens to intensities before the network sees them: an ordered list of steps, each one a known transform.

    clip                numpy.clip, torch.clamp
    clip_percentiles    monai.transforms.ClipIntensityPercentiles
    scale_range         monai.transforms.ScaleIntensityRange
    scale_percentiles   monai.transforms.ScaleIntensityRangePercentiles; of 0 and 100: ScaleIntensity
    zscore              monai.transforms.NormalizeIntensity
    mean_std            torchvision.transforms.Normalize; NormalizeIntensity with subtrahend and divisor
    divide              torchvision.transforms.ToTensor, of 8-bit images (255)
    rgb                 monai.transforms.RepeatChannel(3); PIL.Image.convert("RGB") of a grey image

A list is spelled `clip:-57,164 scale_range:-57,164`: a step's numbers in the order of its fields, then the names of
what is switched on. Statistics are those of each channel, or of all channels `together`, as MONAI's are by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import numeric

Array = NDArray[np.floating[Any]]
Wide = NDArray[np.float64]
Ends = tuple[float, float]

ANY_SCALE = (0.0, 1000.0)
"""A range of intensities for steps that take their scale from the image."""


@dataclass(frozen=True)
class Step:
    """One step; `name` is how it is spelled. Raises ValueError for numbers that make no sense."""

    name: ClassVar[str]
    made_for: ClassVar[Ends | None] = ANY_SCALE

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if each.type == "bool":
                fine = isinstance(value, bool)
            else:
                fine = all(
                    isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
                )
            if not fine or not numbers:
                raise ValueError(f"{self.name}: {each.name} is {value!r}; expected {_usage(type(self))}")

    def __str__(self) -> str:
        values = [(each, getattr(self, each.name)) for each in fields(self)]
        numbers = [(each, value) for each, value in values if each.type != "bool"]
        usual = all(value == each.default for each, value in numbers if each.default is not MISSING)
        words = [_spelled(value) for each, value in numbers if each.default is MISSING or not usual]
        words += [each.name for each, value in values if value is True]
        return f"{self.name}:{self._between.join(words)}" if words else self.name

    _between: ClassVar[str] = ","

    def apply(self, image: Array) -> Array:
        """`[C, V]` → `[C', V]`; an image in double precision may be written over, another one is not."""
        result = image if image.dtype == np.float64 else np.empty(image.shape, np.float64)
        whole = getattr(self, "together", False)
        rows = (image.reshape(1, -1), result.reshape(1, -1)) if whole else (image, result)
        for number, (row, out) in enumerate(zip(*rows, strict=True)):
            self._row(number, row, out)
        return result

    def _row(self, number: int, row: Array, out: Wide) -> None:
        """The values `[V]` of channel `number` into `out`, which may be the same memory."""
        raise NotImplementedError

    def ends(self, low: Wide, high: Wide) -> tuple[Wide, Wide]:
        """What becomes of typical lowest and highest intensities, `[C]` each."""
        return tuple(self.apply(each.reshape(-1, 1).copy())[:, 0] for each in (low, high))  # type: ignore[return-value]

    def check(self, channels: int) -> int:
        """C of an image → C' of its result. Raises ValueError for an image that it cannot take."""
        return channels


def _ordered(step: Step, low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"{step.name} needs low < high; got {low} and {high}")


def _percentiles(step: Step, lower: float, upper: float) -> None:
    _ordered(step, lower, upper)
    if lower < 0 or upper > 100:
        raise ValueError(f"{step.name}: percentiles lie between 0 and 100; got {lower} and {upper}")


@dataclass(frozen=True)
class Clip(Step):
    """Intensities below `low` become `low`, those above `high` become `high`."""

    low: float
    high: float
    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ordered(self, self.low, self.high)

    @property
    def made_for(self) -> Ends:  # type: ignore[override]
        return float(self.low), float(self.high)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        np.copyto(out, row)
        np.clip(out, self.low, self.high, out=out)


@dataclass(frozen=True)
class ClipPercentiles(Step):
    """The same with percentiles (0 to 100) of the image, linear between neighbours in order."""

    lower: float
    upper: float
    together: bool = False
    name: ClassVar[str] = "clip_percentiles"

    def __post_init__(self) -> None:
        super().__post_init__()
        _percentiles(self, self.lower, self.upper)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        low, high = numeric.quantiles(row, (self.lower / 100.0, self.upper / 100.0))
        np.copyto(out, row)
        np.clip(out, low, high, out=out)

    def ends(self, low: Wide, high: Wide) -> tuple[Wide, Wide]:
        return low, high


@dataclass(frozen=True)
class ScaleRange(Step):
    """The intensities `a_min` and `a_max` become `b_min` and `b_max`, linearly; with `clip` nothing lies beyond."""

    a_min: float
    a_max: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = False
    name: ClassVar[str] = "scale_range"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ordered(self, self.a_min, self.a_max)
        _check_target(self)

    @property
    def made_for(self) -> Ends:  # type: ignore[override]
        return float(self.a_min), float(self.a_max)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        np.subtract(row, self.a_min, out=out, dtype=np.float64)
        out /= self.a_max - self.a_min
        _to_target(self, out)


@dataclass(frozen=True)
class ScalePercentiles(Step):
    """The percentiles `lower` and `upper` (0 to 100) of the image become `b_min` and `b_max`, as for `ScaleRange`.

    Where both are one intensity there is no scale: the image becomes `b_min`, and with `clip` what lies above that
    intensity becomes `b_max`. MONAI hands the intensities on unscaled then, and clips them.
    """

    lower: float
    upper: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = False
    together: bool = False
    name: ClassVar[str] = "scale_percentiles"

    def __post_init__(self) -> None:
        super().__post_init__()
        _percentiles(self, self.lower, self.upper)
        _check_target(self)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        low, high = numeric.quantiles(row, (self.lower / 100.0, self.upper / 100.0))
        flat = _flat(row, high - low)
        np.subtract(row, low, out=out, dtype=np.float64)
        if not flat:
            out /= high - low
            _to_target(self, out)
        elif self.clip:
            out += self.b_min
            np.clip(out, self.b_min, self.b_max, out=out)
        else:
            out[...] = self.b_min

    def ends(self, low: Wide, high: Wide) -> tuple[Wide, Wide]:
        return np.full_like(low, self.b_min), np.full_like(high, self.b_max)


@dataclass(frozen=True)
class ZScore(Step):
    """Minus the mean, over the standard deviation; with `nonzero` both are those of voxels other than 0, which alone
    change. A constant channel becomes 0."""

    nonzero: bool = False
    together: bool = False
    name: ClassVar[str] = "zscore"

    def _row(self, number: int, row: Array, out: Wide) -> None:
        np.copyto(out, row)
        if not self.nonzero:
            self._standardise(out)
        elif (chosen := out != 0).any():
            values = out[chosen]
            self._standardise(values)
            out[chosen] = values

    @staticmethod
    def _standardise(values: Wide) -> None:
        largest = max(-float(values.min()), float(values.max()), 1e-30)
        values -= numeric.mean(values)
        deviation = math.sqrt(numeric.dot(values, values) / values.size)
        if deviation <= _NOISE * largest:
            values[...] = 0.0
        else:
            values /= deviation

    def ends(self, low: Wide, high: Wide) -> tuple[Wide, Wide]:
        return np.full_like(low, -2.0), np.full_like(high, 2.0)


@dataclass(frozen=True)
class MeanStd(Step):
    """Minus `mean`, over `std`: one number for all channels, or one for each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: ClassVar[str] = "mean_std"
    _between: ClassVar[str] = "/"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"mean_std takes as many means as standard deviations, which are above 0; got {list(self.mean)} and "
                f"{list(self.std)}"
            )

    @property
    def made_for(self) -> Ends:  # type: ignore[override]
        pairs = list(zip(self.mean, self.std, strict=True))
        return min(m - 2.0 * s for m, s in pairs), max(m + 2.0 * s for m, s in pairs)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        of = number if len(self.mean) > 1 else 0
        np.subtract(row, self.mean[of], out=out, dtype=np.float64)
        out /= self.std[of]

    def check(self, channels: int) -> int:
        if len(self.mean) not in (1, channels):
            raise ValueError(f"{self} has numbers for {len(self.mean)} channels; the image has {channels} there")
        return channels


@dataclass(frozen=True)
class Divide(Step):
    """Over a number above 0."""

    by: float
    name: ClassVar[str] = "divide"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by <= 0:
            raise ValueError(f"divide takes a number above 0; got {self.by}")

    @property
    def made_for(self) -> Ends:  # type: ignore[override]
        return 0.0, float(self.by)

    def _row(self, number: int, row: Array, out: Wide) -> None:
        np.divide(row, self.by, out=out, dtype=np.float64)


@dataclass(frozen=True)
class Rgb(Step):
    """A grey image three times, as red, green and blue."""

    name: ClassVar[str] = "rgb"
    made_for: ClassVar[Ends | None] = None

    def apply(self, image: Array) -> Array:
        return np.repeat(image, 3, axis=0)

    def check(self, channels: int) -> int:
        if channels != 1:
            raise ValueError(f"rgb takes an image of one channel; it has {channels} there")
        return 3


_NOISE = 1e-7
"""A spread below this share of the intensities' own size is rounding noise on a constant image."""


def _flat(row: Array, span: float) -> bool:
    return span <= _NOISE * max(-float(row.min()), float(row.max()), 1e-30)


def _check_target(step: ScaleRange | ScalePercentiles) -> None:
    if step.b_min == step.b_max or (step.clip and step.b_min > step.b_max):
        raise ValueError(f"{step.name}: b_min and b_max differ, with clip in order; got {step.b_min} and {step.b_max}")


def _to_target(step: ScaleRange | ScalePercentiles, out: Wide) -> None:
    """0…1 → `b_min`…`b_max`."""
    if (step.b_min, step.b_max) != (0.0, 1.0):
        out *= step.b_max - step.b_min
        out += step.b_min
    if step.clip:
        np.clip(out, step.b_min, step.b_max, out=out)


STEPS: Mapping[str, type[Step]] = {
    kind.name: kind for kind in (Clip, ClipPercentiles, ScaleRange, ScalePercentiles, ZScore, MeanStd, Divide, Rgb)
}

IMAGENET = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of intensities in 0…1, as torchvision's and most of timm's networks were trained."""

_SHORT: Mapping[str, tuple[str, Callable[[str], tuple[Step, ...]]]] = {
    "window": ("window:A_MIN,A_MAX", lambda given: (_step("scale_range", given),)),
    "percentile": ("percentile:LOWER,UPPER", lambda given: (_step("scale_percentiles", given),)),
    "min_max": (
        "min_max[:B_MIN,B_MAX][,clip][,together]",
        lambda given: (_step("scale_percentiles", f"0,100,{given}".rstrip(",")),),
    ),
    "imagenet": ("imagenet", lambda given: (_step("mean_std", given) if given else IMAGENET,)),
    "identity": ("identity", lambda given: ()),
}


def parse_steps(text: str) -> tuple[Step, ...]:
    """`clip:-57,164 scale_range:-57,164` → steps. Raises ValueError that lists what there is."""
    found: list[Step] = []
    for word in text.split():
        name, _, given = word.partition(":")
        if name in _SHORT:
            found += _SHORT[name][1](given)
        elif name in STEPS:
            found.append(_step(name, given))
        else:
            raise ValueError(f"preprocessing {word!r}: there is no step {name!r}; there are {', '.join(spellings())}")
        if found and found[-1] == ScaleRange(0.0, 1.0):
            raise ValueError(
                f"preprocessing {word!r} changes nothing: A_MIN and A_MAX are the intensities that become 0 and 1, "
                "such as scale_range:-57,164"
            )
    return tuple(found)


def spellings() -> list[str]:
    """All that a word may be: the steps, and shorter ways to say some of them."""
    return [*map(_usage, STEPS.values()), *(spelling for spelling, _ in _SHORT.values())]


def spelled(steps: Iterable[Step]) -> str:
    """What `parse_steps` reads."""
    return " ".join(map(str, steps)) or "identity"


def read_step(document: Mapping[str, Any]) -> Step:
    """A step from its JSON object. Raises ValueError, KeyError or TypeError where it is none."""
    given = dict(document)
    name = given.pop("step")
    if name not in STEPS:
        raise ValueError(f"this version knows no preprocessing step {name!r}; it knows {', '.join(STEPS)}")
    return STEPS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def step_document(step: Step) -> dict[str, Any]:
    """The JSON object of a step: its name and its fields."""
    values = {each.name: getattr(step, each.name) for each in fields(step)}
    return {"step": step.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}


def _step(name: str, given: str) -> Step:
    kind = STEPS[name]
    numbers = [each for each in fields(kind) if each.type != "bool"]
    needed = [each for each in numbers if each.default is MISSING]
    words = [word.strip() for word in given.split(",") if word.strip()]
    flags = [word for word in words if word in {each.name for each in fields(kind) if each.type == "bool"}]
    try:
        if kind is MeanStd:
            mean, std = (tuple(float(word) for word in part.split(",")) for part in given.split("/"))
            values: list[Any] = [mean, std]
        else:
            values = [float(word) for word in words if word not in flags]
            if len(values) not in (len(needed), len(numbers)):
                raise ValueError
    except ValueError:
        raise ValueError(f"preprocessing {name}:{given}: expected {_usage(kind)}") from None
    return kind(**dict(zip([each.name for each in numbers], values, strict=False)), **dict.fromkeys(flags, True))


def _usage(kind: type[Step]) -> str:
    return kind.name + "".join(_parts(kind))


def _parts(kind: type[Step]) -> Iterator[str]:
    if kind is MeanStd:
        yield ":MEAN[,…]/STD[,…]"
        return
    numbers = [each for each in fields(kind) if each.type != "bool"]
    needed = ",".join(each.name.upper() for each in numbers if each.default is MISSING)
    more = ",".join(each.name.upper() for each in numbers if each.default is not MISSING)
    yield f":{needed}" if needed else ""
    yield f"[,{more}]" if more else ""
    flags = [each.name for each in fields(kind) if each.type == "bool"]
    for number, flag in enumerate(flags):
        yield f"[{',' if needed or number else ':'}{flag}]"


def _spelled(value: Any) -> str:
    numbers = value if isinstance(value, tuple) else (value,)
    return ",".join(repr(float(n)).removesuffix(".0") for n in numbers)
