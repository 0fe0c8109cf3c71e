"""A volume like nobody's: every axis of another length and spacing, oblique, and no voxel like its mirror image.

Where a voxel lies is worked out here from the datasets' own attributes alone, and shares no code with what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pydicom.uid
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

ROWS, COLUMNS, SLICES = 20, 28, 9
PLANE, GAP = (1.3, 0.8), 2.1
"""mm between (rows, columns), and between slices."""

FIRST, SECOND = 40_000, 50_000
"""Stored values from which a voxel belongs to the first and the second structure."""

NAME, PATIENT = "Planted^Name", "PLANTED-ID-4711"


def turned(x: float, y: float, z: float) -> NDArray[np.float64]:
    """A rotation by these angles in degrees; its columns are the directions of row, column, normal."""
    matrix = np.eye(3)
    for axis, angle in enumerate((x, y, z)):
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        one = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = cosine, -sine, sine, cosine
        matrix = matrix @ one
    return matrix


@dataclass(frozen=True)
class Phantom:
    """Datasets in a mixed order, and what lies where.

    Attributes:
        points: mm in the patient's coordinates (LPS) of every voxel `[SLICES, ROWS, COLUMNS, 3]`.
        values: stored value of every voxel, likewise.
    """

    datasets: tuple[Dataset, ...]
    points: NDArray[np.float64]
    values: NDArray[np.uint16]

    @property
    def labels(self) -> NDArray[np.uint8]:
        return (self.values >= FIRST).astype(np.uint8) + (self.values >= SECOND)


def phantom(angles: tuple[float, float, float] = (17.0, -11.0, 8.0), descending: bool = False) -> Phantom:
    """An MR series of single-frame instances; `descending`: they are numbered against their normal."""
    directions = turned(*angles)
    row, column, normal = directions.T
    origin = np.array([-31.5, 12.25, 40.75])
    generator = np.random.default_rng(7)
    values = generator.permutation(ROWS * COLUMNS * SLICES).reshape(SLICES, ROWS, COLUMNS).astype(np.uint16)
    values[1:4, 2:7, 3:17] += FIRST  # a block in one corner, an arm along the rows, one along the slices
    values[1:4, 7:15, 3:6] += FIRST
    values[4:8, 2:5, 3:6] += SECOND
    numbers = range(SLICES, 0, -1) if descending else range(1, SLICES + 1)
    datasets = []
    for index, number in enumerate(numbers):
        dataset = header()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.10.99.3.{number}"
        dataset.InstanceNumber = number
        dataset.ImageOrientationPatient = [f"{each:.10g}" for each in (*row, *column)]
        dataset.ImagePositionPatient = [f"{each:.10g}" for each in origin + index * GAP * normal]
        dataset.PixelData = values[index].astype("<u2").tobytes()
        datasets.append(dataset)
    order = np.random.default_rng(1).permutation(SLICES)
    return Phantom(tuple(datasets[index] for index in order), _points(datasets), values)


def header() -> Dataset:
    """All of an instance but where it lies and what is in it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.MRImageStorage
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.PatientName, dataset.PatientID = NAME, PATIENT
    dataset.PatientBirthDate, dataset.PatientSex = "19610203", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.10.99.1", "1.2.826.0.1.3680043.10.99.2"
    dataset.StudyDate = dataset.SeriesDate = "20240229"
    dataset.StudyTime = dataset.SeriesTime = "123456"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "A1", "S1", ""
    dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "MR", "Phantom", 3
    dataset.Manufacturer, dataset.BodyPartExamined = "", "BRAIN"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "1.2.826.0.1.3680043.10.99.4", ""
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength = "2D", "10", "1"
    dataset.RepetitionTime = "500"
    dataset.SliceThickness, dataset.SpacingBetweenSlices = "5", "99"  # one is no distance, the other is stale
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = ROWS, COLUMNS, [str(mm) for mm in PLANE]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    return dataset


def multiframe(source: Phantom) -> Dataset:
    """The phantom as one enhanced instance whose frames are in the mixed order."""
    dataset = header()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.EnhancedMRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.10.99.5"
    dataset.NumberOfFrames = len(source.datasets)
    shared, measures, direction = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, "5"
    direction.ImageOrientationPatient = source.datasets[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([direction])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for each in source.datasets:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = each.ImagePositionPatient
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"):
        del dataset[name]
    dataset.PixelData = b"".join(each.PixelData for each in source.datasets)
    return dataset


SYNTAXES = ("RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless")
"""Lossless transfer syntaxes, as GDCM calls them."""


def compressed(dataset: Dataset, syntax: str, folder: Path) -> Dataset:
    """A copy of a dataset whose pixels GDCM compressed; it goes through a file in `folder`."""
    import gdcm

    file = str(folder / "compressed.dcm")
    dataset.save_as(file, enforce_file_format=True)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(file)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(file)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return pydicom.dcmread(file)


def _points(datasets: list[Dataset]) -> NDArray[np.float64]:
    """PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, voxel by voxel."""
    points = np.empty((len(datasets), ROWS, COLUMNS, 3))
    for index, dataset in enumerate(datasets):
        place = np.array([float(mm) for mm in dataset.ImagePositionPatient])
        cosines = np.array([float(each) for each in dataset.ImageOrientationPatient])
        between = [float(mm) for mm in dataset.PixelSpacing]
        for i in range(ROWS):
            for j in range(COLUMNS):
                points[index, i, j] = place + cosines[:3] * between[1] * j + cosines[3:] * between[0] * i
    return points
