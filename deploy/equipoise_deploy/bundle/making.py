"""`equipoise bundle make`: wheels, models, bill of materials, manifest and signature into one archive."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise_core.canonical import digest_of_file
from packaging.utils import parse_wheel_filename

from ..errors import ReleaseError
from ..releases.loading import verified_copy
from ..releases.release import File
from ..releases.signing import sign
from ..releases.store import DOCUMENT as GENERATION
from ..releases.store import Store
from ..repository import models_in
from ..serving import container
from .archive import Content, write_archive
from .images import saved_images
from .manifest import MANIFEST, SIGNATURE, Manifest
from .sbom import bill_of_materials

SBOM = "sbom.cdx.json"
IMAGES = "images.json"
EXTRAS = ("operate", "clinic", "load", "demo")
"""What a hospital's server runs. No torch: models are exported already."""

INSTALLERS = ("pip", "setuptools")
"""Already in a new virtual environment; pinned and listed like everything else."""

PROJECT = Path(__file__).resolve().parents[3]
_SITES_OWN = re.compile(r"(^|/)(\.|__pycache__)|^certs/|password")
"""What is no part of the source tree's `deploy`: hidden files, and what compose.yaml tells a site to put there."""
_EPOCH = "315532800"  # 1980-01-01, the earliest that a wheel can say


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written."""

    path: Path
    sha256: str
    manifest: Manifest
    signed: bool


def make_bundle(
    target: Path,
    repository: Path,
    wheels: Path | None = None,
    key: Path | None = None,
    extras: Sequence[str] = EXTRAS,
    trust: Path | None = None,
    saved: Sequence[str] = (),
) -> WrittenBundle:
    """Writes the bundle `target`.

    Args:
        repository: a model repository, or a store: its releases in service, with their signatures.
        wheels: folder with every wheel, our own included; None: fetched as the lock file pins them.
        key: private key to sign with.
        trust: public key that the store's releases must be signed with.
        saved: container images of podman's storage that go with it.

    Raises ReleaseError that says what is missing.
    """
    with tempfile.TemporaryDirectory(prefix="equipoise-bundle-") as scratch:
        folder = wheels if wheels is not None else fetch_wheels(Path(scratch) / "wheels", extras)
        packages = sorted(folder.glob("*.whl"))
        served = Path(scratch) / "served"
        is_store = (repository / "current").exists()
        contents: dict[str, Content] = {f"wheels/{wheel.name}": wheel for wheel in packages}
        contents |= dict(_releases(Store(repository), served, trust) if is_store else _plain(repository))
        contents |= dict(_deployment())
        contents |= dict(saved_images(saved, Path(scratch) / "images"))
        images = _images()
        contents[IMAGES] = (json.dumps(images, indent=1) + "\n").encode()
        files = {name: _described(content) for name, content in contents.items()}
        document = bill_of_materials(_own_version(packages), packages, files, _public(contents), images).encode()
        contents[SBOM], files[SBOM] = document, _described(document)
        manifest = Manifest(
            _own_version(packages),
            f"{sys.version_info.major}.{sys.version_info.minor}",
            platform.machine(),
            tuple(extras),
            "store" if is_store else "models",
            files,
        )
        contents[MANIFEST] = manifest.dumps().encode()
        if key is not None:
            contents[SIGNATURE] = _signed(Path(scratch), manifest, key)
        first = (MANIFEST, *([SIGNATURE] if key is not None else []))
        return WrittenBundle(target, write_archive(target, contents, first), manifest, key is not None)


def fetch_wheels(into: Path, extras: Sequence[str] = EXTRAS, project: Path = PROJECT) -> Path:
    """Every package of these extras for this Python and this machine, as pip fetches them under the lock file.

    Raises ReleaseError where this is no source tree, or pip fails.
    """
    lock = project / "deploy" / "locks" / "constraints.txt"
    if not (project / "pyproject.toml").is_file() or not lock.is_file():
        raise ReleaseError(f"{project} is not a source tree of Equipoise; run this in a clone, or give --wheels DIR")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(into), "--constraint", str(lock)]
    command += [f"{project}[{','.join(extras)}]", *INSTALLERS]
    run = subprocess.run(
        command, env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ReleaseError(f"pip could not fetch the wheels:\n{run.stderr.strip()[-2000:]}")
    return into


def _plain(repository: Path) -> Iterator[tuple[str, Path]]:
    """A model repository, links replaced by their targets."""
    for model in models_in(repository):
        for path in sorted((repository / model).rglob("*")):
            yield from _below(path, f"models/{path.relative_to(repository).as_posix()}")
        for link in (path for path in (repository / model).rglob("*") if path.is_symlink() and path.is_dir()):
            for path in sorted(link.resolve().rglob("*")):
                inside = path.relative_to(link.resolve())
                yield from _below(path, f"models/{(link.relative_to(repository) / inside).as_posix()}")


def _below(path: Path, name: str) -> Iterator[tuple[str, Path]]:
    if path.is_file() and "__pycache__" not in path.parts:
        yield name, path.resolve()


def _releases(store: Store, scratch: Path, trust: Path | None) -> Iterator[tuple[str, Content]]:
    """The releases in service, from verified copies, and the generation that names them."""
    copy = verified_copy(store.current, scratch, trust)
    generation = store.generation()
    for name, served in sorted(generation.models.items()):
        folder = (copy / name).resolve().parent
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield f"store/models/{name}/{served.version}/{path.relative_to(folder).as_posix()}", path
    yield f"store/{GENERATION}", generation.dumps().encode()


def _public(contents: dict[str, Content]) -> dict[str, Path]:
    """Where in the bundle each public model lies → its folder on this disk."""
    return {
        name.removesuffix("/1/contract.json"): path.parents[1]
        for name, path in contents.items()
        if name.endswith("/1/contract.json") and isinstance(path, Path)
    }


def _described(content: Content) -> File:
    if isinstance(content, bytes):
        return File(hashlib.sha256(content).hexdigest(), len(content))
    return File(digest_of_file(content), content.stat().st_size)


def _own_version(packages: Sequence[Path]) -> str:
    for wheel in packages:
        name, version, _, _ = parse_wheel_filename(wheel.name)
        if name == "equipoise":
            return str(version)
    raise ReleaseError("no wheel of Equipoise itself among the wheels; `pip wheel --no-deps .` in a clone makes it")


def _signed(scratch: Path, manifest: Manifest, key: Path) -> bytes:
    what, signature = scratch / MANIFEST, scratch / SIGNATURE
    what.write_text(manifest.dumps(), encoding="utf-8")
    sign(what, signature, key)
    return signature.read_bytes()


def _deployment(project: Path = PROJECT) -> Iterator[tuple[str, Path]]:
    """Chart, proxy, units, rules, dashboards and Dockerfiles of a source tree, and no secret that a site put there.

    Raises ReleaseError for a private key among them.
    """
    root = project / "deploy"
    for path in sorted(root.rglob("*")) if (project / "pyproject.toml").is_file() else ():
        name = path.relative_to(root).as_posix()
        if path.is_dir() or name.startswith("equipoise_deploy/") or _SITES_OWN.search(name):
            continue
        if b"PRIVATE KEY-----" in path.read_bytes():
            raise ReleaseError(f"{path} holds a private key, and a bundle is for other machines: move it out of {root}")
        yield from _below(path, f"deploy/{name}")


def _images(project: Path = PROJECT) -> list[str]:
    """Container images as the deployment names them, with variables and defaults."""
    found = {container.IMAGE}
    for file in sorted((project / "deploy").glob("compose*.yaml")) if (project / "deploy").is_dir() else ():
        found |= set(re.findall(r"^\s*image:\s*[\"']?([^\s\"'#]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted(found)
