"""What a server may load: a private copy of the releases, verified after it was made.

The copy is verified and not the store, since Triton opens the files seconds later, and stubs open them again whenever
they start: a file that is changed in the store in between, or while it is being served, reaches nobody. Whoever can
write into the server's own run directory (its user, and root) could change the server's memory as well.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from ..errors import ReleaseError, TamperedError
from ..repository import models_in
from .release import DOCUMENT, Release, verify_release
from .store import DOCUMENT as GENERATION
from .store import read_generation


def verified_copy(repository: Path, into: Path, trust: Path | None = None) -> Path:
    """The folder to serve: `repository` itself where it holds no release, else links to verified copies of all of it.

    Args:
        repository: `STORE/current`, a release's folder, or a plain model repository.
        into: a folder that does not exist yet and that nobody else can write to.
        trust: public key that every model must be signed with; a plain repository is then refused.

    Raises TamperedError that names the first file that is not what was published, ReleaseError where there is no
    release although there should be one.
    """
    root = repository.resolve()  # once: `current` may be switched while this runs
    models = models_in(root)
    generation = read_generation(root) if (root / GENERATION).exists() else None
    homes = {model: (root / model).resolve().parent for model in models}
    released = {model: home for model, home in homes.items() if (home / DOCUMENT).exists()}
    if generation is None and trust is None and not released:
        return repository
    for model in models:
        if model not in released and (generation is not None or trust is not None):
            raise ReleaseError(
                f"{root / model} is no part of a release ({DOCUMENT} is not there), so nothing says what it should be; "
                "publish and promote it (`equipoise publish`, `equipoise promote`), and serve STORE/current"
            )
    copies = into / ".releases"
    copies.mkdir(parents=True)
    verified: dict[Path, Release] = {}
    for number, home in enumerate(sorted(set(released.values()))):
        try:
            _copy(home, copies / str(number))
        except OSError as error:  # no permission, no room: this server cannot start
            raise ReleaseError(
                f"{home} cannot be copied: {error}; look at its permissions and at {into}'s disk"
            ) from error
        verified[home] = _verified(home, copies / str(number), trust)
        for model in (each for each, its in released.items() if its == home):
            (into / model).symlink_to(Path(".releases") / str(number) / model)
    for model in models:
        if model not in released:
            (into / model).symlink_to(homes[model] / (root / model).resolve().name)
    if generation is not None:
        stated = {name: chosen.release for name, chosen in generation.models.items()}
        found = {release.name: release.digest for release in verified.values()}
        if stated != found:
            odd = sorted(name for name in {*stated, *found} if stated.get(name) != found.get(name))
            raise TamperedError(
                f"{root / GENERATION} names others of {', '.join(odd)} than its links lead to: promote them again"
            )
    return into


def _verified(home: Path, copy: Path, trust: Path | None) -> Release:
    try:
        return verify_release(copy, trust)
    except ReleaseError as error:  # names the copy, which is gone by the time somebody reads it
        raise type(error)(str(error).replace(str(copy), str(home))) from error


def _copy(source: Path, target: Path) -> None:
    """Files are copied, links stay links (verifying refuses them); nothing else is opened."""
    target.mkdir()
    for entry in source.iterdir():
        mode, copy = entry.lstat().st_mode, target / entry.name
        if stat.S_ISDIR(mode):
            _copy(entry, copy)
        elif stat.S_ISREG(mode):
            shutil.copyfile(entry, copy)
        elif stat.S_ISLNK(mode):
            copy.symlink_to(entry.readlink())
        else:
            raise TamperedError(f"{entry} is a device or a pipe; it does not belong to a release. Remove it")
