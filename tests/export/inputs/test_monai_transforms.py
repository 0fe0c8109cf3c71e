"""MONAI's own transforms and the steps they become give the same on raw images, or the transform is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from equipoise_core.contract import Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import spelled
from equipoise_export.inputs.monai_transforms import Unmapped, read_transforms

pytestmark = pytest.mark.torch

transforms = pytest.importorskip("monai.transforms")


def raw_images(channels: int) -> list[np.ndarray]:
    """CT, MR with a background of zeros, 8-bit grey levels, and one voxel far off; the second channel is another."""
    random, shape = np.random.default_rng(7), (channels, 33, 40)
    ct = random.normal(40.0, 300.0, shape)
    mr = np.where(random.random(shape) < 0.5, 0.0, random.gamma(2.0, 150.0, shape))
    grey = random.integers(0, 256, shape).astype(float)
    far = random.normal(100.0, 10.0, shape)
    far[:, 0, 0] = 4095.0
    images = [ct, mr, grey, far]
    for image in images:
        image[1:] *= 0.25
    return [image.astype(np.float32) for image in images]


TABLE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "scale_range:-57,164": [("ScaleIntensityRange", {"a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1})],
    "scale_range:-57,164,clip": [
        ("ScaleIntensityRange", {"a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True})
    ],
    "scale_range:-175,250,-1,1,clip": [
        ("ScaleIntensityRange", {"a_min": -175, "a_max": 250, "b_min": -1.0, "b_max": 1.0, "clip": True})
    ],
    "scale_range:0,255": [("ScaleIntensityRange", {"a_min": 0, "a_max": 255})],
    "scale_percentiles:1,99,clip,together": [
        ("ScaleIntensityRangePercentiles", {"lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "clip": True})
    ],
    "scale_percentiles:5,95,-1,1": [
        (
            "ScaleIntensityRangePercentiles",
            {"lower": 5, "upper": 95, "b_min": -1, "b_max": 1, "channel_wise": True},
        )
    ],
    "scale_percentiles:5,95,0.1,1.9,clip,together": [
        (
            "ScaleIntensityRangePercentiles",
            {"lower": 5, "upper": 95, "b_min": 0.0, "b_max": 2.0, "clip": True, "relative": True},
        )
    ],
    "scale_percentiles:0,100,together": [("ScaleIntensity", {})],
    "scale_percentiles:0,100,-1,1": [("ScaleIntensity", {"minv": -1.0, "maxv": 1.0, "channel_wise": True})],
    "divide:0.5": [("ScaleIntensity", {"minv": None, "maxv": None, "factor": 1.0})],
    "clip_percentiles:0.5,99.5,together": [("ClipIntensityPercentiles", {"lower": 0.5, "upper": 99.5})],
    "clip_percentiles:0,95": [("ClipIntensityPercentiles", {"lower": None, "upper": 95, "channel_wise": True})],
    "zscore": [("NormalizeIntensity", {"channel_wise": True})],
    "zscore:together": [("NormalizeIntensity", {})],
    "zscore:nonzero": [("NormalizeIntensity", {"nonzero": True, "channel_wise": True})],
    "zscore:nonzero,together": [("NormalizeIntensity", {"nonzero": True})],
    "mean_std:100/50": [("NormalizeIntensity", {"subtrahend": 100, "divisor": 50})],
    "mean_std:100,20/50,8": [
        ("NormalizeIntensity", {"subtrahend": [100, 20], "divisor": [50, 8], "channel_wise": True})
    ],
    "mean_std:-1024/1": [("ShiftIntensity", {"offset": 1024, "safe": False})],
    "clip_percentiles:1,99 scale_percentiles:0,100,-1,1 zscore": [
        ("ClipIntensityPercentiles", {"lower": 1, "upper": 99, "channel_wise": True}),
        ("ScaleIntensity", {"minv": -1.0, "maxv": 1.0, "channel_wise": True}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
    "scale_range:-1000,1000,clip zscore:nonzero": [
        ("ScaleIntensityRange", {"a_min": -1000, "a_max": 1000, "b_min": 0, "b_max": 1, "clip": True}),
        ("NormalizeIntensity", {"nonzero": True, "channel_wise": True}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("spelling", TABLE)
@pytest.mark.parametrize("dictionary", [False, True])
def test_steps_give_what_monai_gives(spelling: str, dictionary: bool) -> None:
    """Up to single precision, on raw images of two channels that differ."""
    listed = TABLE[spelling]
    keys = {"keys": "image"} if dictionary else {}
    configured = [{"_target_": f"{name}{'d' * dictionary}", **keys, **arguments} for name, arguments in listed]
    steps = read_transforms(configured, 2, (33, 40), Task.SEGMENTATION).steps
    assert spelled(steps) == spelling
    preprocessing = Preprocessing(tuple(steps))
    for image in raw_images(2):
        theirs: Any = torch.from_numpy(image.copy())
        for name, arguments in listed:
            theirs = getattr(transforms, name)(**arguments)(theirs)
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(preprocessing.normalise(image), theirs, atol=1e-5 * max(1.0, np.abs(theirs).max()))


def test_grey_is_repeated_as_monai_repeats_it() -> None:
    """And one channel alone or together is one thing, said in the shorter way."""
    configured = [{"_target_": "RepeatChannel", "repeats": 3}, {"_target_": "NormalizeIntensity"}]
    steps = tuple(read_transforms(configured, 3, (33, 40), Task.CLASSIFICATION).steps)
    (image,) = raw_images(1)[:1]
    theirs = transforms.NormalizeIntensity()(transforms.RepeatChannel(3)(torch.from_numpy(image)))
    np.testing.assert_allclose(Preprocessing(steps).normalise(image), np.asarray(theirs), atol=2e-6)
    assert spelled(read_transforms(configured[1:], 1, (33, 40), None).steps) == "zscore"


LOAD = {"_target_": "LoadImaged", "keys": ["image", "label"]}
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 2.0], "mode": "bilinear"}
RANGE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 9, "b_min": 0, "b_max": 1}

PERCENTILES = {
    "_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99, "b_min": 0, "b_max": 1,
}  # fmt: skip


def test_what_changes_no_intensity_is_the_clients_or_nothing() -> None:
    """Labels are passed by; an affine step may come before the client's resampling, which is linear too."""
    reading = read_transforms(
        [
            LOAD,
            {"_target_": "monai.transforms.EnsureChannelFirstD", "keys": ["image", "label"]},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            RANGE,
            {**SPACING, "keys": ["image", "label"], "mode": ["bilinear", "nearest"]},
            {"_target_": "AsDiscreted", "keys": "label", "threshold": 0.5},
            {"_target_": "EnsureTyped", "keys": "image", "dtype": "torch.float32"},
        ],
        1, (16, 24), Task.SEGMENTATION,
    )  # fmt: skip
    assert (spelled(reading.steps), reading.of) == ("scale_range:0,9", [3])
    assert reading.stated == {"orientation": "RA", "spacing": ((1.485, 1.515), (1.98, 2.02))}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"_target_": "GaussianSmoothd", "keys": "image"}], "GaussianSmooth (transform 2) is no step of a contract"),
        ([{"_target_": "RandScaleIntensityd", "keys": "image", "factors": 0.1}], "RandScaleIntensity (transform 2) is"),
        ([{"_target_": "CropForegroundd", "keys": "image"}], "CropForeground (transform 2) is no step"),
        ([{"_target_": "Lambdad", "keys": "image", "func": "x"}], "it can say ScaleIntensityRange, "),
        ([{"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 3}], "subtrahend and divisor are said to"),
        ([{"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 1, "upper": 9, "sharpness_factor": 2}],
         "sharpness_factor clips softly"),
        ([{"_target_": "ScaleIntensityd", "keys": "image", "dtype": "np.uint8"}], "makes the image np.uint8"),
        ([{"_target_": "CastToTyped", "keys": "image", "dtype": "np.uint8"}], "makes the image np.uint8"),
        ([{"_target_": "ScaleIntensityd", "keys": "image", "gamma": 2}], "has the argument gamma"),
        ([{"_target_": "RepeatChanneld", "keys": "image", "repeats": 2}], "repeats is 2"),
        ([{**RANGE, "b_max": None}], "b_min and b_max are both needed"),
        ([{**RANGE, "clip": True}, SPACING], "Spacing (transform 3) comes after scale_range:0,9,clip"),
        ([PERCENTILES, SPACING], "comes after scale_percentiles:1,99, and the client resamples before"),
        ([{"_target_": "ScaleIntensityd", "keys": "image"}, SPACING],
         "comes after scale_percentiles:0,100, and the client resamples before the aggregator takes any step: train "
         "with the transforms of intensities after Spacing"),
        ([{"_target_": "NormalizeIntensityd", "keys": "image"}, SPACING], "Spacing (transform 3) comes after zscore"),
        ([{**SPACING, "max_pixdim": 3.0}], "Spacing (transform 2) has the argument max_pixdim=3.0"),
        ([{**SPACING, "min_pixdim": np.ones(2)}], "has the argument min_pixdim=[1. 1.]"),
        ([{**SPACING, "pixdim": np.zeros(2)}], "has the pixdim [0. 0.]"),
        ([{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": [["L", "R"]]}],
         "Orientation (transform 2) has the argument labels="),
        ([{"_target_": "torchvision.transforms.ToTensor"}], "torchvision.transforms.ToTensor (transform 2) is no step"),
        ([RANGE, {**PERCENTILES, "keys": "other"}],
         "ScaleIntensityRangePercentiles (transform 3) is of other; the network's image is image"),
        ([{**SPACING, "mode": "nearest"}], "has the mode nearest"),
        ([{**SPACING, "pixdim": [1.5, -1.0]}], "has the pixdim [1.5, -1.0]"),
        ([{"_target_": "Resized", "keys": "image", "spatial_size": [16, 24], "mode": "bilinear"}], "only for a class"),
    ],
)  # fmt: skip
def test_what_has_no_step_is_refused_by_name(given: list[dict[str, Any]], said: str) -> None:
    """Which transform, why, and what there is."""
    with pytest.raises(Unmapped) as refused:
        read_transforms([LOAD, *given], 1, (16, 24), Task.SEGMENTATION, "image")
    assert said in str(refused.value)


@pytest.mark.parametrize("named", ["image", "input", None])
@pytest.mark.parametrize("key", ["image", "scan"])
def test_the_image_is_found_whatever_key_is_listed_first(named: str | None, key: str) -> None:
    """As the metadata name it, else the one key that transforms of intensities share, not the first one."""
    keys = ["label", key]
    configured = [{**LOAD, "keys": keys}, {**SPACING, "keys": keys, "mode": ["nearest", "bilinear"]}]
    assert read_transforms(configured, 1, (16, 24), Task.SEGMENTATION, named).stated["spacing"]
    configured += [{**RANGE, "keys": key}, {"_target_": "AsDiscreted", "keys": "label", "threshold": 0.5}]
    reading = read_transforms(configured, 1, (16, 24), Task.SEGMENTATION, named)
    assert (spelled(reading.steps), reading.of) == ("scale_range:0,9", [2])


def test_an_image_of_no_clear_key_is_refused() -> None:
    """Two images, and the metadata name neither."""
    configured = [{**LOAD, "keys": ["t1", "t2"]}, {**RANGE, "keys": ["t1", "t2"]}]
    with pytest.raises(Unmapped, match=r"which of the keys t1, t2 .* network_data_format\.inputs"):
        read_transforms(configured, 1, (16, 24), Task.SEGMENTATION)


def test_a_classifiers_images_are_resized_by_the_client() -> None:
    """To the size that the metadata state, linearly; MONAI's default, area, is another function."""
    resize = {"_target_": "Resized", "keys": "image", "spatial_size": [16, 24], "mode": "bilinear"}
    assert not read_transforms([LOAD, resize], 1, (16, 24), Task.CLASSIFICATION).steps
    square = {**resize, "spatial_size": 16, "anti_aliasing": False}
    assert not read_transforms([LOAD, square], 1, (16, 16), Task.CLASSIFICATION).steps
    for other in ({"spatial_size": [8, 8]}, {"spatial_size": 16}, {"mode": "area"}, {"anti_aliasing": True}):
        with pytest.raises(Unmapped, match="Resize"):
            read_transforms([LOAD, {**resize, **other}], 1, (16, 24), Task.CLASSIFICATION)
    del resize["mode"]
    with pytest.raises(Unmapped, match="mode bilinear"):
        read_transforms([LOAD, resize], 1, (16, 24), Task.CLASSIFICATION)
