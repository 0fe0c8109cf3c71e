"""MONAI's preprocessing transforms → what a contract says of images. Nothing is guessed: what has no step is refused.

ScaleIntensityRange, ScaleIntensityRangePercentiles, ScaleIntensity, ClipIntensityPercentiles,
NormalizeIntensity, ShiftIntensity, RepeatChannel      steps
Orientation, Spacing, Resize of a classifier's image   what the client does, before all steps
LoadImage, EnsureChannelFirst, EnsureType, …           change no intensity
"""

from __future__ import annotations

import inspect
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
_OF_EACH_KEY = ("mode", "padding_mode", "align_corners", "anti_aliasing", "anti_aliasing_sigma", "dtype")
_LABELS = ("label", "mask", "seg", "target", "truth")
"""In a key: it is no image of the network's."""


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
    transforms: Sequence[Mapping[str, Any]],
    channels: int | None,
    size: Sequence[Any],
    task: Task | None,
    image: str | None = None,
) -> Reading:
    """The steps of a list of transforms, as configurations whose references are resolved.

    Args:
        channels: of the network's input, where it is known.
        size: spatial sizes as the bundle's metadata state them.
        image: the input's name there.

    Raises:
        Unmapped: naming the transform.
    """
    found = Reading()
    key = _image_key(transforms, image)
    for number, given in enumerate(map(_with_keys, transforms)):
        kind = transform_name(given)
        try:
            if given["keys"] and key not in given["keys"]:
                if _of_intensities(given):
                    raise Unmapped(f"is of {', '.join(given['keys'])}; the network's image is {key}")
                continue
            given = _of_one_key(given, key)
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
    """`ScaleIntensityRange` of MONAI's array and dictionary transform; another package's whole name."""
    import monai.transforms

    module, _, name = str(given.get("_target_", "")).rpartition(".")
    if module and module.split(".")[0] != "monai":
        return f"{module}.{name}"
    for ending in ("Dict", "d", "D"):
        if name.endswith(ending) and hasattr(monai.transforms, name.removesuffix(ending)):
            return name.removesuffix(ending)
    return name


def _image_key(transforms: Sequence[Mapping[str, Any]], named: str | None) -> str | None:
    """The key of the network's image: as the metadata name it, else the only one that what is done to images shares."""
    keyed = [given for given in map(_with_keys, transforms) if given["keys"]]
    if not keyed or any(named in given["keys"] for given in keyed):
        return named
    keys = [set(filter(_no_label, given["keys"])) for given in keyed if _of_intensities(given)]
    keys = keys or [found for given in keyed if (found := set(filter(_no_label, given["keys"])))]
    shared = set.intersection(*keys) if keys else set()
    if len(shared) != 1:
        every = sorted({key for given in keyed for key in given["keys"]})
        raise Unmapped(
            f"it cannot be told which of the keys {', '.join(every)} is the network's image: name it in the metadata, "
            "under network_data_format.inputs"
        )
    return str(shared.pop())


def _of_intensities(given: Arguments) -> bool:
    """Whether it may change the intensities of what is no label."""
    return transform_name(given) not in (*_GEOMETRY, *_CHANGE_NOTHING) and any(map(_no_label, given["keys"]))


def _no_label(key: str) -> bool:
    return not any(word in key.lower() for word in _LABELS)


def _with_keys(given: Mapping[str, Any]) -> Arguments:
    keys = given.get("keys")
    return {**given, "keys": [keys] if isinstance(keys, str) else list(keys or [])}


def _of_one_key(given: Arguments, key: str | None) -> Arguments:
    """With the values that are listed for each key as they are for this one."""
    keys = given["keys"]
    listed = {
        name: given[name]
        for name in _OF_EACH_KEY
        if keys and isinstance(given.get(name), (list, tuple)) and len(given[name]) == len(keys)
    }
    return {**given, **{name: values[keys.index(key)] for name, values in listed.items()}}


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
    _check_geometry(kind, given)
    if kind == "Orientation":
        if not isinstance(given.get("axcodes"), str):
            raise Unmapped("states no axcodes such as RAS")
        return {"orientation": given["axcodes"][: len(size) or None]}
    bent = [step for step in steps if not _is_affine(step)]
    if bent:
        raise Unmapped(
            f"comes after {bent[0]}, and the client resamples before the aggregator takes any step: train with the "
            f"transforms of intensities after {kind}"
        )
    if given.get("mode") not in _LINEAR:
        raise Unmapped(f"has the mode {given['mode']}; the client interpolates linearly")
    if kind == "Spacing":
        wanted = _for_each_axis(given.get("pixdim"), size)[: len(size) or None]
        if not wanted or any(not isinstance(mm, (int, float)) or mm <= 0 for mm in wanted):
            raise Unmapped(f"has the pixdim {given.get('pixdim')}; expected mm above 0 for each axis")
        ranges = ((mm * (1 - _ROUNDING), mm * (1 + _ROUNDING)) for mm in wanted)
        return {"spacing": tuple((float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in ranges)}
    if (
        task is not Task.CLASSIFICATION
        or given.get("mode") is None
        or _for_each_axis(given.get("spatial_size"), size) != list(size)
    ):
        raise Unmapped(
            "is done by the client only for a classifier, linearly (mode bilinear), and to the size in the metadata: "
            "resize the images before they are sent"
        )
    return {}


_LINEAR = (None, "bilinear", "trilinear", "linear", 1)
_SAID: Mapping[str, Sequence[str]] = {
    "Orientation": ("axcodes",),
    "Spacing": ("pixdim", "mode", "recompute_affine", "ensure_same_shape"),
    "Resize": ("spatial_size", "mode"),
}


def _check_geometry(kind: str, given: Arguments) -> None:
    """Raises Unmapped for an argument that would make the client's image another one than in training."""
    import monai.transforms

    known = inspect.signature(getattr(monai.transforms, f"{kind}d")).parameters
    for name, value in given.items():
        if name in (*_EVERYWHERE, *_SAID[kind], "lazy") or (name in known and str(value) == str(known[name].default)):
            continue
        raise Unmapped(
            f"has the argument {name}={value}, which the client does not know: leave it out, in training too"
        )


def _is_affine(step: Step) -> bool:
    """Whether it is affine with numbers that do not depend on the image: resampling before or after it is the same."""
    return isinstance(step, (MeanStd, Divide, Rgb)) or (isinstance(step, ScaleRange) and not step.clip)


def _for_each_axis(value: Any, size: Sequence[Any]) -> list[Any]:
    return [value] * len(size) if isinstance(value, (int, float)) else list(() if value is None else value)
