"""Container images in a bundle, as OCI archives that podman, containerd and skopeo read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ReleaseError

FOLDER = "images"


def saved_images(names: Sequence[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Entry of the bundle, and the archive that podman writes into `scratch`, for each image of podman's storage.

    Raises ReleaseError where there is no podman, or no such image.
    """
    if names and shutil.which("podman") is None:
        raise ReleaseError("--image needs podman, which was not found on PATH; install it, or leave --image out")
    scratch.mkdir()
    for name in dict.fromkeys(names):
        file = scratch / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.tar"
        if file.exists():
            raise ReleaseError(f"two images would be bundled as {file.name}; tag one of them under another name")
        command = ["podman", "save", "--quiet", "--format", "oci-archive", "--output", str(file), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReleaseError(f"podman cannot save the image {name!r}: {done.stderr.strip()[-500:]}; build or pull it")
        yield f"{FOLDER}/{file.name}", file
