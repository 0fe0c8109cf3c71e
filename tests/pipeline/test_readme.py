"""Every snippet of the READMEs is run as it stands, against a real server, in the order of its page.

What is put in place of a reader's own things:

- `localhost:8001`, also where a command takes it by default, is the server of these tests;
- `brain.nii.gz`, `xray.png`, `study/` and `last-week/` are synthetic images in the working folder;
- `model_repository` is a link, and `next` holds pneumonia with another model card: a newer version.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from ..support.asking import picture
from ..support.documents import ROOT, Snippet, readmes, snippets
from ..support.studies import study

pytestmark = pytest.mark.slow

ASKS = ("predict", "replay", "load")
"""Verbs that ask the server at `localhost:8001` unless told otherwise."""

PAGES = [page for page in readmes() if any(not each.excuse and each.language == "bash" for each in snippets(page))]


@pytest.fixture
def desk(tmp_path: Path, server, contracts) -> Path:
    """A folder with what the pages take for granted; `equipoise` on its PATH asks this server."""
    brain, xray = contracts["hippocampus"], contracts["pneumonia"]
    pixels = picture(brain, brain.nominal, seed=1)[0]
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), tmp_path / "brain.nii.gz")
    Image.fromarray(np.clip(picture(xray, xray.nominal, seed=1)[0] / 4, 0, 255).astype(np.uint8)).save(
        tmp_path / "xray.png"
    )
    (tmp_path / "study").mkdir()
    for number, content in enumerate(study(40, 56, 40)):
        (tmp_path / "study" / f"{number}.dcm").write_bytes(content)
    (tmp_path / "last-week").mkdir()
    shutil.copy(tmp_path / "xray.png", tmp_path / "last-week")
    (tmp_path / "model_repository").symlink_to(ROOT / "model_repository")
    for pair in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass"):
        shutil.copytree(ROOT / "model_repository" / pair, tmp_path / "next" / pair)
    with (tmp_path / "next" / "pneumonia" / "README.md").open("a") as card:
        card.write("A newer version.\n")
    command = tmp_path / "bin" / "equipoise"
    command.parent.mkdir()
    equipoise = f"exec {shlex.quote(sys.executable)} -m equipoise_client.cli.main"
    command.write_text(
        f"""#!/bin/sh
case " $* " in *" --url "*|*" --compare "*) {equipoise} "$@";; esac
case "$1" in {"|".join(ASKS)}) {equipoise} "$@" --url {server.grpc_url};; esac
{equipoise} "$@"
"""
    )
    command.chmod(0o755)
    return tmp_path


def run(snippet: Snippet, desk: Path, url: str) -> subprocess.CompletedProcess[str]:
    code = snippet.code.replace("localhost:8001", url)
    if snippet.language == "python":
        script = desk / f"snippet{snippet.number}.py"
        script.write_text(code)
        words = [sys.executable, str(script)]
    else:
        words = ["bash", "-euo", "pipefail", "-c", code]
    path = f"{desk / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(desk)}
    return subprocess.run(words, cwd=desk, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_the_page_works(page, desk, server):
    ran = 0
    for snippet in snippets(page):
        if snippet.excuse is not None or snippet.language == "mermaid":
            continue
        if snippet.file is not None:
            (desk / snippet.file).write_text(snippet.code)
            continue
        assert snippet.language in {"bash", "python"}, f"{page}, block {snippet.number}"
        done = run(snippet, desk, server.grpc_url)
        assert done.returncode == 0, f"{page}, block {snippet.number}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.stdout or done.stderr or ">" in snippet.code, f"{page}, block {snippet.number} said nothing"
        ran += 1
    assert ran
