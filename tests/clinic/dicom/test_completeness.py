"""Headers that say that images are missing, and headers that do not."""

from __future__ import annotations

from typing import Any

import pytest
from equipoise_client.images.completeness import missing
from pydicom.dataset import Dataset


def images(count: int, first: int = 1, step: int = 1, **changes: Any) -> list[Dataset]:
    made = []
    for index in range(count):
        dataset = Dataset()
        dataset.Modality, dataset.InstanceNumber = "MR", first + step * index
        for name, value in changes.items():
            setattr(dataset, name, value)
        made.append(dataset)
    return made


def enhanced(frames: int, described: int, first: int = 1) -> list[Dataset]:
    dataset = Dataset()
    dataset.Modality, dataset.InstanceNumber, dataset.NumberOfFrames = "MR", 1, frames
    groups = []
    for index in range(described):
        group, content = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", first + index
        group.FrameContentSequence = [content]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return [dataset]


def parts(count: int, total: int) -> list[Dataset]:
    made = images(count, ConcatenationUID="1.2.3", InConcatenationTotalNumber=total)
    for number, dataset in enumerate(made, start=1):
        dataset.InConcatenationNumber = number
    return made


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        (images(32, ImagesInAcquisition=40), "32 of 40 images (Images in Acquisition)"),
        (images(32, NumberOfSeriesRelatedInstances=40), "32 of 40 images (Number of Series Related Instances)"),
        (images(30, Modality="PT", NumberOfSlices=40), "30 of 40 images (Number of Slices)"),
        (images(60, Modality="PT", NumberOfSlices=40, NumberOfTimeSlices=2), "60 of 80 images (Number of Slices)"),
        (images(32, first=9), "8 of the Instance Numbers up to 40 are missing"),
        (images(20, step=2), "19 of the Instance Numbers up to 39 are missing"),
        (images(3) + images(3, first=5), "1 of the Instance Numbers up to 7 are missing"),
        (enhanced(40, 32), "32 of 40 images (Number of Frames)"),
        (enhanced(32, 32, first=9), "8 of the In-Stack Position Numbers up to 40 are missing"),
        (parts(2, 3), "2 of 3 images (parts of a concatenation)"),
    ],
)
def test_what_is_missing_is_said_with_its_numbers(datasets, words) -> None:
    assert missing(datasets) == (words,)


@pytest.mark.parametrize(
    "datasets",
    [
        images(40, ImagesInAcquisition=40, NumberOfSeriesRelatedInstances=40),
        images(40, first=0),
        images(40, ImagesInAcquisition=20),
        [*images(9, AcquisitionNumber=1, ImagesInAcquisition=9), *images(9, AcquisitionNumber=2)],
        images(40, step=0),
        images(1, first=7),
        images(5, ImagesInAcquisition=""),
        images(5, NumberOfSlices=40),
        [*images(3), Dataset()],
        enhanced(32, 32),
        parts(3, 3),
    ],
    ids=["as stated", "from 0", "several acquisitions unnumbered", "and numbered", "all one number", "a single image",
         "empty", "slices of a modality that counts otherwise", "one without a number", "frames", "parts"],
)  # fmt: skip
def test_what_says_nothing_is_no_doubt(datasets) -> None:
    assert missing(datasets) == ()
