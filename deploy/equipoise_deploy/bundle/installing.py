"""`equipoise bundle install`: from the archive to a virtual environment and models, without any network."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from ..errors import ReleaseError, TamperedError
from ..releases.release import DOCUMENT as RELEASE
from ..releases.release import verify_release
from ..releases.store import DOCUMENT as GENERATION
from ..releases.store import Store, read_generation
from .images import FOLDER
from .making import IMAGES, SBOM
from .manifest import MANIFEST, Verified, unpack
from .sbom import listed_packages


@dataclass(frozen=True)
class InstalledBundle:
    """What an installation left in its folder.

    Attributes:
        python: interpreter of the new environment.
        serve: the repository to give to `equipoise serve`.
        packages: their number; the bill of materials lists each.
    """

    folder: Path
    python: Path
    serve: Path
    packages: int
    verified: Verified


def install_bundle(bundle: Path, into: Path, trust: Path | None = None, python: Path | None = None) -> InstalledBundle:
    """Verifies, unpacks and installs. pip gets no index, and only verified wheels.

    Args:
        into: a folder that does not exist, or is empty.
        trust: public key; None only where the operator accepts an unsigned bundle.
        python: interpreter to use, of the version that the wheels are for; by default this one.

    Raises TamperedError before anything of the bundle runs. After any error `into` is empty again.
    """
    if into.exists() and any(into.iterdir()):
        raise ReleaseError(f"{into} is not empty; install into a new folder, and switch to it after a test")
    into.mkdir(parents=True, exist_ok=True)
    try:
        return _install(bundle, into, trust, python or Path(sys.executable))
    except BaseException:
        for entry in into.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        raise


def _install(bundle: Path, into: Path, trust: Path | None, python: Path) -> InstalledBundle:
    content = into / "bundle"
    content.mkdir(mode=0o700)
    verified = unpack(bundle, content, trust)
    _fits(verified, python)
    environment = into / "venv"
    _run([str(python), "-m", "venv", str(environment)])
    interpreter = environment / "bin" / "python"
    wheels = sorted(str(wheel) for wheel in (content / "wheels").glob("*.whl"))
    pip = [str(interpreter), "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels])
    _run([*pip, "check"])
    found = {
        canonicalize_name(each["name"]): str(each["version"])
        for each in json.loads(_run([*pip, "list", "--format=json"]))
    }
    listed = listed_packages((content / SBOM).read_text(encoding="utf-8"))
    if found != listed:
        odd = sorted({*found.items()} ^ {*listed.items()})
        raise ReleaseError(f"installed and listed packages differ: {odd[:5]}; the bundle was made for another Python")
    serve = place_models(content, into, verified)
    for name in ("deploy", FOLDER):
        if (content / name).is_dir():
            shutil.move(content / name, into / name)
    for name in (SBOM, IMAGES, MANIFEST):
        shutil.copyfile(content / name, into / name)
    shutil.rmtree(content)
    return InstalledBundle(into, interpreter, serve, len(found), verified)


def _fits(verified: Verified, python: Path) -> None:
    """Wheels are for one version of Python and one kind of machine."""
    version = _run([str(python), "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    manifest = verified.manifest
    if (version, platform.machine()) != (manifest.python, manifest.machine):
        raise ReleaseError(
            f"the bundle is for Python {manifest.python} on {manifest.machine}; {python} is {version} on "
            f"{platform.machine()}: name another interpreter with --python, or make a bundle on such a machine"
        )


def place_models(content: Path, into: Path, verified: Verified) -> Path:
    """Moves the models out of an unpacked bundle; a store gets its first generation. Returns what to serve."""
    if verified.manifest.serves == "models":
        shutil.move(content / "models", into / "models")
        return into / "models"
    shutil.move(content / "store", into / "store")
    store = Store(into / "store")
    generation = read_generation(store.path)
    (store.path / GENERATION).unlink()
    with store.locked():
        for name, served in generation.models.items():
            folder = store.folder(name, served.version)
            release = verify_release(folder)
            if release.digest != served.release:
                raise TamperedError(f"{folder / RELEASE} is not the release that the bundle's {GENERATION} names")
            store.log_decision("install", name, release, None, reason="installed from a bundle")
        models = {name: store.served_release(name, served.version, ()) for name, served in generation.models.items()}
        store.switch(models)
    return store.current


def _run(command: list[str]) -> str:
    """Standard output. The new environment gets none of this process's Python settings."""
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    run = subprocess.run(
        command, env={**environment, "PIP_CONFIG_FILE": os.devnull}, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ReleaseError(f"{' '.join(command[:6])} … failed:\n{(run.stderr or run.stdout).strip()[-2000:]}")
    return run.stdout
