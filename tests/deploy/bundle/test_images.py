"""Container images in a bundle, with a podman that is a script: a real one saves them in `make containers`."""

from __future__ import annotations

from pathlib import Path

import pytest
from equipoise_deploy.bundle.archive import read_archive
from equipoise_deploy.bundle.images import saved_images
from equipoise_deploy.bundle.making import make_bundle
from equipoise_deploy.bundle.manifest import unpack
from equipoise_deploy.errors import ReleaseError

from .test_bundle import REPOSITORY, write_wheel

PODMAN = """#!/bin/sh
for word; do last=$word; done
[ "$last" = absent ] && { echo "no such image" >&2; exit 125; }
while [ "$1" != --output ]; do shift; done
printf 'archive of %s' "$last" > "$2"
"""


@pytest.fixture
def podman(tmp_path, monkeypatch) -> None:
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(PODMAN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.mark.usefixtures("podman")
def test_images_are_entries_like_all_others(tmp_path):
    """Listed in the manifest with their digests, so that a changed one is refused."""
    write_wheel(tmp_path / "wheels", "equipoise", "0.1.0")
    images = ("equipoise/server", "docker.io/library/haproxy:2.6-alpine", "equipoise/server")
    make_bundle(tmp_path / "a.tar", REPOSITORY, tmp_path / "wheels", saved=images)
    manifest = unpack(tmp_path / "a.tar").manifest
    saved = {"images/equipoise_server.tar": images[0], "images/docker.io_library_haproxy_2.6-alpine.tar": images[1]}
    assert {name for name in manifest.files if name.startswith("images/")} == saved.keys()
    with read_archive(tmp_path / "a.tar") as entries:
        contents = {entry.name: b"".join(entry.chunks()) for entry in entries if entry.name in saved}
    assert contents == {name: f"archive of {image}".encode() for name, image in saved.items()}


@pytest.mark.usefixtures("podman")
def test_an_image_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ReleaseError, match="'absent': no such image"):
        dict(saved_images(["absent"], tmp_path / "images"))
    with pytest.raises(ReleaseError, match=r"two images would be bundled as a_b\.tar"):
        dict(saved_images(["a/b", "a_b"], tmp_path / "others"))


def test_without_podman_it_says_so(tmp_path, monkeypatch):
    """And nothing is asked of it where no image is wanted."""
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    with pytest.raises(ReleaseError, match="--image needs podman"):
        dict(saved_images(["equipoise/server"], tmp_path / "images"))
    assert not dict(saved_images([], tmp_path / "none"))
