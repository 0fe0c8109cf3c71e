"""The install page is followed literally, by a stranger with an empty home and a fresh clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "INSTALL.md"


def commands(page: str) -> str:
    """All ```bash blocks, in order, as one script."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_every_option_on_the_page_exists():
    """A page that names an option which was renamed misleads; the commands' own help is the judge."""
    called: dict[str, set[str]] = {}
    for line in commands(PAGE.read_text()).replace("\\\n", " ").splitlines():
        if found := re.search(r"equipoise\"? (\w+)(.*)", line):
            called.setdefault(found[1], set()).update(re.findall(r"(?<!-)--[a-z][a-z-]*", found[2]))
    assert {"publish", "promote", "bundle", "doctor", "certs", "serve", "predict"} <= set(called)
    for verb, options in called.items():
        words = [sys.executable, "-m", "equipoise_client.cli.main", verb, "--help"]
        help_text = subprocess.run(
            words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
        ).stdout
        assert all(option in help_text for option in options), (verb, options)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin"), reason="HAProxy is not there")
def test_the_page_works_as_it_stands(tmp_path):
    """Fresh clone, empty home: keys, releases, bundle, offline installation, server, proxy, first decision, stop."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    home = tmp_path / "home"
    home.mkdir()
    kept = ("PATH", "PYENV_ROOT", "PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "SSL_CERT_FILE", "LANG")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {
        "HOME": str(home), "PREFIX": str(tmp_path / "opt"), "STATE": str(tmp_path / "srv"),
        **{name: str(free_port()) for name in ("GRPC", "HTTP", "METRICS", "HEALTH", "FRONT", "STATS")},
    }  # fmt: skip
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + commands(PAGE.read_text())
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=1400
    )
    logs = "".join(log.read_text()[-2000:] for log in (tmp_path / "srv").glob("*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    assert re.search(r"review|reject", done.stdout), done.stdout[-2000:]
    assert (tmp_path / "srv" / "baseline.json").is_file()
