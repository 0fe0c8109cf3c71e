"""Real image files, damaged: DICOM, NIfTI and PNG (JPEG and TIFF beside it), made from a case's number alone.

Run as a script it is the process that reads them, so that what hangs, eats memory or ends the interpreter does that
to it: `python -m tests.support.damaged_files KIND FIRST LAST FOLDER` prints one JSON line per file.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np
import pydicom
from equipoise_client import EquipoiseError, UncertaintyClient
from equipoise_client.errors import InvalidInput, StudyRejected
from equipoise_client.images import fit, read_image
from equipoise_client.transport import Retry
from equipoise_clinic.dicom.rules import Rules
from equipoise_clinic.dicom.study import select
from equipoise_clinic.gateway.analysis import AnalysisWorker
from equipoise_clinic.gateway.intake import Outcome
from equipoise_clinic.gateway.observe import silence_libraries
from equipoise_clinic.gateway.settings import Settings, Triton
from equipoise_clinic.gateway.spool import OutOfRoom
from equipoise_core.contract import load_contract
from PIL import Image, PngImagePlugin

from .desk import Desk
from .fuzzing import INTEGERS, damaged
from .studies import PLANTED, read, study

SEED = 20261122
SECONDS = 60  # for one file; an idle machine takes hundredths
MEMORY = 12 << 30  # of address space: pydicom sets aside, and does not touch, the 4 GB that an element may say it has
DICOM = (
    "CT_small", "MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_implicit",
    "MR_small_bigendian", "JPEG-lossy", "SC_rgb_rle_2frame", "SC_rgb_jpeg_dcmtk", "SC_rgb_small_odd", "image_dfl",
    "examples_palette", "nested_priv_SQ", "UN_sequence", "JPEG2000", "emri_small_RLE", "emri_small",
    "emri_small_jpeg_2k_lossless",
)  # fmt: skip
MODELS = Path(__file__).parents[2] / "model_repository"


def made(kind: str, number: int) -> bytes:
    """The damaged file of this number."""
    random = Random(f"{SEED}:{kind}:{number}")
    if kind == "raster":
        return _raster(random)
    if kind == "nifti":
        return _nifti(random)
    return _dicom(random, number)


# DICOM


@cache
def _dicom_sources() -> tuple[bytes, ...]:
    """Files of pydicom and pydicom-data under a planted name, and small series of our own."""
    folders = [_package("pydicom") / "data/test_files", _package("data_store") / "data"]
    sources = []
    for name in DICOM:
        file = next((folder / f"{name}.dcm" for folder in folders if (folder / f"{name}.dcm").exists()), None)
        if file is None:
            continue
        dataset = pydicom.dcmread(file)
        for planted, value in PLANTED.items():
            setattr(dataset, planted, value)
        sources.append(_written(dataset))
    return (*sources, *study(count=3, rows=16, columns=12))


def _written(dataset: Any) -> bytes:
    """As it is: nothing is added that the standard asks for."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=False)
    return file.getvalue()


def _dicom(random: Random, number: int) -> bytes:
    dataset = read(random.choice(_dicom_sources()))
    dataset.StudyInstanceUID, dataset.SOPInstanceUID = f"1.2.826.0.1.{number}", f"1.2.826.0.1.{number}.1"
    source = _written(dataset)
    way = random.random()
    if way < 0.35:
        return damaged(random, source, hot=1400)
    if way < 0.45:
        return _other_lengths(random, source)
    if way < 0.5:
        return _other_representation(random, source)
    if way < 0.53:
        return _nested(random, source)
    for _ in range(random.choice((1, 1, 2))):
        random.choice(_CHANGES)(random, dataset)
    try:
        return _written(dataset)
    except Exception:  # noqa: BLE001 (pydicom will not write it: then the bytes themselves)
        return damaged(random, source, hot=1400)


def _other_lengths(random: Random, source: bytes) -> bytes:
    """An element says that it is longer or shorter than it is."""
    data = bytearray(source)
    starts = [at for at in range(132, min(len(data) - 12, 4000)) if data[at + 4 : at + 6].isalpha()]
    if starts:
        at = random.choice(starts)
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC")
        place, width = (at + 8, 4) if long else (at + 6, 2)
        value = random.choice((0, 1, 2**31, 2**32 - 1, 2**32 - 2, 2**16 - 1, 0xFFFE))
        data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _other_representation(random: Random, source: bytes) -> bytes:
    """An element of another value representation."""
    data = bytearray(source)
    starts = [at for at in range(132, min(len(data) - 12, 4000)) if data[at + 4 : at + 6].isalpha()]
    if starts:
        at = random.choice(starts)
        data[at + 4 : at + 6] = random.choice((b"US", b"SQ", b"OB", b"UN", b"DS", b"PN", b"FD", b"AT", b"XX", b"\0\0"))
    return bytes(data)


def _nested(random: Random, source: bytes) -> bytes:
    """Sequences in sequences in the place of the functional groups, few of them closed."""
    opened = b"\x00\x52\x30\x92SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    closed = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    depth = random.choice((3, 60, 400, 5000))
    at = source.find(b"\xe0\x7f\x10\x00")
    return source[:at] + opened * depth + closed * random.choice((0, 1, depth)) + source[at:]


def _set(name: str, *values: Any) -> Callable[[Random, Any], None]:
    def change(random: Random, dataset: Any) -> None:
        setattr(dataset, name, random.choice(values))

    return change


def _pixels(random: Random, dataset: Any) -> None:
    content = bytes(dataset.get("PixelData", b""))
    if "PixelData" in dataset:
        half, hurt = content[: len(content) // 2], damaged(random, content, hot=64)
        dataset["PixelData"]._value = random.choice((b"", b"\0", half, content + bytes(2), hurt))


def _without(random: Random, dataset: Any) -> None:
    name = random.choice(
        ("PixelData", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "SOPClassUID",
         "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PixelRepresentation", "BitsStored", "Modality")
    )  # fmt: skip
    if name in dataset:
        del dataset[name]


def _syntax(random: Random, dataset: Any) -> None:
    numbers = ("", ".1", ".2", ".1.99", ".5", ".4.50", ".4.57", ".4.80", ".4.90", ".4.100")
    dataset.file_meta.TransferSyntaxUID = random.choice(
        (*(f"1.2.840.10008.1.2{each}" for each in numbers), "1.2.3", "")
    )


def _modality_lut(random: Random, dataset: Any) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = random.choice(([0, 0, 16], [2, 0, 16], [65535, 65535, 99]))
    table.LUTData = random.choice(([1, 2], [0] * 10))
    dataset.ModalityLUTSequence = [table]


def _deflated_bomb(random: Random, dataset: Any) -> None:
    """64 MB of zeros behind a few kilobytes."""
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    if "PixelData" in dataset:
        dataset["PixelData"]._value = bytes(64 << 20)


def _text_for_a_number(random: Random, dataset: Any) -> None:
    name = random.choice(("RescaleSlope", "RescaleIntercept", "PixelSpacing", "NumberOfFrames", "ImagePositionPatient"))
    value = random.choice(("", "0", "-1", "1e308", "nan", "inf", "-inf", "abc", "1\\2\\3\\4", "1E-320"))
    dataset.add_new(name, "LO", value)


_CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _set("Rows", 0, 1, 65535, 20_000),
    _set("Columns", 0, 1, 65535, 20_000),
    _set("NumberOfFrames", 0, -1, 2, 10**6, 2**31 - 1),
    _set("BitsAllocated", 0, 1, 7, 8, 16, 32, 64, 65535),
    _set("BitsStored", 0, 1, 33, 65535),
    _set("HighBit", 0, 65535),
    _set("SamplesPerPixel", 0, 2, 3, 4, 65535),
    _set("PixelRepresentation", 1, 2, 65535),
    _set("PhotometricInterpretation", "", "MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL_422", "XX"),
    _set("PlanarConfiguration", 1, 2, 65535),
    _set("StudyInstanceUID", "", "../../etc/passwd", "1." * 40, "1.2\\3.4", "1.2\0"),
    _set("SeriesInstanceUID", "", "../x", "1.2.3"),
    _set("SOPInstanceUID", "", "/etc/passwd", "1.2.3.4.5", "1" * 200),
    _set("SOPClassUID", "", "1.2.840.10008.5.1.4.1.1.$", "1.2.3", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.1"),
    _set("Modality", "", "CT", "X" * 300),
    _set("SpecificCharacterSet", "ISO 2022 IR 87", "NONE", "\\\\\\"),
    _set("PixelSpacing", [0, 0], [-1, 1], [1e-300, 1e300], [1], [1, 2, 3]),
    _set("ImagePositionPatient", [0, 0], [1e300] * 3, [0, 0, 0]),
    _set("ImageOrientationPatient", [0] * 6, [1] * 6, [1, 0, 0]),
    _pixels, _pixels, _without, _without, _syntax, _syntax, _modality_lut, _deflated_bomb, _text_for_a_number,
    _text_for_a_number,
)  # fmt: skip


# NIfTI


@cache
def _nifti_sources() -> tuple[bytes, ...]:
    """The template that the demo shows, cropped; in both versions of the format; a patient in the free text."""
    template: Any = nibabel.load(_package("nilearn") / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    crop = np.asarray(template.dataobj[60:80, 90:115, 60:78])
    files = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for values in (crop.astype(np.float32), crop.astype(np.int16)):
            image = kind(values, template.affine)
            image.header["descrip"] = PLANTED["PatientName"].encode()
            files.append(image.to_bytes())
    return tuple(files)


def _nifti(random: Random) -> bytes:
    source = random.choice(_nifti_sources())
    way = random.random()
    if way < 0.4:
        source = damaged(random, source, hot=352)
    else:
        for _ in range(random.choice((1, 1, 2, 3))):
            source = _header_field(random, source)
    if random.random() < 0.4:
        bomb = bytes(random.choice((0, 0, 0, 32 << 20)))
        source = gzip.compress(source + bomb, compresslevel=1)
        if random.random() < 0.5:
            source = damaged(random, source)
    return source


def _header_field(random: Random, source: bytes) -> bytes:
    """A field of the header, by its place: sizes, type, spacing, offset, scale, orientation."""
    first = source[:4] == struct.pack("<i", 348)
    fields: list[tuple[str, int, int]] = (
        [("h", 40, 8), ("h", 70, 2), ("f", 76, 8), ("f", 108, 1), ("f", 112, 2), ("h", 252, 2), ("f", 280, 12)]
        if first
        else [("q", 16, 8), ("h", 12, 2), ("d", 104, 8), ("q", 168, 1), ("d", 176, 2), ("i", 344, 2), ("d", 400, 12)]
    )
    kind, start, count = random.choice(fields)
    width = struct.calcsize(kind)
    at = start + width * random.randrange(count)
    if kind in "fd":
        value: Any = random.choice((0.0, -1.0, 1e-38, 3e38, float("nan"), float("inf"), 1e9, 352.0, 1.5))
    else:
        bits = 8 * width
        value = (random.choice((*INTEGERS, 3, 7, 1792, 20_000, 511)) + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    return source[:at] + struct.pack(f"<{kind}", value) + source[at + width :]


# PNG, JPEG, TIFF


@cache
def _raster_sources() -> tuple[bytes, ...]:
    """The demo's microscopy in the formats and modes that there are; a patient in a PNG's text."""
    nuclei = np.asarray(Image.open(_package("stardist") / "data/images/img2d.tif"))[:96, :80]
    grey = Image.fromarray((nuclei / max(1, nuclei.max()) * 255).astype(np.uint8))
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", PLANTED["PatientName"])
    text.add_text("Comment", PLANTED["PatientID"], zip=True)
    files = []
    for mode in ("L", "RGB", "P", "I;16", "LA", "1"):
        image = grey.convert("I").convert(mode) if mode == "I;16" else grey.convert(mode)
        file = io.BytesIO()
        image.save(file, "PNG", pnginfo=text)
        files.append(file.getvalue())
    for kind in ("JPEG", "TIFF"):
        file = io.BytesIO()
        grey.save(file, kind)
        files.append(file.getvalue())
    return tuple(files)


def _raster(random: Random) -> bytes:
    source = random.choice(_raster_sources())
    if not source.startswith(b"\x89PNG") or random.random() < 0.3:
        return damaged(random, source, hot=120)
    chunks = [(name, content) for name, content in _chunks(source)]
    for _ in range(random.choice((1, 1, 2))):
        _CHUNK_CHANGES[random.randrange(len(_CHUNK_CHANGES))](random, chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


Chunks = list[tuple[bytes, bytes]]


def _chunks(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(source):
        length = int.from_bytes(source[at : at + 4], "big")
        yield source[at + 4 : at + 8], source[at + 8 : at + 8 + length]
        at += length + 12


def _chunk(name: bytes, content: bytes) -> bytes:
    """With a checksum that is right: what is damaged has to get as far as the decoder."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _header(random: Random, chunks: Chunks) -> None:
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1][:13].ljust(13, b"\0"))
    width, height = (random.choice((size, size, 0, 1, 60_000, 9_000, 2**31 - 1, 2**32 - 1)) for size in (width, height))
    rest[random.randrange(5)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", width, height, *rest))


def _one_content(random: Random, chunks: Chunks) -> None:
    at = random.randrange(len(chunks))
    chunks[at] = (chunks[at][0], damaged(random, chunks[at][1]))


def _bomb(random: Random, chunks: Chunks) -> None:
    packed = zlib.compress(bytes(64 << 20), 9)
    name, content = random.choice(((b"IDAT", packed), (b"zTXt", b"a\0\0" + packed), (b"iCCP", b"a\0\0" + packed)))
    chunks.insert(random.randrange(1, len(chunks) + 1), (name, content))


def _order(random: Random, chunks: Chunks) -> None:
    random.shuffle(chunks)


def _lost(random: Random, chunks: Chunks) -> None:
    del chunks[random.randrange(len(chunks))]
    if not chunks:
        chunks.append((b"IEND", b""))


def _renamed(random: Random, chunks: Chunks) -> None:
    at = random.randrange(len(chunks))
    names = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fdAT", bytes(4), b"eXIf")
    chunks[at] = (random.choice(names), chunks[at][1])


_CHUNK_CHANGES = (_header, _header, _one_content, _one_content, _bomb, _order, _lost, _renamed)


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations, f"{name} is missing: pip install 'equipoise[test]'"
    return Path(next(iter(spec.submodule_search_locations)))


def _suffix(kind: str, content: bytes) -> str:
    """What a file of this kind is called."""
    begins = {b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"\x1f\x8b": ".nii.gz"}
    found = next((suffix for magic, suffix in begins.items() if content.startswith(magic)), None)
    return found or {"nifti": ".nii", "raster": ".png"}.get(kind, ".dcm")


# What is done with them


def looked_at(kind: str, path: Path) -> str:
    """What the client made of it: `image`, or the error's name and text. Raises what must not be raised."""
    try:
        image = read_image(path)
    except EquipoiseError as error:
        return f"{type(error).__name__}: {error}"
    assert image.pixels.dtype == np.float32 and image.pixels.size and np.isfinite(image.pixels).all()
    for name in ("hippocampus", "pneumonia"):
        try:
            assert np.isfinite(fit(image, _contract(name)).pixels).all(), "not finite after resampling"
        except InvalidInput as error:
            assert str(error)
    return "image"


@cache
def _contract(name: str) -> Any:
    return load_contract(MODELS / name / "1" / "contract.json")


def selected(folder: Path) -> str:
    """What the study reader made of a folder with it: `chosen`, or the reason."""
    try:
        for chosen in select(folder, Rules.for_model("any")):
            chosen.series.image()
    except StudyRejected as error:
        return f"{type(error).__name__}: {error}"
    return "chosen"


class Gateway:
    """Intake, store, spool and analyst over a folder; the server that is asked is not there."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk(folder)
        settings = Settings(
            folder, folder / "rules.toml", folder / "audit", triton=Triton(url="127.0.0.1:9", longest_seconds=1e6)
        )
        client = UncertaintyClient("127.0.0.1:9", timeout=60.0, retry=Retry(1))
        desk = self.desk
        self.analysis = AnalysisWorker(
            settings, Rules.for_model("any"), client, desk.spool, desk.store, desk.log, desk.metrics, lambda point: None
        )

    def take(self, content: bytes) -> str:
        """What became of an object, after it was looked for where it has to be; then its study is analysed."""
        desk, root = self.desk, self.desk.directory
        try:
            outcome = desk.intake.take(content, 0.0, "fuzz")
        except OutOfRoom:
            return "refused"
        if outcome is Outcome.ASIDE:
            assert content in [file.read_bytes() for file in (root / "aside").iterdir()], "set aside, and not kept"
        if outcome is Outcome.TAKEN:
            assert content in [file.read_bytes() for file in (root / "incoming").glob("*/*")], "taken, and not kept"
        if outcome is Outcome.IGNORED:
            name = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SOPClassUID.name
            known = name in {entry[0] for entry in pydicom.uid.UID_dictionary.values()}
            assert known and "Image Storage" not in name, f"an image that was acknowledged is gone ({name!r})"
        assert not list((root / "temporary").iterdir())
        while desk.store.studies.next()[0] is not None:
            self.analysis.step()
        states = [(each.state, each.key) for each in desk.store.studies.all()]
        errors = [line for line in desk.lines() if line["level"] == "error"]
        text, desk.text = desk.text.getvalue(), io.StringIO()
        desk.log._stream = desk.text
        assert not errors, errors
        assert "dead" not in {state for state, _ in states}
        return f"{outcome.value}, log: {text}"


def main(kind: str, first: int, last: int, folder: Path) -> None:
    silence_libraries()
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, soft))
    gateway = Gateway(folder / "gateway") if kind == "gateway" else None
    for number in range(first, last):
        content = made(kind, number)
        path = folder / f"{number}" / f"case{_suffix(kind, content)}"
        path.parent.mkdir()
        path.write_bytes(content)
        print(json.dumps({"number": number}), flush=True)
        signal.alarm(SECONDS)  # ends the process, also within a decoder in C
        begun = time.monotonic()
        try:
            told = gateway.take(content) if gateway else looked_at(kind, path)
            studied = selected(path.parent) if kind == "dicom" else ""
            wrong = ""
        except BaseException as error:  # noqa: BLE001 (whatever it is: that is what is looked for)
            told = studied = ""
            wrong = f"{type(error).__name__}: {error} at {_place(error)}"
        signal.alarm(0)
        peak = peak_memory()
        seconds = time.monotonic() - begun
        outcome = {"number": number, "told": told, "studied": studied, "wrong": wrong, "seconds": seconds, "peak": peak}
        print(json.dumps(outcome), flush=True)
        path.unlink()
        path.parent.rmdir()


def peak_memory() -> int:
    """MB that this process took at most. Not `ru_maxrss`: there a new process starts with the peak of its parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
