"""`equipoise publish`: a published pair → a release in the store."""

from __future__ import annotations

import re
import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model
from google.protobuf import text_format

from ..errors import ReleaseError, RepositoryError
from ..gpu_memory import gpu_limits
from ..repository import carried_contract, models_of, parse_configuration
from .release import DOCUMENT, REPORT, SIGNATURE, Release, digests, read_release, verify_release
from .signing import sign
from .store import NAME, Store, sync, user_and_host

CASES = re.compile(rb"<!-- cases -->.*<!-- /cases -->", re.DOTALL)
"""Of a calibration report, what shows and names single cases."""


def find_pair(pair: str) -> tuple[Path, str]:
    """`REPO/NAME` (a folder) or `REPO:NAME` → repository and name. Raises ReleaseError."""
    folder = Path(pair)
    if (folder / "config.pbtxt").is_file():
        return folder.absolute().parent, folder.absolute().name
    repository, _, name = pair.rpartition(":")
    if repository and (Path(repository) / name / "config.pbtxt").is_file():
        return Path(repository), name
    raise ReleaseError(f"{pair} is not a published model; give its folder, or REPOSITORY:NAME")


def make_release(
    repository: Path,
    name: str,
    store: Store,
    key: Path | None = None,
    report: Path | None = None,
    by: str | None = None,
    gpu_memory: int | None = None,
) -> Release:
    """Copies NAME and its samplers into the store, with digests and, given a key, a signature.

    For content that is already released it returns that release. Links are replaced by their targets.

    Args:
        report: the calibration report, kept with the release but for its pictures of cases: a release travels.
        by: who publishes; by default the user of this machine.
        gpu_memory: bytes of a GPU that the model may take: the release's configurations keep within it.

    Raises ReleaseError where the pair is incomplete or contradicts itself.
    """
    if not NAME.fullmatch(name):
        raise ReleaseError(f"{name!r} is not a valid name of a release; use letters, digits, '.', '_' and '-'")
    with store.locked():
        home = store.path / "models" / name
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publishing-", dir=home) as scratch:
            draft = Path(scratch) / "release"
            draft.mkdir()
            for model in models_of(repository, name):
                _copy(repository / model, draft / model)
            if gpu_memory is not None:
                _limit(draft, name, gpu_memory)
            if report is not None:
                (draft / REPORT).write_bytes(CASES.sub(b"<p>Left out of the release.</p>", report.read_bytes()))
            release = _describe(draft, name, store, by)
            same = _identical(store, release)
            if same is not None:
                if key is not None and not (same / SIGNATURE).exists():
                    sign(same, same / SIGNATURE, key)
                    sync(same / SIGNATURE, same)
                return verify_release(same)
            (draft / DOCUMENT).write_text(release.dumps(), encoding="utf-8")
            if key is not None:
                sign(draft, draft / SIGNATURE, key)
            _freeze(draft)
            draft.rename(home / str(release.version))
            sync(home)
    return release


def _copy(source: Path, target: Path, above: tuple[Path, ...] = ()) -> None:
    """Files and folders, links replaced by their targets. Raises ReleaseError for anything else."""
    real = source.resolve()
    if not source.is_dir() or real in above:
        raise ReleaseError(f"{source} is not a folder, or links to a folder above itself; restore it")
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            if entry.name != "__pycache__":
                _copy(entry, target / entry.name, (*above, real))
        elif entry.is_file():
            shutil.copyfile(entry, target / entry.name)
        else:
            raise ReleaseError(f"{entry} is not a file (a dangling link, or a device); restore or remove it")


def _limit(draft: Path, name: str, gpu_memory: int) -> None:
    """Writes the limits into the configurations of a copy. Raises DeployError where the model does not fit."""
    limits = gpu_limits(draft, name, gpu_memory)
    for model in models_of(draft, name):
        for relative in ("config.pbtxt", "configs/tensorrt.pbtxt", "configs/embedded_cuda.pbtxt"):
            path = draft / model / relative
            if path.is_file():
                config = parse_configuration(path)
                (limits.configure_aggregator if model == name else limits.configure_sampler)(config)
                path.write_text(text_format.MessageToString(config), encoding="utf-8")


def _describe(draft: Path, name: str, store: Store, by: str | None) -> Release:
    """The release of the content of `draft`. Raises ReleaseError where it does not load, or contradicts itself."""
    try:
        model = load_model(draft / name / "1")
        carried = carried_contract(draft / name)
    except (ContractError, RepositoryError, OSError, ValueError) as error:
        raise ReleaseError(f"{name} does not load: {error}") from error
    contract = model.contract
    if contract.name != name:
        raise ReleaseError(f"the folder {name} holds the contract of {contract.name}; publish it under its own name")
    if carried != contract:
        raise ReleaseError(f"{name}: config.pbtxt carries another contract than contract.json; export the model again")
    versions = store.versions(name)
    return Release(
        name=name,
        version=max([0, *versions]) + 1,
        files=digests(draft),
        contract_digest=contract.digest,
        model_digest=contract.model_digest,
        policy_digest=model.policy.digest if model.policy else None,
        code_digest=model.code_digest,
        published_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        published_by=by or user_and_host(),
        previous=versions[-1] if versions else None,
    )


def _identical(store: Store, release: Release) -> Path | None:
    """The folder of an earlier release with the same files."""
    folders = (store.folder(release.name, version) for version in reversed(store.versions(release.name)))
    return next((folder for folder in folders if read_release(folder).files == release.files), None)


def _freeze(folder: Path) -> None:
    """Makes it read-only, and writes it to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
        sync(path)
