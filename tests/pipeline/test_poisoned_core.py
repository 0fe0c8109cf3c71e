"""A published pair is decided by the code it carries, whatever is installed beside it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import equipoise_core
import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_core.canonical import digest_of, digest_of_code, digest_of_file
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.engine import Engine, find_engine
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair

from ..support.asking import ask, case, text
from ..support.repositories import configure, copy_of

pytestmark = pytest.mark.triton

POISON = "the poisoned package decided"
FIRST_ON_THE_PATH = "sys.path.insert(0, str(HERE))\n"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Path:
    """An environment with all packages of this one, and an `equipoise_core` that accepts everything."""
    environment = tmp_path_factory.mktemp("poisoned") / "venv"
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    for name in ("python3", "python"):
        (environment / "bin" / name).symlink_to(Path(sys.executable).resolve())
    (environment / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (packages / "everything.pth").write_text(sysconfig.get_path("purelib") + "\n")

    shutil.copytree(Path(equipoise_core.__file__).parent, packages / "equipoise_core")
    decision = packages / "equipoise_core" / "decision.py"
    decision.write_text(
        decision.read_text()
        + f"\n\ndef decide(*_):\n    return Decision(Route.ACCEPT, reason('no_policy', message={POISON!r}))\n",
        encoding="utf-8",
    )
    return environment


@pytest.fixture(scope="module")
def engine(poisoned, tmp_path_factory) -> Engine:
    """The Triton of this environment, whose stubs find the poisoned one first on PATH."""
    usual = find_engine(os.environ)
    wrapper = tmp_path_factory.mktemp("wrapper") / "tritonserver"
    wrapper.write_text(f'#!/bin/sh\nPATH="{poisoned / "bin"}:$PATH" exec "{usual.binary}" "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return replace(usual, binary=wrapper)


@pytest.fixture(scope="module")
def answers(engine, tiny_segmentation, tmp_path_factory) -> Iterator[dict[str, dict[str, str]]]:
    """Route, reason and record of a case without policy: of the pair as published, and of one that trusts sys.path."""
    repository = tmp_path_factory.mktemp("models") / "models"
    publish_pair(tiny_segmentation, repository)
    adapter = copy_of(repository / "tinyseg", "trusting") / "1" / "model.py"
    source = adapter.read_text()
    assert FIRST_ON_THE_PATH in source
    adapter.write_text(source.replace(FIRST_ON_THE_PATH, ""))
    for name in ("tinyseg", "trusting"):
        configure(repository / name)
    with (
        TritonServer(repository, engine=engine, ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        image = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
        outputs = ("route", "reason", "record")
        yield {
            name: {output: text(value) for output, value in ask(client, name, case(image), outputs).items()}
            for name in ("tinyseg", "trusting")
        } | {"published": {"folder": str(repository / "tinyseg" / "1")}}


def test_the_poisoned_package_would_be_imported(poisoned):
    """In that environment `import equipoise_core` finds the poisoned package: there is something to guard against."""
    script = "from equipoise_core import decision; print(decision.__file__); print(decision.decide().reason)"
    words = [poisoned / "bin" / "python3", "-E", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    file, reason = done.stdout.splitlines()
    assert Path(file).is_relative_to(poisoned)
    assert reason == POISON


def test_the_poisoned_package_decides_for_a_pair_that_trusts_the_path(answers):
    """Without its own directory first on sys.path a pair is decided by what is installed: the danger is real."""
    assert answers["trusting"]["route"] == "accept"
    assert answers["trusting"]["reason"] == POISON


def test_the_pairs_own_copy_decides(answers):
    """The published pair goes to review for want of a policy, and its record names the digest of its own code."""
    assert answers["tinyseg"]["route"] == "review"
    assert "policy" in answers["tinyseg"]["reason"]
    folder = Path(answers["published"]["folder"])
    own = {"equipoise_core": digest_of_code(folder / "equipoise_core"), "model.py": digest_of_file(folder / "model.py")}
    assert json.loads(answers["tinyseg"]["record"])["code_digest"] == digest_of(own)
    assert json.loads(answers["trusting"]["record"])["code_digest"] != digest_of(own)
