"""MONAI's preprocessing transforms → what a contract says of images. Nothing is guessed: what has no step is refused.

ScaleIntensityRange, ScaleIntensityRangePercentiles, ScaleIntensity, ClipIntensityPercentiles,
NormalizeIntensity, ShiftIntensity, RepeatChannel      steps
Orientation, Spacing, Resize of a classifier's image   what the client does, before all steps
LoadImage, EnsureChannelFirst, EnsureType, …           change no intensity
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise_core.contract import Task
from equipoise_core.steps import ClipPercentiles, Divide, MeanStd, Rgb, ScalePercentiles, ScaleRange, Step, ZScore

Arguments = dict[str, Any]
_ROUNDING = 0.01
"""A spacing is stated as one number; images resampled to it may be off by this share."""

_CHANGE_NOTHING = (
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "ToNumpy", "ToDevice",
    "CastToType", "Identity", "SelectItems", "DeleteItems", "FlattenSubKeys", "DataStats", "SimulateDelay",
)  # fmt: skip
_GEOMETRY = ("Orientation", "Spacing", "Resize")
_EVERYWHERE = {"_target_", "_desc_", "_disabled_", "_requires_", "_mode_", "keys", "allow_missing_keys", "dtype"}
_OF_TRANSFORM = {"keys", "allow_missing_keys"}


class Unmapped(ValueError):
    """A transform that a contract cannot say; the message says why."""


@dataclass
class Reading:
    """What transforms say.

    Attributes:
        steps: what happens to intensities.
        of: the transforms that they stand for, by position.
        stated: `spacing` and `orientation` by name.
    """

    steps: list[Step] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    stated: dict[str, Any] = field(default_factory=dict)


def read_transforms(
    transforms: Sequence[Mapping[str, Any]], channels: int | None, size: Sequence[Any], task: Task | None
) -> Reading:
    """The steps of a list of transforms, as configurations whose references are resolved.

    Args:
        channels: of the network's input, where it is known.
        size: spatial sizes as the bundle's metadata state them.

    Raises:
        Unmapped: naming the transform.
    """
    found = Reading()
    image_key = next((each["keys"] for each in map(_with_keys, transforms) if each["keys"]), [None])[0]
    for number, given in enumerate(map(_with_keys, transforms)):
        kind = transform_name(given)
        if given["keys"] and image_key not in given["keys"]:
            continue  # of labels, or of a copy
        try:
            if kind in _GEOMETRY:
                found.stated |= _geometry(kind, given, found.steps, size, task)
            elif kind in _CHANGE_NOTHING:
                _check_type(given)
            else:
                found.steps += _steps(kind, given, channels)
                found.of.append(number)
        except Unmapped as error:
            raise Unmapped(f"{kind} (transform {number + 1}) {error}") from error
    return found


def transform_name(given: Mapping[str, Any]) -> str:
    """`ScaleIntensityRange` of the array's and the dictionary's transform."""
    import monai.transforms

    name = str(given.get("_target_", "")).rsplit(".", 1)[-1]
    for ending in ("Dict", "d", "D"):
        if name.endswith(ending) and hasattr(monai.transforms, name.removesuffix(ending)):
            return name.removesuffix(ending)
    return name


def _with_keys(given: Mapping[str, Any]) -> Arguments:
    keys = given.get("keys")
    return {**given, "keys": [keys] if isinstance(keys, str) else list(keys or [])}


def _steps(kind: str, given: Arguments, channels: int | None) -> Iterable[Step]:
    if kind not in _MAPPED:
        raise Unmapped(f"is no step of a contract; of intensities it can say {', '.join(_MAPPED)}")
    takes, make = _MAPPED[kind]
    _check_type(given)
    arguments = {name: value for name, value in given.items() if name not in _EVERYWHERE}
    if odd := sorted(set(arguments) - set(takes)):
        raise Unmapped(f"has the argument {odd[0]}, which a contract cannot say")
    try:
        return make(arguments, channels)
    except (ValueError, TypeError, KeyError) as error:
        raise Unmapped(f"cannot be said: {error}") from error


def _check_type(given: Arguments) -> None:
    dtype = given.get("dtype")
    if dtype is not None and "float" not in str(dtype):
        raise Unmapped(f"makes the image {dtype}; the aggregator computes in floating point")


def _range(given: Arguments, channels: int | None) -> list[Step]:
    return [ScaleRange(given["a_min"], given["a_max"], *_target(given), clip=bool(given.get("clip")))]


def _range_percentiles(given: Arguments, channels: int | None) -> list[Step]:
    lower, upper, (b_min, b_max) = given["lower"], given["upper"], _target(given)
    if given.get("relative"):
        b_min, b_max = (b_min + (b_max - b_min) * share / 100.0 for share in (lower, upper))
    return [ScalePercentiles(lower, upper, b_min, b_max, bool(given.get("clip")), _together(given, channels))]


def _scale(given: Arguments, channels: int | None) -> list[Step]:
    low, high = given.get("minv", 0.0), given.get("maxv", 1.0)
    if low is None and high is None:
        return [Divide(1.0 / (1.0 + (given.get("factor") or 0.0)))]
    if low is None or high is None:
        raise ValueError("minv and maxv are both needed")
    return [ScalePercentiles(0.0, 100.0, low, high, together=_together(given, channels))]


def _clip_percentiles(given: Arguments, channels: int | None) -> list[Step]:
    if given.get("sharpness_factor") is not None:
        raise ValueError("sharpness_factor clips softly")
    lower, upper = (
        usual if given.get(end) is None else given[end] for end, usual in (("lower", 0.0), ("upper", 100.0))
    )
    return [ClipPercentiles(lower, upper, _together(given, channels))]


def _normalise(given: Arguments, channels: int | None) -> list[Step]:
    mean, std, nonzero = given.get("subtrahend"), given.get("divisor"), bool(given.get("nonzero"))
    if mean is None and std is None:
        return [ZScore(nonzero, _together(given, channels))]
    if mean is None or std is None or nonzero:
        raise ValueError("subtrahend and divisor are said together, for all voxels (nonzero false)")
    if isinstance(mean, (list, tuple)) and not given.get("channel_wise"):
        raise ValueError("subtrahend and divisor of each channel need channel_wise true")
    return [MeanStd(_numbers(mean), _numbers(std))]


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _shift(given: Arguments, channels: int | None) -> list[Step]:
    return [MeanStd((-float(given["offset"]),), (1.0,))]


def _repeat(given: Arguments, channels: int | None) -> list[Step]:
    if given["repeats"] != 3:
        raise ValueError(f"repeats is {given['repeats']}; a contract makes three channels of one")
    return [Rgb()]


def _target(given: Arguments) -> tuple[float, float]:
    ends = given.get("b_min"), given.get("b_max")
    if ends == (None, None) and not given.get("clip"):
        return 0.0, 1.0
    if None in ends:
        raise ValueError("b_min and b_max are both needed, or neither and no clip")
    return ends  # type: ignore[return-value]


def _together(given: Arguments, channels: int | None) -> bool:
    """Of one channel it is the same, said in the shorter way."""
    return not given.get("channel_wise") and channels != 1


_ENDS = ("a_min", "a_max", "b_min", "b_max", "clip")
_MAPPED: Mapping[str, tuple[Sequence[str], Callable[[Arguments, int | None], list[Step]]]] = {
    "ScaleIntensityRange": (_ENDS, _range),
    "ScaleIntensityRangePercentiles": (
        ("lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise"),
        _range_percentiles,
    ),
    "ScaleIntensity": (("minv", "maxv", "factor", "channel_wise"), _scale),
    "ClipIntensityPercentiles": (("lower", "upper", "sharpness_factor", "channel_wise"), _clip_percentiles),
    "NormalizeIntensity": (("subtrahend", "divisor", "nonzero", "channel_wise"), _normalise),
    "ShiftIntensity": (("offset", "safe"), _shift),
    "RepeatChannel": (("repeats",), _repeat),
}


def _geometry(
    kind: str, given: Arguments, steps: Sequence[Step], size: Sequence[Any], task: Task | None
) -> dict[str, Any]:
    if kind == "Orientation":
        if not isinstance(given.get("axcodes"), str):
            raise Unmapped("states no axcodes such as RAS")
        return {"orientation": given["axcodes"][: len(size) or None]}
    bent = [step for step in steps if not isinstance(step, (MeanStd, Divide, Rgb)) and getattr(step, "clip", True)]
    if bent:
        raise Unmapped(f"comes after {bent[0]}; the client resamples before the aggregator takes any step")
    if given.get("mode") not in (None, "bilinear", "trilinear", "linear") and _first(given["mode"]) not in _LINEAR:
        raise Unmapped(f"has the mode {_first(given['mode'])}; the client interpolates linearly")
    if kind == "Spacing":
        pixdim = given.get("pixdim")
        wanted = [pixdim] * len(size) if isinstance(pixdim, (int, float)) else list(pixdim or ())
        wanted = wanted[: len(size) or None]
        if not wanted or any(not isinstance(mm, (int, float)) or mm <= 0 for mm in wanted):
            raise Unmapped(f"has the pixdim {pixdim}; expected mm above 0 for each axis")
        ranges = ((mm * (1 - _ROUNDING), mm * (1 + _ROUNDING)) for mm in wanted)
        return {"spacing": tuple((float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in ranges)}
    if (
        task is not Task.CLASSIFICATION
        or given.get("mode") is None
        or list(given.get("spatial_size") or ()) != list(size)
    ):
        raise Unmapped(
            "is done by the client only for a classifier, linearly (mode bilinear), and to the size in the metadata: "
            "resize the images before they are sent"
        )
    return {}


_LINEAR = ("bilinear", "trilinear", "linear", 1)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value
