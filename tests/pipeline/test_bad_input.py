"""What cannot be answered gets an error that says why, and the next good request is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from equipoise_client import InvalidInput, Route, UncertaintyClient, UnknownModel
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from ..support.asking import MODELS, SMALL, ask, case, inputs_of, kind_of, picture, text

pytestmark = pytest.mark.triton

GENERATOR = np.random.default_rng(0)
VOLUME = GENERATOR.normal(100.0, 20.0, (1, 16, 16, 16)).astype(np.float32)
ROUTE = ("route", "reason")

BAD_REQUEST = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}
NOT_FOUND = {"grpc": "StatusCode.NOT_FOUND", "http": "404"}


def _with(value: float) -> NDArray[np.float32]:
    volume = VOLUME.copy()
    volume[0, 3, 3, 3] = value
    return volume


def _rows(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {**case(VOLUME), name: values}


@dataclass(frozen=True)
class Bad:
    """A request that cannot be answered.

    Attributes:
        says: what its error has to mention: what was given and what is expected.
        status: by protocol.
    """

    name: str
    tensors: dict[str, NDArray[Any]]
    says: tuple[str, ...]
    model: str = "hippocampus"
    outputs: tuple[str, ...] = ROUTE
    status: dict[str, str] = field(default_factory=lambda: BAD_REQUEST)


BAD = (
    Bad("two channels", {"image": np.zeros((1, 2, 16, 16, 16), np.float32)}, ("'image'", "[-1,1,", "[1,2,16,16,16]")),
    Bad("a size not fit for the model", case(np.zeros((1, 29, 29), np.float32)), ("28", "29"), model="pneumonia"),
    Bad("rank", {"image": np.zeros((1, 1, 16, 16), np.float32)}, ("'image'", "[-1,1,-1,-1,-1]", "[1,1,16,16]")),
    Bad("type", {"image": VOLUME[None].astype(np.float64)}, ("'image'", "FP64", "FP32")),
    Bad("NaN", case(_with(np.nan)), ("1 value", "NaN", "finite")),
    Bad("infinite", case(_with(-np.inf)), ("1 value", "infinite", "finite")),
    Bad("no image among N", {"image": np.zeros((0, 1, 16, 16, 16), np.float32)}, ("N is 0", "at least one")),
    Bad("no voxels", case(np.zeros((1, 0, 16, 16), np.float32)), ("empty", "[1, 0, 16, 16]")),
    Bad("no input `image`", {"samples": np.array([[2]], np.int32)}, ("image", "FP32")),
    Bad("an input that is not known", _rows("mask", np.zeros((1, 1), np.float32)), ("unexpected", "'mask'")),
    Bad("no samples", case(VOLUME, samples=0), ("samples is 0", "between 1 and")),
    Bad("a million samples", case(VOLUME, samples=10**6), ("samples is 1000000", "between 1 and")),
    Bad("samples below zero", case(VOLUME, samples=-1), ("samples is -1", "between 1 and")),
    Bad("two rows of samples", _rows("samples", np.ones((2, 1), np.int32)), ("samples has 2 rows", "1 image")),
    Bad("two seeds", _rows("seed", np.zeros((2, 1), np.uint64)), ("seed has 2 rows", "1 image")),
    Bad("a signed seed", _rows("seed", np.zeros((1, 1), np.int64)), ("'seed'", "INT64", "UINT64")),
    Bad("negative spacing", case(VOLUME, spacing=(1, -1, 1)), ("spacing is [1.0, -1.0, 1.0]", "above 0")),
    Bad("spacing of zero", case(VOLUME, spacing=(0, 1, 1)), ("spacing is [0.0, 1.0, 1.0]", "above 0")),
    Bad("spacing NaN", case(VOLUME, spacing=(1, np.nan, 1)), ("spacing is [1.0, nan, 1.0]", "finite")),
    Bad("spacing of another rank", case(VOLUME, spacing=(1, 1)), ("'spacing'", "[-1,3]", "[1,2]")),
    Bad("two spacings", _rows("spacing", np.ones((2, 3), np.float32)), ("spacing has 2 rows", "1 image")),
    Bad("unknown model", case(VOLUME), ("unknown model", "'hippocampi'"), model="hippocampi", status=NOT_FOUND),
    Bad("unknown output", case(VOLUME), ("unexpected", "'median'"), outputs=("median",)),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_stock_client_is_told_what_is_wrong(stock, request, bad):
    """The status says that the request is at fault, the message what was given and expected; a good one is answered."""
    with pytest.raises(InferenceServerException) as caught:
        ask(stock, bad.model, bad.tensors, bad.outputs)
    protocol = request.node.callspec.params["stock"]
    assert caught.value.status() == bad.status[protocol], caught.value
    for words in bad.says:
        assert words in caught.value.message()
    _assert_lives(stock)


def _assert_lives(stock) -> None:
    answer = ask(stock, "hippocampus", case(VOLUME, samples=2), ("samples_used", "route"))
    assert int(answer["samples_used"][0, 0]) == 2
    assert text(answer["route"]) in {route.value for route in Route}


@pytest.mark.parametrize(
    ("image", "bits", "code"),
    [((1, 1, 32, 32), (1, 2, 27), ("StatusCode.INVALID_ARGUMENT", "400")),
     ((1, 1, 33, 33), (1, 2, 28), ("StatusCode.INTERNAL", "500"))],
)  # fmt: skip
def test_a_sampler_that_is_asked_directly_says_the_same_on_every_backend(stock, image, bits, code):
    """Triton refuses what the configuration excludes, ONNX Runtime what the network cannot take; both live on."""
    tensors = {"image": np.zeros(image, np.float32), "masks": np.zeros(bits, np.uint8)}
    with pytest.raises(InferenceServerException) as caught:
        ask(stock, "nuclei_sampler", tensors, ("volumes",))
    assert caught.value.status() in code
    assert ("onnx runtime error" in caught.value.message()) == (code[1] == "500"), caught.value
    _assert_lives(stock)


def test_bytes_that_do_not_fill_the_shape_are_refused(stock):
    """A body that is too short for its shape is an error and not an image with something behind it."""
    (image,) = inputs_of(kind_of(stock), case(VOLUME))
    image.set_shape([1, 1, 16, 16, 32])
    with pytest.raises(InferenceServerException, match=r"(?i)byte.* size|size.* bytes"):
        stock.infer("hippocampus", [image])
    _assert_lives(stock)


@pytest.mark.parametrize("model", MODELS)
def test_naming_no_outputs_gets_them_all(stock, contracts, model):
    """The laziest request there is, an image and nothing else, is answered with every output, whatever the task."""
    image = picture(contracts[model], SMALL[model][0], seed=0)
    answer = stock.infer(model, inputs_of(kind_of(stock), case(image, samples=2)))
    assert answer.as_numpy("mean").shape[:2] == (1, len(contracts[model].classes))
    for name in ("volume", "volume_total"):
        assert np.isnan(answer.as_numpy(name)).all(), "without a spacing no volume is known, nor that it is 0"
    assert text(answer.as_numpy("route")) != "accept"


OURS = (
    ("channels", {"image": np.zeros((2, 16, 16, 16))}, InvalidInput, ("[2, 16, 16, 16]", "C = 1")),
    ("rank", {"image": np.zeros((16, 16))}, InvalidInput, ("[16, 16]", "[C, X, Y, Z]")),
    ("type", {"image": np.zeros((1, 16, 16, 16), complex)}, InvalidInput, ("complex128", "real numbers")),
    ("NaN", {"image": _with(np.nan)}, InvalidInput, ("1 of 4096 values", "NaN", "finite")),
    ("infinite", {"image": _with(np.inf)}, InvalidInput, ("1 of 4096 values", "infinite", "finite")),
    ("empty", {"image": np.zeros((1, 0, 16, 16))}, InvalidInput, ("empty", "[1, 0, 16, 16]")),
    ("no samples", {"image": VOLUME, "samples": 0}, InvalidInput, ("samples", "at least 1", "0")),
    ("a million samples", {"image": VOLUME, "samples": 10**6}, InvalidInput, ("1000000", "between 1 and")),
    ("negative spacing", {"image": VOLUME, "spacing": (1, -1, 1)}, InvalidInput, ("(1, -1, 1)", "above 0", "mm")),
    ("spacing NaN", {"image": VOLUME, "spacing": (1, np.nan, 1)}, InvalidInput, ("nan", "finite", "mm")),
    ("seed", {"image": VOLUME, "seed": -1}, InvalidInput, ("-1", "2**64 - 1")),
    ("unknown model", {"name": "hippocampi", "image": VOLUME}, UnknownModel, ("hippocampi", "published")),
)


@pytest.mark.parametrize(("arguments", "kind", "says"), [o[1:] for o in OURS], ids=[o[0] for o in OURS])
def test_our_client_raises_what_is_wrong(server, arguments, kind, says):
    """The error's type can be caught, its message can be acted upon, and the client goes on working."""
    with UncertaintyClient(server.grpc_url) as client:
        with pytest.raises(kind) as caught:
            client.predict(**{"name": "hippocampus", **arguments})
        for words in says:
            assert words in str(caught.value)
        assert client.predict("hippocampus", VOLUME, samples=2, outputs=()).samples_used == 2


def test_our_client_wants_one_seed_for_each_image(server):
    """Seeds and images have to pair up: two seeds for three images are refused."""
    with UncertaintyClient(server.grpc_url) as client:
        with pytest.raises(InvalidInput, match="2 seeds for 3 images"):
            client.predict_batch("hippocampus", np.stack([VOLUME] * 3), seeds=(1, 2))
        assert len(client.predict_batch("hippocampus", np.stack([VOLUME] * 2), seeds=(1, 2), samples=2)) == 2


def _faulty_files(folder: Path) -> dict[Path, tuple[str, ...]]:
    """File → what its error has to mention."""
    whole = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False)).read_bytes()
    (folder / "truncated.dcm").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "header-only.dcm").write_bytes(whole[:200])
    (folder / "notes.png").write_text("The patient was seen on Monday.\n")
    (folder / "empty.png").touch()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:45])
    np.save(folder / "renamed.npy", np.zeros((32, 32), np.float32))
    (folder / "renamed.npy").rename(folder / "renamed.dcm")
    np.save(folder / "not-finite.npy", np.full((32, 32), np.nan, np.float32))
    return {
        folder / "truncated.dcm": ("cut off", "fetch it from the archive again"),
        folder / "header-only.dcm": ("cut off",),
        folder / "notes.png": ("looks like text", "expected PNG"),
        folder / "empty.png": ("empty", "0 bytes"),
        folder / "missing.png": ("no such file",),
        folder / "cut.png": ("cut off",),
        folder / "renamed.dcm": ("named as DICOM", "NumPy"),
        folder / "not-finite.npy": ("NaN",),
    }


def test_predict_tells_each_faulty_file_and_decides_the_good_ones(server, tmp_path):
    """Each bad file gets its own error and goes to review, the good one gets its decision; the exit code is 1."""
    faulty = _faulty_files(tmp_path)
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)).save(good)
    command = [sys.executable, "-m", "equipoise_client.cli.main", "predict", "nuclei"]
    files = [*map(str, faulty), str(good)]
    done = subprocess.run(
        [*command, *files, "--url", server.grpc_url, "--samples", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = {entry["file"]: entry for entry in json.loads(done.stdout)}
    for file, says in faulty.items():
        entry = told[str(file)]
        assert entry["route"] == "review"
        assert entry["case_score"] is None and entry["record"] is None
        assert file.name in entry["error"]
        for words in says:
            assert words in entry["error"]
        assert "Monday" not in entry["error"], "what stands in a file is not for the log"
    assert "error" not in told[str(good)] and told[str(good)]["samples_used"] == 2


def test_a_name_with_a_typo_is_answered_with_what_is_served(server, tmp_path):
    """Whoever asks is told the names, by a server that closes the index of its repository."""
    with UncertaintyClient(server.grpc_url) as client:
        assert set(client.models()) >= {"hippocampus", "pneumonia", "nuclei"}
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "equipoise_client.cli.main", "predict", "pnuemonia", str(tmp_path / "a.png")]
    done = subprocess.run([*command, "--url", server.grpc_url, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)
    assert found["route"] == "review" and "it serves" in found["error"] and "pneumonia" in found["error"]
