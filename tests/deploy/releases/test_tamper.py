"""One bit anywhere in what decides about patients: found, named, refused."""

from __future__ import annotations

import json
import random
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from equipoise_client.cli.replay import asked, differences, read_record
from equipoise_client.errors import InvalidInput
from equipoise_clinic.audit import Kind, append, verify
from equipoise_core.case import Case
from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.bundle.making import make_bundle
from equipoise_deploy.bundle.manifest import MANIFEST, SIGNATURE, unpack
from equipoise_deploy.errors import ReleaseError, TamperedError
from equipoise_deploy.promotion.promotion import PromotionRequest, promote
from equipoise_deploy.releases.loading import verified_copy
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.release import digests, read_release, verify_release
from equipoise_deploy.releases.store import Store, read_generation
from equipoise_export.graph.session import published_samplers

from ...support.releases import Keys, make_keys
from ..bundle.test_bundle import write_wheel

REPOSITORY = Path(__file__).parents[3] / "model_repository"

KINDS = (
    "pneumonia_sampler/1/model.onnx",
    "pneumonia_sampler/1/model.py",
    "pneumonia_sampler/1/proof.json",
    "pneumonia_sampler/config.pbtxt",
    "pneumonia_sampler/configs/embedded.pbtxt",
    "pneumonia/1/contract.json",
    "pneumonia/1/policy.json",
    "pneumonia/1/model.py",
    "pneumonia/1/equipoise_core/decision.py",
    "pneumonia/1/equipoise_core/__init__.py",
    "pneumonia/config.pbtxt",
    "pneumonia/README.md",
    "release.json",
    "release.sig",
)
"""Every kind of file that a release consists of."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, keys) -> Store:
    """The real pneumonia model, published, signed and in service; every file can be written for the test."""
    store = Store(tmp_path_factory.mktemp("tamper") / "store")
    make_release(REPOSITORY, "pneumonia", store, keys.private)
    promote(store, "pneumonia", PromotionRequest(trust=keys.public))
    for path in store.path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return store


def flips(content: bytes, count: int, seed: object) -> Iterator[bytes]:
    """`count` copies of it, each with one bit changed somewhere."""
    chance = random.Random(repr(seed))
    for _ in range(count):
        place = chance.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def each_flip(path: Path, count: int, check: Callable[[], None]) -> None:
    """Calls `check` with the file changed, and puts it back."""
    content = path.read_bytes()
    try:
        for changed in flips(content, count, path.name):
            path.write_bytes(changed)
            check()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_one_bit_of_a_release_is_found_and_named(store, keys, kind):
    """Twenty places in each kind of file."""
    folder = store.folder("pneumonia", 1)
    verify_release(folder, keys.public)

    def refused() -> None:
        with pytest.raises(TamperedError) as caught:
            verify_release(folder, keys.public)
        assert str(folder / kind) in str(caught.value) and ". " in str(caught.value)

    each_flip(folder / kind, 20, refused)
    verify_release(folder, keys.public)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "release.sig"])
def test_one_bit_is_found_without_a_key_too(store, kind, tmp_path):
    """By the digests, at the place where a server loads it; the message names the store's file, not the copy's."""

    def refused() -> None:
        with pytest.raises(TamperedError) as caught:
            verified_copy(store.current, tmp_path / "copy")
        assert str(store.folder("pneumonia", 1) / kind) in str(caught.value)
        shutil.rmtree(tmp_path / "copy")

    each_flip(store.folder("pneumonia", 1) / kind, 3, refused)


def test_digests_that_were_made_to_fit_are_found_by_the_signature(store, keys):
    """Whoever changes a file and writes a new `release.json` has no key."""
    folder = store.folder("pneumonia", 1)
    policy, document = folder / "pneumonia/1/policy.json", folder / "release.json"
    before = policy.read_bytes(), document.read_bytes()
    try:
        policy.write_bytes(re.sub(rb'"accept_up_to": [0-9.]+', b'"accept_up_to": 0.95', before[0], count=1))
        forged = vars(read_release(folder)) | {
            "files": {n: f for n, f in digests(folder).items() if not n.startswith("release.")}
        }
        forged.pop("digest", None)
        document.write_text(type(read_release(folder))(**forged).dumps())
        verify_release(folder)
        with pytest.raises(TamperedError, match=r"release\.sig does not hold"):
            verify_release(folder, keys.public)
    finally:
        policy.write_bytes(before[0])
        document.write_bytes(before[1])


@pytest.mark.parametrize(
    "extra", ["pneumonia/1/equipoise_core/__pycache__/decision.cpython-311.pyc", "pneumonia/1/numpy.py"]
)
def test_a_file_that_was_added_is_found(store, extra):
    """Python would rather load it than the validated one."""
    path = store.folder("pneumonia", 1) / extra
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    try:
        with pytest.raises(TamperedError, match="does not belong to release pneumonia 1"):
            verify_release(store.folder("pneumonia", 1))
    finally:
        path.unlink()


@pytest.mark.parametrize("how", ["removed", "linked"])
def test_a_file_that_was_lost_or_replaced_by_a_link_is_found(store, how, tmp_path):
    """A link could lead to something else the next time."""
    path = store.folder("pneumonia", 1) / "pneumonia/1/policy.json"
    kept = tmp_path / "policy.json"
    shutil.move(path, kept)
    if how == "linked":
        path.symlink_to(kept)
    try:
        with pytest.raises(TamperedError, match="is missing" if how == "removed" else "is a link"):
            verify_release(store.folder("pneumonia", 1))
    finally:
        path.unlink(missing_ok=True)
        shutil.move(kept, path)


def test_one_bit_of_what_is_in_service_is_found(store):
    """All of it: version, digests, where a rollback would go."""
    path = store.current.resolve() / "generation.json"

    def refused() -> None:
        with pytest.raises(TamperedError, match=r"generation\.json"):
            read_generation(path.parent)

    each_flip(path, 200, refused)


def test_one_bit_of_a_plain_repository_is_never_another_model(tmp_path):
    """Without a release nothing states what a file should be; what is loaded means what it meant, or is refused."""
    for part in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass"):
        shutil.copytree(REPOSITORY / part, tmp_path / part)
    original, folder = load_model(tmp_path / "pneumonia/1"), tmp_path / "pneumonia/1"

    def meant_the_same() -> None:
        try:
            found = load_model(folder)
        except ContractError:
            return
        # A policy that was changed, or whose model was, is not in force: everything goes to review.
        assert found.in_force is None or (found.in_force == original.policy and found.contract == original.contract)

    for name in ("contract.json", "policy.json"):
        each_flip(folder / name, 300, meant_the_same)


@pytest.fixture(scope="module")
def record() -> dict:
    """As the core makes it, of the real model."""
    model = load_model(REPOSITORY / "pneumonia/1", computed_by={"onnxruntime": "1.31", "device": "a processor"})
    samplers, first_pass = published_samplers(REPOSITORY, model.contract)
    image = np.random.default_rng(1).normal(500, 100, (1, 28, 28)).astype(np.float32)
    return assess(model, Case(image), samplers, first_pass=first_pass).record


def test_one_bit_of_a_record_shows_when_it_is_replayed(record, tmp_path):
    """Or it cannot be read, or it moved a number by less than a replay tolerates, or it is about the circumstances."""
    path, found = tmp_path / "record.json", {"refused": 0, "differs": 0, "tolerated": 0}
    for changed in flips(json.dumps(record).encode(), 600, "record"):
        path.write_bytes(changed)
        try:
            read = read_record(path)
            asked(read)
        except InvalidInput:
            found["refused"] += 1
            continue
        if list(differences(read, record)):
            found["differs"] += 1
            continue
        found["tolerated"] += 1
        odd = [name for name in {*read, *record} if read.get(name) != record.get(name)]
        for name in set(odd) - {"computed_by", "problems"}:
            for one, other in _numbers(read[name], record[name]):
                assert abs(one - other) <= 1e-5 * max(1.0, abs(other)), name
    assert found["refused"] > 100 and found["differs"] > 150 and found["tolerated"] < 80, found


def _numbers(one: object, other: object) -> Iterator[tuple[float, float]]:
    if isinstance(one, dict) and isinstance(other, dict):
        assert set(one) == set(other)
        for key in one:
            yield from _numbers(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        for pair in zip(one, other, strict=True):
            yield from _numbers(*pair)
    elif one != other:
        assert isinstance(one, int | float) and isinstance(other, int | float)
        yield float(one), float(other)


def test_one_bit_of_a_record_in_the_log_is_found(record, tmp_path):
    """There nothing is tolerated: the chain is over every bit."""
    log = tmp_path / "audit.jsonl"
    append(log, Kind.DECISION, record)
    append(log, Kind.VERDICT, {"decision": 1, "by": "dr.who", "verdict": "correct"})
    each_flip(log, 500, lambda: _assert_found(log))
    assert list(verify(log)) == []


def _assert_found(log: Path) -> None:
    found = list(verify(log))
    assert found and found[0].line in (1, 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, store, keys) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    for name in ("equipoise", "something"):
        write_wheel(folder / "wheels", name, "1.0")
    make_bundle(folder / "equipoise.tar", store.path, folder / "wheels", keys.private)
    return folder / "equipoise.tar"


def test_one_bit_anywhere_in_a_bundle_is_found_or_changes_nothing(bundle, keys, tmp_path):
    """Five hundred places of the whole file.

    A bit of a content or of a head (names, sizes) is found. A bit that nobody reads need not be: padding after an entry
    and after the last one, and the end of a head's checksum field. The bundle is then the same, entry for entry.
    """
    content, target = bundle.read_bytes(), tmp_path / "equipoise.tar"
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
        signature = archive.getmember(SIGNATURE)
    read = np.zeros(len(content), bool)
    for member in members:
        assert member.offset_data - member.offset == tarfile.BLOCKSIZE, "no long names here"
        read[member.offset : member.offset_data + member.size] = True
        read[member.offset + 154 : member.offset + 156] = False
    verified = unpack(bundle, trust=keys.public)
    chance = random.Random(5)
    places = [chance.randrange(len(content)) for _ in range(150)] + [chance.randrange(60_000) for _ in range(350)]
    assert sum(read[places]) > 300 and not all(read[places])
    target.write_bytes(content)
    for place in places:
        # The signature's own bits are found with a key alone.
        signed = signature.offset_data <= place < signature.offset_data + signature.size
        trust = keys.public if signed or not read[place] else None
        _poke(target, place, content[place] ^ (1 << chance.randrange(8)))
        if read[place]:
            with pytest.raises(TamperedError if place >= tarfile.BLOCKSIZE else ReleaseError):
                unpack(target, trust=trust)
        else:
            assert unpack(target, trust=trust) == verified
        _poke(target, place, content[place])
    assert unpack(target, trust=keys.public) == verified


@pytest.mark.parametrize(
    "kind",
    [
        MANIFEST,
        SIGNATURE,
        "sbom.cdx.json",
        "images.json",
        "store/generation.json",
        "store/models/pneumonia/1/pneumonia_sampler/1/model.onnx",
        "store/models/pneumonia/1/release.sig",
        "wheels/something-1.0-py3-none-any.whl",
    ],
)
def test_one_bit_of_each_kind_in_a_bundle_is_named(bundle, keys, tmp_path, kind):
    """And nothing of it is installed."""
    with tarfile.open(bundle) as archive:
        member = archive.getmember(kind)
    content, target = bundle.read_bytes(), tmp_path / "equipoise.tar"
    target.write_bytes(content)
    chance = random.Random(kind)
    for _ in range(8):
        place = member.offset_data + chance.randrange(member.size)
        _poke(target, place, content[place] ^ (1 << chance.randrange(8)))
        with pytest.raises(TamperedError) as caught:
            unpack(target, trust=keys.public)
        assert kind in str(caught.value) or (kind == MANIFEST and "manifest" in str(caught.value))
        _poke(target, place, content[place])


def test_a_bundle_that_was_cut_off_is_found(bundle, tmp_path):
    """A download that broke off, up to the last byte that is read. What follows that is padding."""
    content, target = bundle.read_bytes(), tmp_path / "equipoise.tar"
    with tarfile.open(bundle) as archive:
        last = archive.getmembers()[-1]
    for length in (
        0,
        100,
        512,
        5000,
        len(content) // 2,
        last.offset,
        last.offset_data,
        last.offset_data + last.size - 1,
    ):
        target.write_bytes(content[:length])
        with pytest.raises(ReleaseError):
            unpack(target)


def _poke(path: Path, place: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))
