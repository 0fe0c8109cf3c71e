"""Small synthetic MR studies as bytes, with planted personal data that must turn up nowhere else."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage, generate_uid

PLANTED = {
    "PatientName": "Plantedname^Quetzalcoatl",
    "PatientID": "PID-7741-PLANTED",
    "PatientBirthDate": "19530417",
    "AccessionNumber": "ACC-PLANTED-991",
    "ReferringPhysicianName": "Plantedphysician^Xochitl",
    "InstitutionName": "Planted Hospital Zyzzyva",
    "StudyDate": "20190823",
}
"""Attribute → value."""


def study(count: int = 6, rows: int = 8, columns: int = 6, seed: int = 0, **changes: object) -> list[bytes]:
    """An axial series, 1 mm everywhere; `changes` are attributes of every image."""
    random = np.random.default_rng(seed)
    uid, series, frame = generate_uid(), generate_uid(), generate_uid()
    images = []
    for number in range(count):
        image = _image(MRImageStorage)
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = uid, series, frame
        image.Modality, image.SeriesDescription = "MR", "synthetic"
        image.InstanceNumber = number + 1
        image.ImagePositionPatient = [0.0, 0.0, float(number)]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [1.0, 1.0], 1.0
        image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = random.integers(0, 1000, (rows, columns), np.uint16).tobytes()
        for name, value in changes.items():
            setattr(image, name, value)
        images.append(encoded(image))
    return images


def report(study_uid: str, sop_class: UID = SegmentationStorage) -> bytes:
    """Something that is no image, in a study."""
    other = _image(sop_class)
    other.StudyInstanceUID, other.SeriesInstanceUID = study_uid, generate_uid()
    other.Modality, other.InstanceNumber = "SEG", 1
    return encoded(other)


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def encoded(dataset: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _image(sop_class: UID) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    for name, value in PLANTED.items():
        setattr(dataset, name, value)
    dataset.StudyTime, dataset.StudyID, dataset.PatientSex, dataset.SeriesNumber = "120000", "1", "O", 1
    return dataset
