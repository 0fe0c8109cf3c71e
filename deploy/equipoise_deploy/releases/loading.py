"""What a server may load: a private copy of the releases, verified after copying.

Verifying the store itself would not be enough. Triton opens the files seconds later, and stubs open them again whenever
they start; a file that is changed in the store meanwhile has no effect on the copy. Only the server's own user and root
can write into its run directory, and they could change the server's memory as well.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from ..errors import ReleaseError, TamperedError
from ..repository import models_in
from .release import DOCUMENT, Release, verify_release
from .store import DOCUMENT as GENERATION
from .store import read_generation


def verified_copy(repository: Path, into: Path, trust: Path | None = None, left_out: Collection[str] = ()) -> Path:
    """The folder to serve: `repository` itself where it has no release, else links to verified copies of all of it.

    Args:
        repository: `STORE/current`, a release's folder, or a plain model repository.
        into: a new folder that no other user can write to.
        trust: public key that every model must be signed with; a plain repository is then refused.
        left_out: public models that a generation states and that are not served on purpose.

    Raises TamperedError that names the first file that is not as published, ReleaseError where a release is required
    and there is none.
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
                f"{root / model} is not part of a release (it has no {DOCUMENT}), so it cannot be verified; "
                "publish and promote it (`equipoise publish`, `equipoise promote`), and serve STORE/current"
            )
    copies = into / ".releases"
    copies.mkdir(parents=True)
    verified: dict[Path, Release] = {}
    for number, home in enumerate(sorted(set(released.values()))):
        try:
            _copy(home, copies / str(number))
        except OSError as error:  # no permission, no room
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
        stated = {name: served.release for name, served in generation.models.items() if name not in left_out}
        found = {release.name: release.digest for release in verified.values()}
        if stated != found:
            odd = sorted(name for name in {*stated, *found} if stated.get(name) != found.get(name))
            raise TamperedError(
                f"{root / GENERATION} and its links disagree about {', '.join(odd)}: promote them again"
            )
    return into


def _verified(home: Path, copy: Path, trust: Path | None) -> Release:
    try:
        return verify_release(copy, trust)
    except ReleaseError as error:  # it names the copy, which is removed before anybody reads the message
        raise type(error)(str(error).replace(str(copy), str(home))) from error


def _copy(source: Path, target: Path) -> None:
    """Files are copied, links stay links (the verification refuses them); nothing else is opened."""
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
            raise TamperedError(f"{entry} is a device or a pipe, which a release cannot have; remove it")
