"""The reference data: deterministic, disjoint splits, and a clear answer when images are missing."""

import numpy as np
import pytest
from equipoise_lab.reference.data import DataMissingError, Dataset, download, load, reference_split, split

CASES = [f"case-{number:03d}" for number in range(200)]
PINNED_TEST_CASES = ("case-003", "case-005", "case-009")


@pytest.mark.parametrize(("count", "sizes"), [(200, (110, 45, 45)), (267, (147, 60, 60))])
def test_split_has_the_published_sizes_and_no_case_twice(count: int, sizes: tuple[int, int, int]) -> None:
    """A case in two sets would make the measured figures too good."""
    parts = split([str(number) for number in range(count)])
    assert (len(parts.train), len(parts.calibration), len(parts.test)) == sizes
    assert len({*parts.train, *parts.calibration, *parts.test}) == count


def test_split_is_the_same_in_any_order_and_changes_with_the_seed() -> None:
    """A folder that lists its files in another order gives the same split."""
    assert split(CASES) == split(CASES[::-1])
    assert split(CASES).test != split(CASES, seed=1).test


def test_split_never_changes_between_versions() -> None:
    """The published weights, metrics and policies rest on these very cases."""
    assert split(CASES).test[:3] == PINNED_TEST_CASES


def test_split_refuses_repeated_ids() -> None:
    """Two images under one id might end up on both sides of the split."""
    with pytest.raises(ValueError, match="repeat"):
        split(["a", "a"])


def test_pneumonia_is_tested_on_the_publishers_validation_set() -> None:
    """The publisher's training set is dealt 80 : 20; its validation set is never trained or calibrated on."""
    ids = [f"train-{number:05d}" for number in range(100)] + [f"val-{number:05d}" for number in range(10)]
    parts = reference_split("pneumonia", ids)
    assert (len(parts.train), len(parts.calibration)) == (80, 20)
    assert parts.test == tuple(ids[100:])


@pytest.mark.parametrize("name", ["hippocampus", "pneumonia", "nuclei"])
def test_missing_data_says_where_it_comes_from(name: str, tmp_path) -> None:
    """Whoever lacks the images is told the variable to set and the official source."""
    with pytest.raises(DataMissingError, match=r"EQUIPOISE_DATA.*https://"):
        load(name, tmp_path)


def test_download_refuses_what_has_no_checksum(tmp_path) -> None:
    """Nuclei come as an archive that has to be converted by hand: the message names the official page."""
    with pytest.raises(ValueError, match="broadinstitute"):
        download("nuclei", tmp_path)


def test_archives_are_read_with_a_channel_axis(tmp_path) -> None:
    """The official PneumoniaMNIST holds labels `[N, 1]`; both it and flat labels are read."""
    (tmp_path / "pneumonia").mkdir()
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    np.savez(
        tmp_path / "pneumonia" / "pneumonia.npz",
        train_images=images[:2],
        train_labels=np.array([[1], [0]]),
        val_images=images[2:],
        val_labels=np.array([1]),
    )
    cases = load("pneumonia", tmp_path)
    assert cases.ids == ("train-00000", "train-00001", "val-00000")
    assert cases.images[1].shape == (1, 28, 28) and cases.images[1].dtype == np.float32
    assert [int(target) for target in cases.targets] == [1, 0, 1]


def test_select_keeps_images_with_their_ids() -> None:
    """Cases come back in the order asked for."""
    images = tuple(np.full((1, 2), value, np.float32) for value in range(3))
    targets = tuple(np.array(value, np.uint8) for value in range(3))
    chosen = Dataset(("a", "b", "c"), images, targets).select(["c", "a"])
    assert [float(image[0, 0]) for image in chosen.images] == [2.0, 0.0]
    assert [int(target) for target in chosen.targets] == [2, 0]
