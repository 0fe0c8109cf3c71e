"""Reading real files that are made on the fly, and bringing them to a model's grid and back."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from equipoise_client import Prediction, Route, UnreadableImage
from equipoise_client.errors import InvalidInput
from equipoise_client.images import Kind, SourceImage, fit, nifti, read_image
from equipoise_client.images.grid import Axis, interpolate
from equipoise_client.images.header import Header
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

RNG = np.random.default_rng(0)
SECRET = "SECRET^PATIENT"


def ramp(*shape: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def dicom(pixels: np.ndarray[Any, Any], **fields: Any) -> Dataset:
    """An uncompressed 16-bit image or multi-frame volume with a patient's name."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = SECRET, SECRET, "MR"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def saved(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def frames(positions: list[list[float]], orientation: list[float]) -> Sequence:
    groups = []
    for position in positions:
        group, plane, direction = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = position
        direction.ImageOrientationPatient = orientation
        group.PlanePositionSequence, group.PlaneOrientationSequence = Sequence([plane]), Sequence([direction])
        groups.append(group)
    return Sequence(groups)


class TestRaster:
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_all_sixteen_bits_are_kept(self, tmp_path: Path, suffix: str) -> None:
        """A 16-bit PNG or TIFF keeps its values."""
        Image.fromarray(ramp(300, 200)).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}").pixels[0], ramp(300, 200))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F"])
    def test_every_mode_is_grey_or_rgb(self, tmp_path: Path, mode: str) -> None:
        """Whatever the colour mode, one channel or three come out, in 0..255 as Pillow shows them."""
        image = Image.fromarray(RNG.integers(0, 256, (9, 7), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / "a.tif")
        pixels = read_image(tmp_path / "a.tif").pixels
        assert pixels.shape[1:] == (9, 7) and pixels.dtype == np.float32
        if len(pixels) == 1:
            expected = image.convert("RGBA").getchannel(0) if mode == "LA" else image.convert("F")
        else:
            expected = image.convert("RGB").getchannel(0)
        np.testing.assert_array_equal(pixels[0], np.asarray(expected, np.float32))

    def test_colour_becomes_grey_as_pillow_does_it(self, tmp_path: Path, cells: Any) -> None:
        """RGB for a model with one channel becomes ITU-R 601 luma, and is not accepted unless it was grey anyway."""
        colour = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        colour.save(tmp_path / "a.png")
        prepared = fit(read_image(tmp_path / "a.png"), cells)
        assert np.abs(prepared.pixels[0] - np.asarray(colour.convert("L"), np.float32)).max() <= 1.0
        assert prepared.doubts == ("colour given, cells expects grey",)
        colour.convert("L").convert("RGB").save(tmp_path / "b.png")
        assert fit(read_image(tmp_path / "b.png"), cells).doubts == ()


def bomb_png() -> bytes:
    """A few hundred bytes that claim 60,000 × 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy_claiming(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", data)
    return stream.getvalue()


def nii(array: Any) -> bytes:
    return bytes(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())


def dcm() -> bytes:
    stream = io.BytesIO()
    dicom(ramp(32, 32)).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.png", b"", "0 bytes"),
    "text as PNG": ("a.png", b"hello doctor\n", "looks like text; expected PNG"),
    "text as DICOM": ("a.dcm", b"hello doctor\n", "looks like text; expected DICOM"),
    "noise": ("a.bin", bytes(range(128, 256)) * 4, "no format that is known"),
    "PNG named DICOM": ("a.dcm", png(), "named as DICOM, but the content is PNG"),
    "DICOM named NIfTI": ("a.nii.gz", dcm(), "named as NIfTI, but the content is DICOM"),
    "PNG cut off": ("a.png", png()[:300], "damaged or cut off"),
    "PNG header only": ("a.png", png()[:12], "damaged"),
    "PNG bomb": ("a.png", bomb_png(), "60000"),
    "array bomb": ("a.npy", npy_claiming("(60000, 60000)"), "60000"),
    "archive bomb": ("a.npz", zipped(npy_claiming("(60000, 60000)")), "60000"),
    "array cut off": ("a.npy", npy(np.zeros(99))[:-8], "cut off"),
    "array header broken": ("a.npy", b"\x93NUMPY\x01\x00\xff\xff{", "header"),
    "pickled objects": ("a.npy", npy(np.array([{}], object), allow_pickle=True), "object"),
    "complex array": ("a.npy", npy(np.zeros(3, complex)), "complex"),
    "array with NaN": ("a.npy", npy(np.array([[1.0, np.nan]])), "1 of 2 values"),
    "array of nothing": ("a.npy", npy(np.zeros((0, 4))), "empty"),
    "archive of nothing": ("a.npz", b"PK\x03\x04" + bytes(50), "damaged"),
    "NIfTI cut off": ("a.nii", nii(np.zeros((9, 9, 9)))[:500], "cut off"),
    "NIfTI gz cut off": ("a.nii.gz", gzip.compress(nii(RNG.random((9, 9, 9))))[:2000], "cut off"),
    "NIfTI series": ("a.nii", nii(np.zeros((4, 4, 4, 2))), "three axes"),
    "NIfTI with NaN": ("a.nii", nii(np.full((2, 2, 2), np.nan)), "8 of 8 values"),
    "DICOM cut in the pixels": ("a.dcm", dcm()[:-700], "DICOM"),
    "DICOM cut in the header": ("a.dcm", dcm()[:400], "DICOM"),
    "DICOM marker only": ("a.dcm", bytes(128) + b"DICM", "DICOM"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    """A file that is not an image is UnreadableImage, with its name and what is wrong, and no patient's name."""
    called, content, words = BAD_FILES[name]
    (tmp_path / called).write_bytes(content)
    with pytest.raises(UnreadableImage, match=words) as caught:
        read_image(tmp_path / called)
    assert called in str(caught.value) and "SECRET" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A file that is not there, and a folder, are refused by name."""
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="folder"):
        read_image(tmp_path)


GOOD_FILES = [("a.png", png()), ("a.npy", npy(np.eye(5))), ("a.nii", nii(np.ones((3, 3, 3)))), ("a.dcm", dcm())]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_an_error_or_an_image(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Cut or flipped bytes anywhere in a file give an image or UnreadableImage, never another error."""
    name, content = data.draw(st.sampled_from(GOOD_FILES))
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)) if damaged else ():
        damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert np.isfinite(read_image(path).pixels).all()
        except UnreadableImage as error:
            assert "SECRET" not in str(error)


class TestArrays:
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_array_comes_back(self, tmp_path: Path, order: Any) -> None:
        """.npy and .npz give the array, in either memory order, and the spacing that lies beside it."""
        array = np.asarray(RNG.random((3, 4, 5)), order=order)
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", image=array, spacing=[1.0, 1.0, 2.0])
        np.testing.assert_array_equal(read_image(tmp_path / "a.npy").pixels, array.astype(np.float32))
        archived = read_image(tmp_path / "a.npz")
        np.testing.assert_array_equal(archived.pixels, array.astype(np.float32))
        assert archived.spacing == (1.0, 1.0, 2.0)

    def test_channel_axis_is_optional_for_one_channel(self, brain: Any) -> None:
        """[*S] and [1, *S] are the same image to a model with one channel; other ranks are refused."""
        volume = RNG.random((4, 5, 6)).astype(np.float32)
        for pixels in (volume, volume[None]):
            np.testing.assert_array_equal(fit(SourceImage(pixels, Kind.ARRAY), brain).pixels, volume[None])
        with pytest.raises(InvalidInput, match="takes 3"):
            fit(SourceImage(volume[0], Kind.ARRAY), brain)


class TestDicom:
    def test_rescale_and_spacing(self, tmp_path: Path) -> None:
        """Stored values go through slope and intercept; spacing is (rows, columns) of Pixel Spacing."""
        fields = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "PixelSpacing": [0.5, 0.7], "SliceThickness": "5"}
        image = read_image(saved(dicom(ramp(4, 6), **fields), tmp_path / "1.2.840.1"))
        np.testing.assert_array_equal(image.pixels[0], ramp(4, 6) * 2.0 - 1024.0)
        assert image.spacing == (0.5, 0.7) and image.header.modality == "MR" and image.kind is Kind.DICOM

    @pytest.mark.parametrize(("signed", "low", "high"), [(0, 0, 4095), (1, -2048, 2047)])
    def test_monochrome1_is_turned(self, tmp_path: Path, signed: int, low: int, high: int) -> None:
        """MONOCHROME1 is mirrored within the range that could be stored, whatever the image holds."""
        stored = np.array([[low, high], [low + 1, 5]], np.int16)
        fields = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
        dataset = dicom(stored, **fields, PixelRepresentation=signed, RescaleSlope="3", RescaleIntercept="7")
        expected = 3.0 * (low + high - stored.astype(float)) + 7.0
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], expected)

    def test_detector_spacing_is_not_the_patients(self, tmp_path: Path) -> None:
        """Imager Pixel Spacing alone is no spacing."""
        dataset = dicom(ramp(4, 6), ImagerPixelSpacing=[0.1, 0.1], Modality="DX")
        assert read_image(saved(dataset, tmp_path / "a.dcm")).spacing is None

    def test_frames_are_ordered_along_the_normal(self, tmp_path: Path, brain: Any) -> None:
        """Whatever the order in the file, the volume is the same, and in RAS it matches a NIfTI of the same voxels."""
        volume = RNG.integers(0, 999, (3, 4, 5)).astype(np.uint16)  # slice, row, column
        measures = Dataset()
        measures.PixelSpacing = [1.05, 0.95]
        shared = Dataset()
        shared.PixelMeasuresSequence = Sequence([measures])
        axial = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        prepared = []
        for order in ([0, 1, 2], [2, 0, 1]):
            dataset = dicom(volume[order])
            dataset.SharedFunctionalGroupsSequence = Sequence([shared])
            dataset.PerFrameFunctionalGroupsSequence = frames([[10.0, 20.0, 1.0 * k] for k in order], axial)
            image = read_image(saved(dataset, tmp_path / "a.dcm"))
            np.testing.assert_array_equal(image.pixels[0], volume)
            assert image.spacing == (1.0, 1.05, 0.95)
            prepared.append(fit(image, brain))
        # Columns run to the patient's left, rows to the back: both are turned round on the way to RAS.
        expected = volume.transpose(2, 1, 0)[::-1, ::-1, :]
        for each in prepared:
            np.testing.assert_array_equal(each.pixels[0], expected)
            np.testing.assert_array_equal(each.to_source(each.pixels)[0], volume)
            assert each.doubts == ()

    @pytest.mark.parametrize(
        ("heights", "words"), [([0, 1, 3], "even gaps"), ([0, 0, 1], "even gaps"), ([0, 0, 0], "even gaps")]
    )
    def test_uneven_frames_are_refused(self, tmp_path: Path, heights: list[int], words: str) -> None:
        """A gap, or two frames in one place, is not a volume."""
        dataset = dicom(ramp(3, 4, 5), PixelSpacing=[1.0, 1.0])
        places = [[0.0, 0.0, float(height)] for height in heights]
        dataset.PerFrameFunctionalGroupsSequence = frames(places, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        with pytest.raises(UnreadableImage, match=words):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_sheared_frames_are_refused(self, tmp_path: Path) -> None:
        """Gantry tilt is not a straight volume."""
        dataset = dicom(ramp(3, 4, 5), PixelSpacing=[1.0, 1.0])
        places = [[0.0, 0.3 * k, 1.0 * k] for k in range(3)]
        dataset.PerFrameFunctionalGroupsSequence = frames(places, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        with pytest.raises(UnreadableImage, match="gantry tilt"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_frames_without_positions_are_not_accepted(self, tmp_path: Path, brain: Any) -> None:
        """A multi-frame file that does not say where its frames lie is read, but its orientation is in doubt."""
        prepared = fit(read_image(saved(dicom(ramp(3, 4, 5)), tmp_path / "a.dcm")), brain)
        assert prepared.spacing is None and "orientation" in prepared.doubts[0]

    def test_compressed_without_a_decoder(self, tmp_path: Path) -> None:
        """A transfer syntax that nothing here unpacks is named, with what to do."""
        dataset = dicom(ramp(4, 4))
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2 video
        with pytest.raises(UnreadableImage, match=r"MPEG2.*store it uncompressed"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_lossless_compression_changes_nothing(self, tmp_path: Path) -> None:
        """RLE gives the pixels that went in."""
        dataset = dicom(ramp(16, 16))
        dataset.compress(pydicom.uid.RLELossless)
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], ramp(16, 16))


class TestGrid:
    @settings(max_examples=50, deadline=None)
    @given(rows=st.integers(1, 40), columns=st.integers(1, 40), height=st.integers(1, 40), width=st.integers(1, 40))
    def test_resizing_is_pillows_bilinear(self, rows: int, columns: int, height: int, width: int) -> None:
        """Up and down, resizing equals Pillow's antialiased BILINEAR, which shares no code with ours."""
        image = np.random.default_rng(rows).random((rows, columns)).astype(np.float32)
        ours = interpolate(image[None], (Axis(rows, height, rows / height), Axis(columns, width, columns / width)))[0]
        pillow = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours, np.asarray(pillow), atol=2e-5)

    @given(size=st.integers(1, 200), step=st.floats(0.05, 20.0))
    def test_weights_are_an_average(self, size: int, step: float) -> None:
        """Every new value is a weighted mean of old ones, there and back: no ringing, no shift in a constant."""
        axis = Axis(size, max(1, round(size / step)), step)
        for each in (axis, axis.inverse):
            weights = each.weights()
            assert weights.shape == (each.size, each.source) and (weights >= 0).all()
            np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)

    def test_coarse_volume_reaches_the_contracts_spacing_and_returns(self, brain: Any) -> None:
        """2 mm voxels become the middle of the contract's range; a smooth volume survives the way there and back."""
        z, y, x = np.meshgrid(*(np.linspace(0, np.pi, n) for n in (20, 24, 28)), indexing="ij")
        volume = (np.sin(z) * np.sin(y) * np.sin(x)).astype(np.float32)
        image = SourceImage(volume[None], Kind.NIFTI, (2.0, 2.0, 2.0), np.diag([2.0, 2.0, 2.0, 1.0]))
        prepared = fit(image, brain)
        assert prepared.spacing == pytest.approx([np.sqrt(0.99)] * 3)
        # Two triangles a voxel wide flatten the top by 3.5 %; a shift of half a voxel would cost 8 % on the flanks.
        assert np.abs(prepared.to_source(prepared.pixels) - volume).max() < 0.05
        assert "2 mm" in prepared.doubts[0]

    @pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "PSR", "SAL", "IRP"])
    def test_any_orientation_is_turned_and_turned_back(self, tmp_path: Path, brain: Any, codes: str) -> None:
        """The network sees what nibabel calls RAS, whatever the file's order of axes; labels return voxel by voxel."""
        volume = ramp(5, 6, 7).astype(np.float32)
        ras = nibabel.Nifti1Image(volume, np.diag([1.0, 1.05, 0.95, 1.0]))
        target = nibabel.orientations.axcodes2ornt(tuple(codes))
        stored = ras.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(np.eye(4)), target)
        )
        nibabel.save(stored, tmp_path / "a.nii.gz")
        image = read_image(tmp_path / "a.nii.gz")
        prepared = fit(image, brain)
        np.testing.assert_array_equal(prepared.pixels[0], volume)
        assert prepared.spacing == pytest.approx((1.0, 1.05, 0.95)) and prepared.doubts == ()
        labels = (prepared.pixels > 100).astype(np.uint8)
        nifti.write(tmp_path / "labels.nii.gz", prepared.to_source(labels), image)
        written: Any = nibabel.load(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj) > 100)
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-5)

    def test_other_orientations_of_the_contract(self, tmp_path: Path, brain: Any) -> None:
        """A contract in another orientation gets the same voxels that nibabel's own reorientation gives."""
        stored = nibabel.Nifti1Image(ramp(5, 6, 7).astype(np.float32), np.eye(4))
        nibabel.save(stored, tmp_path / "a.nii")
        for codes in ("LPS", "PSR", "IRP"):
            target = nibabel.orientations.axcodes2ornt(tuple(codes))
            expected = stored.as_reoriented(
                nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(np.eye(4)), target)
            )
            prepared = fit(read_image(tmp_path / "a.nii"), replace(brain, orientation=codes))
            np.testing.assert_array_equal(prepared.pixels[0], np.asarray(expected.dataobj))

    def test_classifier_gets_its_fixed_size(self, tmp_path: Path, chest: Any) -> None:
        """A radiograph of any size is averaged down to the classifier's size."""
        Image.fromarray(RNG.integers(0, 256, (195, 184), dtype=np.uint8)).save(tmp_path / "a.png")
        prepared = fit(read_image(tmp_path / "a.png"), chest)
        assert prepared.pixels.shape == (1, 28, 28)
        with Image.open(tmp_path / "a.png") as image:
            assert prepared.pixels.mean() == pytest.approx(np.asarray(image).mean(), rel=0.02)


def test_oversized_resampling_is_refused(brain: Any) -> None:
    """A spacing that would unpack to more than one request carries is an error, not an allocation."""
    image = SourceImage(np.zeros((1, 9, 9, 9), np.float32), Kind.NIFTI, (1000.0,) * 3, np.diag([1000.0] * 3 + [1.0]))
    with pytest.raises(InvalidInput, match="crop it"):
        fit(image, brain)


@pytest.mark.parametrize("route", list(Route))
def test_wrong_modality_is_never_accepted(route: Route, brain: Any) -> None:
    """A CT sent to an MR model is rejected, saying so."""
    ct = SourceImage(np.zeros((1, 4, 4, 4), np.float32), Kind.DICOM, (1.0,) * 3, np.eye(4), Header("CT"))
    answer = Prediction("brain", route, "server's reason", 0.1, 20, None, {}, {})
    judged = fit(ct, brain).judge(answer)
    assert judged.route is Route.REJECT
    assert "modality CT given, brain expects MR" in judged.reason


def test_unstated_orientation_is_never_accepted(tmp_path: Path, brain: Any) -> None:
    """A NIfTI whose sform and qform are both unset has an orientation that nobody stated."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    assert "orientation" in fit(read_image(tmp_path / "a.nii"), brain).doubts[0]
