import json
from pathlib import Path

import numpy as np
import pytest
from equipoise_core.contract import ContractError, load_contract, parse_contract
from equipoise_core.preprocessing import NORMALISED_LIMIT, Preprocessing, named
from equipoise_core.steps import STEPS, parse_steps, spelled

KINDS = {"zscore": (0.0, 0.0), "percentile": (1.0, 99.8), "window": (-50.0, 250.0), "identity": (0.0, 0.0)}


def defined(kind: str, channel: np.ndarray) -> np.ndarray:
    """The definition in double precision, in NumPy's own words."""
    wide = channel.astype(np.float64)
    if kind == "zscore":
        return (wide - wide.mean()) / wide.std()
    if kind == "identity":
        return wide
    low, high = KINDS[kind] if kind == "window" else np.percentile(wide, KINDS[kind])
    return (wide - low) / (high - low)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 130, 90), (1, 17, 33, 40)])
def test_channels_come_out_as_defined(kind, shape):
    """Within single precision's rounding, each by itself, whether grey levels are few or many, near 0 or far off."""
    random = np.random.default_rng(0)
    images = (random.normal(100.0, 40.0, shape), random.poisson(2.0, shape), random.gamma(0.5, 1e-3, shape))
    for image in (each.astype(np.float32) for each in images):
        normalised = Preprocessing(named(kind, *KINDS[kind])).normalise(image)
        assert normalised.dtype == np.float32 and normalised.shape == shape
        for channel, result in zip(image, normalised, strict=True):
            np.testing.assert_allclose(result, defined(kind, channel), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_brightness_and_contrast_change_nothing(kind):
    """No parameter depends on the scanner."""
    image = np.random.default_rng(0).gamma(2.0, size=(1, 120, 100)).astype(np.float32)
    preprocessing = Preprocessing(named(kind, *KINDS[kind]))
    expected = preprocessing.normalise(image)
    np.testing.assert_allclose(preprocessing.normalise(image * 8.0 + 64.0), expected, atol=1e-4)


def test_a_constant_channel_becomes_zero_and_the_other_does_not():
    """Rounding noise on a constant is not blown up; a far voxel is clipped; the image itself is left alone."""
    image = np.zeros((2, 40, 40), np.float32)
    image[0] = 1e6
    image[0, 0] += 0.0625
    image[1, 3, 3] = 1e9
    before = image.copy()
    for steps in ("zscore", "percentile:0,99"):
        normalised = Preprocessing(parse_steps(steps)).normalise(image)
        assert not normalised[0].any()
        assert np.abs(normalised).max() <= NORMALISED_LIMIT
    assert (image == before).all()
    assert Preprocessing().normalise(image / 1e4)[1].max() == NORMALISED_LIMIT


RAW = {
    "identity": lambda x: x,
    "clip:-57,164": lambda x: np.clip(x, -57, 164),
    "scale_range:-57,164": lambda x: (x + 57) / 221,
    "scale_range:-57,164,-1,1,clip": lambda x: np.clip((x + 57) / 221 * 2 - 1, -1, 1),
    "window:-57,164 divide:2": lambda x: (x + 57) / 221 / 2,
    "clip:-57,164 scale_range:-57,164": lambda x: (np.clip(x, -57, 164) + 57) / 221,
    "divide:255 mean_std:0.5,0.4/0.25,0.2": lambda x: (x / 255 - [[[0.5]], [[0.4]]]) / [[[0.25]], [[0.2]]],
    "clip_percentiles:5,95,together": lambda x: np.clip(x, *np.percentile(x, [5, 95])),
    "zscore:together": lambda x: (x - x.mean()) / x.std(),
    "zscore:nonzero,together": lambda x: np.where(x == 0, 0, (x - x[x != 0].mean()) / x[x != 0].std()),
    "min_max:-1,1": lambda x: np.stack([(c - c.min()) / (c.max() - c.min()) * 2 - 1 for c in x]),
    "min_max:together": lambda x: (x - x.min()) / (x.max() - x.min()),
}


@pytest.mark.parametrize("spelling", RAW)
def test_steps_are_their_formulas(spelling):
    """One after the other, in double precision; the image itself is left alone."""
    random = np.random.default_rng(1)
    image = (random.normal(60.0, 200.0, (2, 21, 34)) * (random.random((2, 21, 34)) > 0.3)).astype(np.float32)
    before = image.copy()
    found = Preprocessing(parse_steps(spelling)).normalise(image)
    np.testing.assert_allclose(found, RAW[spelling](image.astype(np.float64)), rtol=2e-6, atol=1e-6)
    assert (image == before).all()


def test_grey_becomes_three_channels_that_are_normalised_each_in_its_own_way():
    """As torchvision's ToTensor and Normalize do to a picture that was converted to RGB."""
    preprocessing = Preprocessing(parse_steps("rgb divide:255 imagenet"))
    image = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    found = preprocessing.normalise(image)
    assert found.shape == (3, 16, 16)
    np.testing.assert_allclose(found[1], (image[0] / 255 - 0.456) / 0.224, atol=1e-6)
    assert preprocessing.image_channels(3) == 1


def test_an_image_without_scale_has_no_huge_intensities():
    """Equal percentiles: `b_min`, or with clipping what lies above is `b_max`; nothing but zeros: they stay."""
    image = np.zeros((1, 50, 50), np.float32)
    image[0, 3, 3] = 4000.0
    for spelling, most in (("percentile:1,99", 0.0), ("scale_percentiles:1,99,0,1,clip", 1.0)):
        found = Preprocessing(parse_steps(spelling)).normalise(image)
        assert found.min() == 0.0 and found.max() == most
    assert not Preprocessing(parse_steps("zscore:nonzero")).normalise(np.zeros((1, 4, 4), np.float32)).any()


@pytest.mark.parametrize("name", ["nuclei", "hippocampus", "pneumonia"])
def test_published_contracts_read_and_written_are_the_same_bytes(name):
    """Their digests are what policies and ONNX files are bound to."""
    path = Path(__file__).parents[2] / "model_repository" / name / "1" / "contract.json"
    assert load_contract(path).dumps() == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stated", "steps"),
    [
        ({"normalisation": "window", "low": -57, "high": 164}, "scale_range:-57,164"),
        ({"normalisation": "percentile", "low": 1.0, "high": 99.8}, "scale_percentiles:1,99.8"),
        ({"normalisation": "zscore", "low": -57.0, "high": 164.0}, "zscore"),
        ({"normalisation": "identity", "low": 0.0, "high": 0.0}, "identity"),
    ],
)
def test_earlier_contracts_mean_what_they_meant(stated, steps, tiny_segmentation):
    """Numbers are kept as they were written, those without a meaning too: the digest covers them."""
    document = {**stated, "multiple": 4, "fill": 0.5}
    read = Preprocessing.read(document)
    assert spelled(read.steps) == steps
    assert json.dumps(read.document()) == json.dumps(document)


def test_a_contract_states_any_steps(tiny_segmentation):
    """They survive the way through JSON; a name that says the same is written instead."""
    contract = tiny_segmentation.contract.document()
    steps = [{"step": "clip", "low": -57.0, "high": 164.0}, {"step": "zscore", "nonzero": True, "together": False}]
    contract["preprocessing"] = {"steps": steps, "multiple": 4, "fill": 0.0, "intensities": [0.0, 255.0]}
    read = parse_contract(json.loads(json.dumps(contract)))
    assert read.document()["preprocessing"] == contract["preprocessing"]
    for wrong, said in (
        ([{"step": "sharpen"}], "no preprocessing step 'sharpen'; it knows clip"),
        ([{"step": "clip", "low": 2.0, "high": 1.0}], "low < high"),
        ([{"step": "clip", "low": "a", "high": 1.0}], "expected clip:LOW,HIGH"),
        ([{"step": "clip", "low": 1.0}], "malformed"),
        ([{"step": "rgb"}], "does not fit the network"),
        ([{"step": "mean_std", "mean": [1.0] * 3, "std": [1.0] * 3}], "numbers for 3 channels"),
    ):
        contract["preprocessing"] = {"steps": wrong, "multiple": 4, "fill": 0.0}
        with pytest.raises(ContractError, match=said):
            parse_contract(contract)


@pytest.mark.parametrize(
    "spelling",
    [
        "clip:-57,164 scale_range:-57,164,-1,1",
        "zscore:nonzero,together",
        "rgb divide:255 mean_std:0.485,0.456,0.406/0.229,0.224,0.225",
        "scale_percentiles:0.5,99.5,clip,together",
        "clip_percentiles:0.5,99.5 zscore",
        "identity",
    ],
)
def test_a_spelling_is_read_and_written(spelling):
    """The same text."""
    assert spelled(parse_steps(spelling)) == spelling


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("clop:1,2", "no step 'clop'; there are clip:LOW,HIGH, "),
        ("clip:1", "expected clip:LOW,HIGH"),
        ("clip:2,1", "low < high"),
        ("clip:nan,1", "low is nan"),
        ("zscore:nonzeros", r"expected zscore\[:nonzero\]\[,together\]"),
        ("clip:-57,164 scale_range:0,1", "changes nothing: A_MIN and A_MAX are the intensities that become 0 and 1"),
        ("mean_std:1,2", "expected mean_std:MEAN"),
        ("mean_std:1/0", "above 0"),
        ("divide:0", "above 0"),
        ("scale_percentiles:-1,101", "between 0 and 100"),
    ],
)
def test_a_wrong_spelling_is_told_the_right_ones(spelling, said):
    """Names with their numbers, or what is wrong with these."""
    with pytest.raises(ValueError, match=said):
        parse_steps(spelling)


@pytest.mark.parametrize(
    ("spelling", "source", "normalised"),
    [
        ("identity", (0.0, 1.0), (0.0, 1.0)),
        ("zscore", (0.0, 1000.0), (-2.0, 2.0)),
        ("percentile:1,99", (0.0, 1000.0), (0.0, 1.0)),
        ("scale_range:-57,164,-1,1,clip", (-57.0, 164.0), (-1.0, 1.0)),
        ("clip:-100,300 mean_std:100/50", (-100.0, 300.0), (-4.0, 4.0)),
        ("divide:255", (0.0, 255.0), (0.0, 1.0)),
        ("rgb divide:255 mean_std:0.5/0.5", (0.0, 255.0), (-1.0, 1.0)),
    ],
)
def test_made_up_images_have_the_range_of_the_steps(spelling, source, normalised):
    """Raw ones what the steps are made for, normalised ones what comes of it."""
    preprocessing = Preprocessing(parse_steps(spelling))
    assert preprocessing.source_range == source
    low, high = preprocessing.normalised_range(3)
    assert (low.tolist(), high.tolist()) == ([normalised[0]] * 3, [normalised[1]] * 3)


def test_what_was_seen_at_export_comes_before_what_is_supposed():
    """Of a network that takes intensities as they are."""
    preprocessing = Preprocessing(intensities=(0.0, 255.0))
    assert preprocessing.source_range == (0.0, 255.0)
    assert Preprocessing.read(preprocessing.document()) == preprocessing
    assert set(STEPS) >= {"clip", "scale_range", "scale_percentiles", "zscore", "divide", "mean_std", "rgb"}
