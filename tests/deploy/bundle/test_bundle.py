"""One archive holds all that a machine without a network needs, is the same every time, and installs nowhere half."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from equipoise_client.cli.main import main
from equipoise_clinic.audit.chain import entries
from equipoise_deploy.bundle.archive import read_archive, write_archive
from equipoise_deploy.bundle.installing import install_bundle, place_models
from equipoise_deploy.bundle.making import EXTRAS, SBOM, _deployment, fetch_wheels, make_bundle
from equipoise_deploy.bundle.manifest import MANIFEST, SIGNATURE, unpack
from equipoise_deploy.bundle.sbom import listed_packages
from equipoise_deploy.errors import ReleaseError, TamperedError
from equipoise_deploy.promotion.promotion import promote
from equipoise_deploy.releases.loading import verified_copy
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.store import Store
from equipoise_export.publish.repository import publish_pair
from packaging.utils import canonicalize_name

from ...support.releases import give_policy, make_keys, proven

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """A package without code, which pip takes."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: Apache-2.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": "".join(f"{p},,\n" for p in (*files, f"{info}/RECORD"))}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, "equipoise", "0.1.0")
    write_wheel(folder, "something", "2.0")
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, wheels, keys) -> Path:
    """Small packages, the real reference models."""
    target = tmp_path_factory.mktemp("bundle") / "equipoise.tar"
    make_bundle(target, REPOSITORY, wheels, keys.private)
    return target


@pytest.fixture
def store(tmp_path, tiny_classifier, keys) -> Store:
    publish_pair(proven(tiny_classifier), tmp_path / "pairs")
    give_policy(tmp_path / "pairs/tinycls")
    store = Store(tmp_path / "store")
    make_release(tmp_path / "pairs", "tinycls", store, keys.private)
    promote(store, "tinycls")
    return store


def _content(bundle: Path, name: str) -> bytes:
    with tarfile.open(bundle) as archive:
        return archive.extractfile(name).read()


def listed_models(document):
    """Of a bill of materials: public model → its files' SHA-256 by their entries in the bundle."""
    return {
        each["name"]: {part["name"]: part["hashes"][0]["content"] for part in each["components"]}
        for each in json.loads(document)["components"]
        if each["type"] == "machine-learning-model"
    }


def test_any_tar_reads_it_and_everything_is_in_the_manifest(bundle, keys):
    """It is a plain tar; the manifest says of every other entry what it is."""
    manifest = unpack(bundle, trust=keys.public).manifest
    with tarfile.open(bundle) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}
    assert set(files) == {MANIFEST, SIGNATURE, *manifest.files}
    for name, file in manifest.files.items():
        assert (hashlib.sha256(files[name]).hexdigest(), len(files[name])) == (file.sha256, file.bytes)
    committed = {
        path.relative_to(REPOSITORY).as_posix()
        for name in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass")
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"models/{name}" for name in committed} <= set(files)
    assert "models/pneumonia/1/equipoise_core/policy.py" in files, "links are replaced by what they lead to"


def test_the_same_content_is_the_same_file(tmp_path, wheels, bundle, keys):
    """Unsigned to the byte; a signature has a random part, and nothing else differs."""
    first, second = (make_bundle(tmp_path / name, REPOSITORY, wheels).sha256 for name in ("a.tar", "b.tar"))
    assert first == second == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    signed = make_bundle(tmp_path / "c.tar", REPOSITORY, wheels, keys.private)
    assert signed.manifest == unpack(bundle).manifest == unpack(tmp_path / "a.tar").manifest


def test_the_bill_of_materials_is_valid_and_lists_every_package_and_model(bundle, wheels):
    """CycloneDX's own schema, strictly; digests are those of the files."""
    document = _content(bundle, SBOM).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    assert listed_packages(document) == {"equipoise": "0.1.0", "something": "2.0"}
    models = listed_models(document)
    assert set(models) == {"hippocampus", "nuclei", "pneumonia"}
    served = {name for name in unpack(bundle).manifest.files if name.startswith("models/")}
    assert {name for files in models.values() for name in files} == served
    for files in models.values():
        assert all(hashlib.sha256(_content(bundle, name)).hexdigest() == digest for name, digest in files.items())
    components = {each["name"]: each for each in json.loads(document)["components"]}
    assert components["something"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert any(each["type"] == "container" and "tritonserver" in name for name, each in components.items())


def test_long_names_and_odd_sizes_survive(tmp_path):
    """A wheel's name can be longer than a tar's head has room for."""
    contents = {"m": b"", "d/" + "x" * 140: b"1" * 511, "d/y": b"2" * 512, "e": b"3" * 513}
    write_archive(tmp_path / "a.tar", contents, ("m",))
    with read_archive(tmp_path / "a.tar") as entries:
        assert {entry.name: b"".join(entry.chunks()) for entry in entries} == contents


def _refused(archive: Path, message: str) -> None:
    with pytest.raises(TamperedError, match=message), read_archive(archive) as entries:
        list(entries)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a/../b", "./a", "a//b"])
def test_no_entry_leads_out_of_the_folder_or_has_a_second_spelling(tmp_path, name):
    """Whoever made the archive."""
    write_archive(tmp_path / "a.tar", {name: b"x"}, ())
    _refused(tmp_path / "a.tar", "not a plain file below its root")


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no filter to compare with")
@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_what_tarfiles_own_filter_refuses_is_refused_here(tmp_path, name):
    """An independent judgement of the names above."""
    with pytest.raises(tarfile.FilterError):
        safe = tarfile.data_filter(tarfile.TarInfo(name), str(tmp_path))
        if safe.name != name:  # it takes the leading slash away
            raise tarfile.FilterError(name)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
@pytest.mark.parametrize("target", ["/etc/passwd", "beside"])
def test_nothing_but_files_is_taken(tmp_path, kind, target):
    """A link in an archive is a way out of it."""
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, target
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    _refused(tmp_path / "a.tar", "is refused: .*link")


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_a_compressed_archive_is_not_a_bundle(tmp_path, compression):
    """It could unpack to any size."""
    with tarfile.open(tmp_path / "a.tar", f"w:{compression}") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    _refused(tmp_path / "a.tar", "damaged or not a bundle")


def test_a_bundle_without_a_signature_is_refused_where_one_is_asked_for(tmp_path, wheels, bundle, keys):
    """And one by somebody else, and one with nothing in it but a manifest."""
    make_bundle(tmp_path / "a.tar", REPOSITORY, wheels)
    with pytest.raises(TamperedError, match="not signed"):
        unpack(tmp_path / "a.tar", trust=keys.public)
    with pytest.raises(TamperedError, match=r"manifest.sig does not hold"):
        unpack(bundle, trust=make_keys(tmp_path).public)
    write_archive(tmp_path / "bare.tar", {MANIFEST: _content(bundle, MANIFEST)}, (MANIFEST,))
    with pytest.raises(TamperedError, match="not signed"):
        unpack(tmp_path / "bare.tar", trust=keys.public)
    with pytest.raises(TamperedError, match="lacks"):
        unpack(tmp_path / "bare.tar")


def test_entries_that_are_not_listed_or_come_twice_are_refused(tmp_path, bundle):
    """The manifest is the whole truth."""
    with tarfile.open(bundle) as archive:
        contents = {name: archive.extractfile(name).read() for name in archive.getnames()}
    write_archive(tmp_path / "more.tar", {**contents, "zzz": b"new"}, (MANIFEST, SIGNATURE))
    with pytest.raises(TamperedError, match="zzz, which its manifest does not list"):
        unpack(tmp_path / "more.tar")
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        for name in (MANIFEST, *2 * ["images.json"]):
            info = tarfile.TarInfo(name)
            info.size = len(contents[name])
            archive.addfile(info, io.BytesIO(contents[name]))
    with pytest.raises(TamperedError, match=r"images\.json twice"):
        unpack(tmp_path / "more.tar")
    with pytest.raises(ReleaseError, match="not a bundle"):
        write_archive(tmp_path / "other.tar", {"a": b""}, ())
        unpack(tmp_path / "other.tar")
    with pytest.raises(ReleaseError, match="cannot be read"):
        unpack(tmp_path / "absent.tar")


def test_no_more_is_written_than_the_manifest_states(tmp_path, bundle):
    """An entry that states another size is refused before its first byte."""
    contents = {MANIFEST: _content(bundle, MANIFEST), "images.json": b"[" * 10_000_000}
    write_archive(tmp_path / "large.tar", contents, (MANIFEST,))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(TamperedError, match=r"images\.json was changed: it has 10000000 bytes"):
        unpack(tmp_path / "large.tar", into)
    assert [path.name for path in into.iterdir()] == [MANIFEST]


def test_a_store_travels_with_its_releases_and_signatures(tmp_path, store, wheels, keys):
    """What was in service is in the bundle, as it was published."""
    make_bundle(tmp_path / "a.tar", store.path, wheels, keys.private, trust=keys.public)
    manifest = unpack(tmp_path / "a.tar", trust=keys.public).manifest
    assert manifest.serves == "store"
    assert {
        "store/models/tinycls/1/release.json",
        "store/models/tinycls/1/release.sig",
        "store/generation.json",
    } <= set(manifest.files)
    assert set(listed_models(_content(tmp_path / "a.tar", SBOM).decode())) == {"tinycls"}


def test_a_store_out_of_a_bundle_is_in_service_with_a_log_of_its_own(tmp_path, store, wheels, keys):
    """The version is the one that was promoted where the bundle was made, and signed as it was there."""
    make_bundle(tmp_path / "a.tar", store.path, wheels, keys.private)
    content, into = tmp_path / "content", tmp_path / "into"
    content.mkdir()
    into.mkdir()
    current = place_models(content, into, unpack(tmp_path / "a.tar", content, keys.public))
    assert current == into / "store/current"
    (copy,) = {path.resolve().parents[1] for path in verified_copy(current, tmp_path / "copy", keys.public).glob("*/1")}
    assert (copy / "release.sig").is_file()
    (line,) = entries(into / "store/log.jsonl")
    assert line.body["action"] == "install" and line.body["version"] == 1
    assert Store(into / "store").generation().models == store.generation().models


def test_what_a_site_keeps_below_deploy_stays_there(tmp_path):
    """Certificates and passwords where compose.yaml wants them; a private key elsewhere stops it."""
    deploy = tmp_path / "deploy"
    for name in ("compose.yaml", "certs/ca.key", "certs/clients/me.pem", "grafana/admin-password", "gateway/.env"):
        (deploy / name).parent.mkdir(parents=True, exist_ok=True)
        (deploy / name).write_text("a secret")
    (tmp_path / "pyproject.toml").touch()
    assert [name for name, _ in _deployment(tmp_path)] == ["deploy/compose.yaml"]
    (deploy / "gateway" / "mine.pem").write_text("-----BEGIN EC PRIVATE KEY-----\n")
    with pytest.raises(ReleaseError, match=r"mine\.pem holds a private key"):
        list(_deployment(tmp_path))


def test_no_bundle_without_our_own_wheel(tmp_path):
    """It could not be installed."""
    write_wheel(tmp_path / "w", "something", "1.0")
    with pytest.raises(ReleaseError, match="no wheel of Equipoise itself"):
        make_bundle(tmp_path / "a.tar", REPOSITORY, tmp_path / "w")
    assert not (tmp_path / "a.tar").exists()


def test_verbs_have_their_options_and_exit_codes(tmp_path, bundle, keys, capsys):
    """Installing without a key takes a word for it."""

    def call(code: int, *words: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(["bundle", *words])
        assert done.value.code == code
        return capsys.readouterr().out

    assert json.loads(call(0, "verify", str(bundle), "--trust", str(keys.public), "--json"))["signature"] == "holds"
    assert "not checked" in call(0, "verify", str(bundle))
    call(1, "verify", str(tmp_path / "absent.tar"))
    call(2, "install", str(bundle), "--into", str(tmp_path / "x"))
    call(2, "install", str(bundle), "--trust", str(keys.public))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_what_is_there_is_not_overwritten_and_what_fails_leaves_nothing(tmp_path, bundle, keys):
    """A folder is either complete or empty."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    with pytest.raises(ReleaseError, match="is not empty"):
        install_bundle(bundle, full, keys.public)
    with pytest.raises(ReleaseError, match="installed and listed packages differ"):
        install_bundle(bundle, tmp_path / "new", keys.public)  # its wheels lack the pip of a new environment
    assert list((tmp_path / "new").iterdir()) == []


def test_another_python_is_refused(tmp_path, bundle, keys):
    """Wheels are for one version."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 3.9\n")
    fake.chmod(0o755)
    with pytest.raises(ReleaseError, match=f"for Python {sys.version_info.major}.{sys.version_info.minor} on"):
        install_bundle(bundle, tmp_path / "new", keys.public, fake)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(1500)
@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="a network namespace takes root")
def test_installed_and_run_without_any_network(tmp_path, keys):
    """The real bundle, in a network namespace that has nothing but loopback: install, then the demo with real images.

    Every package of the new environment is in the bill of materials, and the other way round; no torch is needed.
    """
    assert platform.system() == "Linux"
    archive, target, out = tmp_path / "equipoise.tar", tmp_path / "opt", tmp_path / "demo"
    made = make_bundle(archive, REPOSITORY, fetch_wheels(tmp_path / "wheels"), keys.private)
    assert made.manifest.extras == EXTRAS and not any("torch" in name for name in made.manifest.files)
    command = f"{sys.executable} -m equipoise_client.cli.main"
    script = f"""
        set -e
        ip link set lo up
        test $(ip -br link | wc -l) = 1
        {command} bundle install {archive} --into {target} --trust {keys.public}
        cd {tmp_path}
        env -i PATH=/usr/bin:/bin HOME={tmp_path} {target}/venv/bin/equipoise demo {target}/models --out {out}
    """
    run = subprocess.run(["unshare", "--net", "bash", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    decisions = json.loads((out / "decisions.json").read_text())
    assert {each["model"] for each in decisions} == {"hippocampus", "nuclei", "pneumonia"}
    assert not any(each["route"] == "accept" for each in decisions if each["must_not_accept"])
    listing = subprocess.run(
        [f"{target}/venv/bin/python", "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    ).stdout
    installed = {canonicalize_name(each["name"]): each["version"] for each in json.loads(listing)}
    assert installed == listed_packages((target / SBOM).read_text())
