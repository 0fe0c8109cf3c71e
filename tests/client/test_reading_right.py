"""Files that other readers take without a word: read right, or refused by what is wrong with them."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from equipoise_client import Prediction, Route
from equipoise_client.errors import EquipoiseError, InvalidInput, UnreadableImage
from equipoise_client.figure import grey
from equipoise_client.images import Kind, SourceImage, fit, read_image
from equipoise_client.images.codestream import size_of
from equipoise_client.images.source import UNPACKED, unpacked_limit
from equipoise_core.contract import Contract
from equipoise_core.preprocessing import NAMES, PADDING_VALUE, Preprocessing, named
from equipoise_core.statistics import input_statistics
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from .test_images import RNG, dicom, ramp, saved

PICTURE = np.clip(np.add.outer(np.arange(128), np.arange(160)) % 97 * 2 + RNG.integers(0, 9, (128, 160)), 0, 255)

HTJ2K = (
    "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHwAAf+TwAAmZ/sFB3QAAMAAE0AAEwDA/gKH"
    "dACi/gIHdADAABNAABOA9/0AC3QAUKH+AGNUAMAAFTAABUjEiYmJl+GLdQCkJNLAEICMtgDAACvgABXASCQSiUQikd4KenpxAngA"
    "SARBEOT8AAj2EIHsuQD/2Q=="
)


class TestDicomValues:
    @pytest.mark.parametrize("signed", [0, 1])
    @pytest.mark.parametrize("high", [11, 13, 15])
    def test_high_bit(self, tmp_path: Path, high: int, signed: int) -> None:
        """Bits Stored end at High Bit, wherever it is; bits below are no part of the value."""
        values = np.array([[-2048, -1, 0], [5, 1000, 2047]]) + (0 if signed else 2048)
        stored = (values << (high - 11)).astype("<i8") & 0xFFFF
        dataset = dicom(stored, BitsStored=12, HighBit=high, PixelRepresentation=signed)
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], values)

    def test_more_bits_than_stated_are_refused(self, tmp_path: Path) -> None:
        dataset = dicom(np.full((3, 3), 5000), BitsStored=12, HighBit=11)
        with pytest.raises(UnreadableImage, match="more than the 12 bits"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_more_bits_than_stated_are_no_sign_of_unsigned_pixels(self, tmp_path: Path) -> None:
        dataset = dicom(np.full((3, 3), 8191), BitsStored=12, HighBit=11)
        with pytest.raises(UnreadableImage, match="more than the 12 bits"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_one_frame_of_a_concatenation_is_incomplete(self, tmp_path: Path) -> None:
        dataset = dicom(ramp(4, 6), ConcatenationUID="1.2.3", InConcatenationTotalNumber=2)
        assert "parts of a concatenation" in read_image(saved(dataset, tmp_path / "a.dcm")).doubts[0]

    def test_pixels_of_another_width_are_refused(self, tmp_path: Path) -> None:
        """Every row would begin a pixel later than the one before."""
        dataset = dicom(ramp(50, 36))
        dataset.Columns = 35
        with pytest.raises(UnreadableImage, match="not that of these pixels"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    @pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless"])
    def test_a_compressed_picture_of_more_bits_than_stated_is_refused(self, tmp_path: Path, syntax: str) -> None:
        dataset = dicom(ramp(64, 64) * 16)
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        dataset.BitsStored, dataset.HighBit = 12, 11
        with pytest.raises(UnreadableImage, match="the header says"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    @pytest.mark.parametrize(("slope", "intercept"), [("3", None), (None, "-7"), ("", ""), ("2", ""), (None, None)])
    def test_slope_and_intercept_count_alone(self, tmp_path: Path, slope: str | None, intercept: str | None) -> None:
        fields = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        dataset = dicom(ramp(4, 6), **{name: value for name, value in fields.items() if value is not None})
        expected = ramp(4, 6) * float(slope or 1) + float(intercept or 0)
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], expected)

    def test_a_slope_of_zero_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImage, match="Rescale Slope 0"):
            read_image(saved(dicom(ramp(4, 6), RescaleSlope="0", RescaleIntercept="1"), tmp_path / "a.dcm"))

    def test_float_pixels(self, tmp_path: Path) -> None:
        dataset = dicom(ramp(4, 6))
        values = RNG.random((4, 6)).astype("<f4")
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], values)

    @pytest.mark.parametrize("extra", [-2, 48])
    def test_bytes_that_do_not_fit_the_header_are_refused(self, tmp_path: Path, extra: int) -> None:
        dataset = dicom(ramp(4, 6))
        dataset.PixelData = (dataset.PixelData + bytes(48))[: 48 + extra]
        with pytest.raises(UnreadableImage, match="bytes of pixels"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_twelve_bit_jpeg(self) -> None:
        """pydicom's own example: 12 bits, up to 264 (as two other decoders read it)."""
        image = read_image(get_testdata_file("JPGExtended.dcm", download=False))
        assert image.pixels.shape == (1, 1024, 256) and image.pixels.max() == 264

    def test_htj2k(self, tmp_path: Path) -> None:
        """High-Throughput JPEG 2000, as OpenJPH wrote it."""
        values = np.add.outer(np.arange(16) * 37, np.arange(12) * 101) % 4096
        dataset = dicom(values, BitsStored=12, HighBit=11)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        dataset.PixelData = encapsulate([base64.b64decode(HTJ2K)])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], values)

    @pytest.mark.parametrize("fields", [{"Columns": 35}, {"Columns": 18, "Rows": 100}, {"Rows": 40}])
    def test_runs_of_rows_of_another_length_are_refused(self, tmp_path: Path, fields: dict[str, int]) -> None:
        dataset = dicom(ramp(50, 36))
        dataset.compress(RLELossless, generate_instance_uid=False)
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0], ramp(50, 36))
        for name, value in fields.items():
            setattr(dataset, name, value)
        with pytest.raises(UnreadableImage, match="RLE frame"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_every_changed_length_of_a_run_is_noticed(self, tmp_path: Path) -> None:
        """What follows it would lie elsewhere. A changed value in a run cannot be noticed: nothing checks it."""
        values = np.repeat(RNG.integers(0, 4000, (12, 4)), 6, axis=1)
        dataset = dicom(values)
        dataset.compress(RLELossless, generate_instance_uid=False)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        for place in range(0, len(frame) - 1):
            changed = frame[:place] + bytes([frame[place] ^ 4]) + frame[place + 1 :]
            dataset.PixelData = encapsulate([changed])
            dataset["PixelData"].is_undefined_length = True
            try:
                found = read_image(saved(dataset, tmp_path / "a.dcm")).pixels[0]
            except UnreadableImage:
                continue
            assert (found != values).sum() in (0, 6), "one run, and nothing behind it"

    @pytest.mark.parametrize("rows", [64, 256])
    def test_a_codestream_of_another_size_is_refused(self, tmp_path: Path, rows: int) -> None:
        dataset = jpeg(bytes_of(PICTURE))
        dataset.Rows = rows
        with pytest.raises(UnreadableImage, match=r"the compressed picture has .*\[128, 160, 1\]"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    def test_a_damaged_codestream_is_refused(self, tmp_path: Path) -> None:
        """GDCM gives a picture all the same; libjpeg's warning tells."""
        content = bytearray(bytes_of(PICTURE))
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
        del content[-800:-2]
        with pytest.raises(UnreadableImage, match="cannot be unpacked"):
            read_image(saved(jpeg(bytes(content)), tmp_path / "a.dcm"))
        assert read_image(saved(jpeg(bytes_of(PICTURE)), tmp_path / "b.dcm")).pixels.shape == (1, 128, 160)


def bytes_of(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def jpeg(content: bytes) -> Dataset:
    dataset = dicom(PICTURE)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([content])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


class TestPadding:
    FRAME = np.pad(np.zeros((6, 8), bool), 2, constant_values=True)

    @pytest.mark.parametrize(("value", "vr", "signed"), [(-2000, "SS", 1), (-32768, "SS", 1), (65535, "US", 0)])
    def test_padding_is_told_apart(self, tmp_path: Path, value: int, vr: str, signed: int) -> None:
        image = self.read(tmp_path, value, vr, signed)
        np.testing.assert_array_equal(image.padding, self.FRAME)
        assert (image.pixels[0][self.FRAME] == image.pixels[0][~self.FRAME].min()).all()  # for pictures

    def test_a_range_of_padding(self, tmp_path: Path) -> None:
        stored = np.where(self.FRAME, np.arange(120).reshape(10, 12) % 3 + 60000, 100)
        dataset = dicom(stored)
        dataset.add_new(0x00280120, "US", 60000)
        dataset.add_new(0x00280121, "US", 60002)
        np.testing.assert_array_equal(read_image(saved(dataset, tmp_path / "a.dcm")).padding, self.FRAME)

    def test_nothing_but_padding_is_refused(self, tmp_path: Path) -> None:
        dataset = dicom(np.full((4, 4), 7))
        dataset.add_new(0x00280120, "US", 7)
        with pytest.raises(UnreadableImage, match="all of it is padding"):
            read_image(saved(dataset, tmp_path / "a.dcm"))

    @pytest.mark.parametrize("name", NAMES)
    def test_it_takes_no_part(self, tmp_path: Path, cells: Contract, name: str) -> None:
        """Normalised values and statistics are those of the image without it."""
        prepared = fit(self.read(tmp_path, 65535, "US", 0), cells).pixels
        assert (prepared[0][self.FRAME] == PADDING_VALUE).all()
        preprocessing = Preprocessing(named(name, 1.0, 99.0))
        normalised = preprocessing.normalise(prepared)
        alone = preprocessing.normalise(prepared[:, 2:-2, 2:-2].copy())
        np.testing.assert_array_equal(normalised[:, 2:-2, 2:-2], alone)
        assert (normalised[0][self.FRAME] == PADDING_VALUE).all()
        assert (preprocessing.filled(normalised)[0][self.FRAME] == preprocessing.fill).all()
        assert input_statistics(normalised) == input_statistics(alone)

    def test_pictures_leave_it_out(self, tmp_path: Path, cells: Contract) -> None:
        image = self.read(tmp_path, 65535, "US", 0)
        shown = grey(fit(image, cells).pixels)
        np.testing.assert_array_equal(shown[~self.FRAME], grey(image.pixels[:, 2:-2, 2:-2]).ravel())
        assert (shown[self.FRAME] == 0).all()

    def test_it_does_not_bleed_into_what_is_resampled(self, chest: Contract) -> None:
        padding = np.zeros((56, 56), bool)
        padding[:20] = True
        image = SourceImage(np.where(padding, 0, 500.0).astype(np.float32)[None], Kind.DICOM, padding=padding)
        values = fit(image, chest).pixels
        np.testing.assert_allclose(values[values != PADDING_VALUE], 500, rtol=1e-6)
        assert (values == PADDING_VALUE).all(axis=2).sum() == 10

    def test_labels_and_maps_say_nothing_about_it(self, tmp_path: Path, cells: Contract) -> None:
        """Neither in the picture, which has the model's grid, nor in what is written in the source's."""
        prepared = fit(self.read(tmp_path, 65535, "US", 0), cells)
        full = np.ones(prepared.pixels.shape, np.float32)
        arrays = {"labels": full.astype(np.uint8), "epistemic": full, "mean": full}
        answer = Prediction("cells", Route.ACCEPT, "", 0.1, 20, None, {}, arrays)
        for outside in (prepared.judge(answer).labels[0] == 0, prepared.to_source(answer.epistemic)[0] == 0):
            np.testing.assert_array_equal(outside, self.FRAME)
        assert (prepared.judge(answer).mean == 1).all() and (prepared.to_source(answer.labels)[0] == ~self.FRAME).all()

    def read(self, folder: Path, value: int, vr: str, signed: int) -> SourceImage:
        stored = np.where(self.FRAME, value, np.arange(120).reshape(10, 12) * 7 + 3)
        dataset = dicom(stored & 0xFFFF, PixelRepresentation=signed)
        dataset.add_new(0x00280120, vr, value)
        return read_image(saved(dataset, folder / "a.dcm"))


def test_arrays_behind_the_first_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, RNG.random((4, 5)))
        np.save(file, RNG.random((4, 5)))
    with pytest.raises(UnreadableImage, match="more values follow"):
        read_image(tmp_path / "a.npy")


class TestNifti:
    AFFINE = np.array([[0, -1.2, 0, 5], [1.0, 0, 0, -3], [0, 0, 0.9, 7], [0, 0, 0, 1.0]])

    def write(self, path: Path, sform: Any, qform: Any, codes: tuple[int, int] = (1, 1)) -> Path:
        image = nibabel.Nifti1Image(RNG.random((6, 5, 4)).astype(np.float32), None)
        image.set_qform(qform, codes[1])
        image.set_sform(sform, codes[0])
        nibabel.save(image, path)
        return path

    def test_what_agrees_is_read(self, tmp_path: Path) -> None:
        image = read_image(self.write(tmp_path / "a.nii.gz", self.AFFINE, self.AFFINE))
        assert image.spacing == pytest.approx((1.0, 1.2, 0.9)) and not image.doubts
        np.testing.assert_allclose(image.affine, self.AFFINE, atol=1e-6)

    @pytest.mark.parametrize("codes", [(4, 0), (0, 4), (4, 4), (3, 3)])
    def test_a_templates_space_is_for_review(self, tmp_path: Path, codes: tuple[int, int]) -> None:
        image = read_image(self.write(tmp_path / "a.nii.gz", self.AFFINE, self.AFFINE, codes))
        assert len(image.doubts) == 1 and "template" in image.doubts[0]

    @pytest.mark.parametrize("shear", [0.1, 0.5, 1.0])
    def test_a_sheared_affine_is_refused(self, tmp_path: Path, shear: float) -> None:
        sheared = self.AFFINE.copy()
        sheared[:3, 1] += shear * self.AFFINE[:3, 0]
        with pytest.raises(UnreadableImage, match=r"sheared|sform"):
            read_image(self.write(tmp_path / "a.nii", sheared, self.AFFINE, (1, 0)))

    def test_two_axes_in_one_direction_are_refused(self, tmp_path: Path) -> None:
        singular = self.AFFINE.copy()
        singular[:3, 1] = singular[:3, 0] * 1.2
        with pytest.raises(UnreadableImage, match=r"0\.0 degrees"):
            read_image(self.write(tmp_path / "a.nii", singular, self.AFFINE, (1, 0)))

    @pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1)])
    def test_left_and_right_exchanged_are_refused(self, tmp_path: Path, codes: tuple[int, int]) -> None:
        mirrored = self.AFFINE.copy()
        mirrored[:3, 0] *= -1
        for sform, qform in ((self.AFFINE, mirrored), (mirrored, self.AFFINE)):
            with pytest.raises(UnreadableImage, match="left and right"):
                read_image(self.write(tmp_path / "a.nii", sform, qform, codes))

    def test_sizes_that_differ_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImage, match="by sform and"):
            read_image(self.write(tmp_path / "a.nii", self.AFFINE, self.AFFINE @ np.diag([2, 2, 2, 1])))

    def test_a_template_is_no_scanner(self, tmp_path: Path) -> None:
        turned = self.AFFINE @ np.diag([1.1, 1.1, 1.1, 1])
        assert "template" in read_image(self.write(tmp_path / "a.nii", turned, self.AFFINE, (4, 1))).doubts[0]

    def test_sizes_without_a_unit_are_believed_where_they_are_likely(self, tmp_path: Path) -> None:
        for factor, doubts in ((1, 0), (1000, 1), (0.001, 1)):
            affine = self.AFFINE @ np.diag([factor] * 3 + [1])
            assert len(read_image(self.write(tmp_path / "a.nii", affine, affine)).doubts) == doubts

    @pytest.mark.parametrize("end", [".nii", ".nii.gz"])
    def test_more_voxels_than_the_header_states_are_refused(self, tmp_path: Path, end: str) -> None:
        """A header that states fewer slices would cut off a part of the organ. A few bytes at the end are no slice."""
        name = tmp_path / f"a{end}"
        content = (gzip.decompress if end.endswith("gz") else bytes)(
            self.write(name, self.AFFINE, self.AFFINE).read_bytes()
        )
        packed = gzip.compress if end.endswith("gz") else bytes
        name.write_bytes(packed(content + bytes(4)))
        assert read_image(name).pixels.shape == (1, 6, 5, 4)
        name.write_bytes(packed(content[:46] + struct.pack("<h", 3) + content[48:]))
        with pytest.raises(UnreadableImage, match="more than the"):
            read_image(name)

    def test_every_flipped_bit_of_a_gzip_file_is_noticed(self, tmp_path: Path) -> None:
        good = bytearray(self.write(tmp_path / "a.nii.gz", self.AFFINE, self.AFFINE).read_bytes())
        for place in range(len(good) // 4, len(good), max(1, len(good) // 16)):
            bad = bytearray(good)
            bad[place] ^= 0x10
            (tmp_path / "b.nii.gz").write_bytes(bad)
            with suppress(EOFError, OSError, zlib.error):
                if gzip.decompress(bad) == gzip.decompress(good):
                    continue  # a bit between the data and the checksum that nobody reads
            with pytest.raises(UnreadableImage):
                read_image(tmp_path / "b.nii.gz")


class TestPictures:
    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette", "grey"])
    def test_transparency_is_a_doubt_where_it_hides_something(self, tmp_path: Path, mode: str) -> None:
        """Opaque everywhere, as many programs save it, it says nothing."""
        for hidden in (False, True):
            picture = Image.fromarray((PICTURE % 200 + 20).astype(np.uint8))
            options: dict[str, Any] = {}
            if mode in ("RGBA", "LA"):
                picture = picture.convert(mode)
                picture.putalpha(Image.fromarray(np.where((PICTURE < 100) & hidden, 0, 255).astype(np.uint8)))
            elif mode in ("P", "palette"):
                picture = picture.convert("P")
                options["transparency"] = 20 if mode == "P" else bytes([255] * 20 + [0 if hidden else 255] * 200)
                if not hidden and mode == "P":
                    options.clear()
            else:
                picture = Image.fromarray(PICTURE.astype(np.uint16) + 300)
                options["transparency"] = int(PICTURE.max()) + 300 if hidden else 7
            picture.save(tmp_path / "a.png", **options)
            assert bool(read_image(tmp_path / "a.png").doubts) is hidden

    def test_a_damaged_jpeg_is_refused(self, tmp_path: Path) -> None:
        content = bytearray(bytes_of(PICTURE))
        (tmp_path / "a.jpg").write_bytes(content)
        assert read_image(tmp_path / "a.jpg").pixels.shape == (1, 128, 160)
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(UnreadableImage, match="damaged"):
            read_image(tmp_path / "a.jpg")

    def test_a_flipped_bit_in_a_png_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(PICTURE.astype(np.uint8)).save(tmp_path / "a.png")
        good = (tmp_path / "a.png").read_bytes()
        for place in range(45, len(good) - 14, len(good) // 9):
            bad = bytearray(good)
            bad[place] ^= 1
            (tmp_path / "a.png").write_bytes(bad)
            with pytest.raises(UnreadableImage, match="damaged"):
                read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("dtype", ["<u2", "<u4", ">u2", ">u4", "u1"])
    @pytest.mark.parametrize("white", [0, 1])
    def test_tiff_says_what_is_white(self, tmp_path: Path, dtype: str, white: int) -> None:
        """White-is-zero is turned, and 32 bits have no sign."""
        bits = np.dtype(dtype).itemsize * 8
        values = np.array([[0, 1, 2], [3, 2 ** (bits - 1) + 1, 2**bits - 1]], np.uint64)
        (tmp_path / "a.tif").write_bytes(tiff(values.astype(dtype), bits, white))
        expected = values if white else 2**bits - 1 - values
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[0], expected.astype(np.float32))

    @pytest.mark.parametrize("size", [27, 16, 8])
    def test_fewer_pixels_than_the_network_sees_are_not_accepted(self, chest: Contract, size: int) -> None:
        small = SourceImage(np.ones((1, size, 40), np.float32), Kind.RASTER)
        assert "enlarged" in fit(small, chest).doubts[0]
        assert not fit(SourceImage(np.ones((1, 28, 40), np.float32), Kind.RASTER), chest).doubts


def tiff(values: Any, bits: int, photometric: int) -> bytes:
    """An uncompressed grey TIFF in the array's byte order."""
    big = values.dtype.byteorder == ">"
    order = ">" if big else "<"
    rows, columns = values.shape
    entries = [(256, columns), (257, rows), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
               (278, rows), (279, values.nbytes), (339, 1)]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}I", 8 + values.nbytes)
    return head + values.tobytes() + directory + struct.pack(f"{order}I", 0)


class TestBombs:
    """What unpacks to more than the setting allows is refused before it is held in memory."""

    @pytest.fixture(autouse=True)
    def one_megabyte(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(UNPACKED, "1")

    def refused(self, path: Path) -> None:
        with pytest.raises(UnreadableImage, match=r"more than 1 MiB.*EQUIPOISE_UNPACKED_MEGABYTES"):
            read_image(path)

    def test_deflated_dicom(self, tmp_path: Path) -> None:
        for size, fits in ((1 << 18, True), (2 << 20, False)):
            path = deflated(tmp_path / "a.dcm", size)
            if fits:
                assert read_image(path).pixels.shape == (1, 4, 6)
            else:
                self.refused(path)

    def test_deflated_dicom_cut_off(self, tmp_path: Path) -> None:
        path = deflated(tmp_path / "a.dcm", 1 << 18)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UnreadableImage, match="cut off"):
            read_image(path)

    def test_gzipped_nifti(self, tmp_path: Path) -> None:
        nibabel.save(nibabel.Nifti1Image(np.zeros((80, 80, 80), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
        self.refused(tmp_path / "a.nii.gz")

    @pytest.mark.parametrize("ending", ["png", "tif"])
    def test_pictures(self, tmp_path: Path, ending: str) -> None:
        compression = {"compression": "tiff_deflate"} if ending == "tif" else {}
        Image.new("L", (1200, 1200)).save(tmp_path / f"a.{ending}", **compression)
        self.refused(tmp_path / f"a.{ending}")

    def test_compressed_frames(self, tmp_path: Path) -> None:
        dataset = jpeg(bytes_of(np.zeros((1200, 1200))))
        dataset.Rows = dataset.Columns = 1200
        self.refused(saved(dataset, tmp_path / "a.dcm"))

    def test_the_setting_is_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(UNPACKED, "much")
        with pytest.raises(InvalidInput, match="whole number of MiB"):
            unpacked_limit()


def deflated(path: Path, size: int) -> Path:
    """A small image with a private element of zeros."""
    dataset = dicom(ramp(4, 6))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    body, head = DicomBytesIO(), DicomBytesIO()
    for each in (body, head):
        each.is_little_endian, each.is_implicit_VR = True, False
    write_dataset(body, dataset)
    head.write(bytes(128) + b"DICM")
    write_file_meta_info(head, dataset.file_meta)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = body.getvalue() + struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"UN", 0, size) + bytes(size)
    path.write_bytes(head.getvalue() + packed.compress(content) + packed.flush())
    return path


class TestMessages:
    """They say what is wrong with this file; what is whole is not called damaged."""

    def message(self, path: Path) -> str:
        with pytest.raises(InvalidInput) as caught:
            read_image(path)
        assert "damaged" not in str(caught.value)
        return str(caught.value)

    def test_unknown_compression(self, tmp_path: Path) -> None:
        dataset = jpeg(b"\xff\x0a" + bytes(300))
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        path = saved(dataset, tmp_path / "a.dcm")
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.110"))
        assert "JPEG XL" in self.message(path)

    def test_gzipped_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(saved(dicom(ramp(4, 6)), tmp_path / "a.dcm").read_bytes()))
        assert "gunzip" in self.message(tmp_path / "a.dcm.gz")

    def test_zipped_study(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(saved(dicom(ramp(4, 6)), tmp_path / "a.dcm"), "a.dcm")
        assert "unpack it" in self.message(tmp_path / "a.zip")

    def test_dicomdir(self) -> None:
        path = Path(pydicom.data.get_testdata_file("DICOMDIR", download=False))
        assert "a list of files" in self.message(path)

    def test_an_object_without_an_image(self) -> None:
        assert "RT Plan Storage" in self.message(Path(get_testdata_file("rtplan.dcm", download=False)))

    def test_appledouble(self, tmp_path: Path) -> None:
        (tmp_path / "._a.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
        assert "AppleDouble" in self.message(tmp_path / "._a.dcm")

    def test_one_slice_of_a_series(self, tmp_path: Path, brain: Contract) -> None:
        with pytest.raises(InvalidInput, match="the folder that holds all slices"):
            fit(read_image(saved(dicom(ramp(4, 6)), tmp_path / "a.dcm")), brain)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-LL.dcm", "JPEG-lossy.dcm"])
def test_a_codestream_says_its_size(name: str) -> None:
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    assert size_of(frame) == (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    for end in range(0, min(len(frame), 200)):
        size_of(frame[:end])  # whatever is cut off: no exception


def _packaged() -> list[Path]:
    """DICOM files that installed packages ship: pydicom's tests, and pydicom-data where it is there."""
    folders = [Path(pydicom.__file__).parent / "data"]
    store = importlib.util.find_spec("data_store")
    folders += [Path(store.origin).parent] if store is not None and store.origin else []
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if path.read_bytes()[128:132] == b"DICM")


@pytest.mark.slow
def test_every_packaged_dicom_file_is_read_right_or_refused() -> None:
    """No other exception; and grey values are pydicom's, but for padding."""
    read, files = 0, _packaged()
    for file in files:
        try:
            image = read_image(file)
        except EquipoiseError:
            continue
        read += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file)
            simple = dataset.get("SamplesPerPixel") == 1 and dataset.PhotometricInterpretation == "MONOCHROME2"
            grouped = "PerFrameFunctionalGroupsSequence" in dataset
            if not simple or grouped or not _decodes(dataset):
                continue
            expected = np.asarray(apply_modality_lut(pixel_array(dataset), dataset), np.float64)
        inside = np.ones(image.pixels.shape[1:], bool) if image.padding is None else ~image.padding
        given = np.sort(image.pixels[0][inside])
        np.testing.assert_allclose(given, np.sort(expected.reshape(inside.shape)[inside]), atol=1e-2, err_msg=file.name)
    assert len(files) > 150 and read > 100


def _decodes(dataset: Dataset) -> bool:
    try:
        pixel_array(dataset)
    except (RuntimeError, NotImplementedError):
        return False
    return True
