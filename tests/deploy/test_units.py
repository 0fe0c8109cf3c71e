"""Units of systemd, checked by its own tools, and their filters against the system calls that programs really make."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from ..support.processes import serving

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
EXAMPLE = Path(__file__).parents[2] / "client" / "equipoise_clinic" / "gateway" / "example.toml"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
PROGRAMS = ("opt/equipoise/venv/bin/equipoise", "usr/sbin/haproxy", "bin/sh")
EXPOSURE = 15
"""Of 100 (`systemd-analyze security`); what is left is the network, the address families and one's own root."""

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed: `bash deploy/system-packages.sh`"
)


@pytest.fixture
def machine(tmp_path) -> Path:
    """A file system with the programs that the units start, and the units."""
    for name in PROGRAMS:
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for unit in UNITS:
        shutil.copyfile(SYSTEMD / unit, folder / unit)
    for example in SYSTEMD.glob("*.service.d/*.conf.example"):
        into = folder / example.parent.name
        into.mkdir(exist_ok=True)
        shutil.copyfile(example, into / example.name.removesuffix(".example"))
    return tmp_path


def verify(machine: Path, unit: str) -> str:
    """What `systemd-analyze verify` says; it ends with 0 even after an unknown key."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={machine}", unit],
        capture_output=True,
        text=True,
    )
    return (done.stdout + done.stderr).strip() + ("" if done.returncode == 0 else f" (exit code {done.returncode})")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_says_nothing_of_it(machine, unit):
    """Any output is a failure: unknown keys, unreadable values, programs that are not there; drop-ins as well."""
    assert verify(machine, unit) == ""


def test_systemd_would_say_something(machine):
    """The test above can fail: a misspelt key, a program that is missing, a broken drop-in."""
    unit = machine / "etc" / "systemd" / "system" / "equipoise.service"
    whole = unit.read_text()
    unit.write_text(whole.replace("ProtectHome=yes", "ProtectHom=yes"))
    assert "ProtectHom" in verify(machine, unit.name)
    unit.write_text(whole.replace("/opt/equipoise/venv/bin/equipoise", "/opt/equipoise/bin/absent"))
    assert "absent" in verify(machine, unit.name)
    unit.write_text(whole)
    drop_in = unit.parent / "equipoise.service.d" / "gpu.conf"
    drop_in.write_text(drop_in.read_text() + "DevicePolicy=whatever\n")
    assert "whatever" in verify(machine, unit.name) or "DevicePolicy" in verify(machine, unit.name)


@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_small(unit):
    """By systemd's own reckoning."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", SYSTEMD / unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_confined_alike(unit):
    """No new privileges, a read-only system, no core dumps with images in them, files for nobody else, own user."""
    text = (SYSTEMD / unit).read_text()
    for directive in (
        "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n", "LimitCORE=0", "UMask=0077",
        "SystemCallFilter=@system-service", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "PrivateTmp=yes",
    ):  # fmt: skip
        assert f"\n{directive}" in text, directive
    assert ("\nIPAddressDeny=any" in text) is (unit != "equipoise-haproxy.service")
    (user,) = re.findall(r"^User=(.+)$", text, re.MULTILINE)
    assert user in re.findall(r"^u (\S+)", (SYSTEMD / "equipoise.sysusers").read_text(), re.MULTILINE)


def test_the_gateway_may_write_the_log_that_the_server_reads():
    """One place in every file that names it, and files that the server's group may read."""
    text = (SYSTEMD / "equipoise-gateway.service.d" / "audit.conf.example").read_text()
    (folder,) = re.findall(r"^ReadWritePaths=(.+)$", text, re.MULTILINE)
    assert "\nUMask=0027\n" in text and f'audit = "{folder}/decisions.jsonl"' in text
    for name in ("equipoise.env", "equipoise-gateway.service.d/audit.conf.example"):
        assert f"--close-on-alarm={folder}/decisions.jsonl" in (SYSTEMD / name).read_text()
    assert f"d {folder} 2750 equipoise-gateway equipoise" in (SYSTEMD / "equipoise.tmpfiles").read_text()


def test_a_gpu_is_let_in_with_all_its_devices():
    """MIG's too, and unified memory's before the start, since the service gains no privileges to have it made."""
    text = (SYSTEMD / "equipoise.service.d" / "gpu.conf.example").read_text()
    allowed = re.findall(r"^DeviceAllow=char-(\S+) rw$", text, re.MULTILINE)
    assert set(allowed) == {"nvidia-frontend", "nvidia", "nvidia-uvm", "nvidia-caps"}
    assert "\nDevicePolicy=closed\n" in text and "\nPrivateDevices=no\n" in text
    for order in ("Wants", "After"):
        assert re.search(rf"^{order}=.*\bmodprobe@nvidia_uvm\.service\b", text, re.MULTILINE)


def test_users_and_folders_are_what_systemd_can_make(machine):
    """systemd-sysusers and systemd-tmpfiles take the files; every environment file that a unit reads is here."""
    (machine / "etc" / "passwd").touch()
    (machine / "etc" / "group").touch()
    users = machine / "usr" / "lib" / "sysusers.d" / "equipoise.conf"
    users.parent.mkdir(parents=True)
    shutil.copyfile(SYSTEMD / "equipoise.sysusers", users)
    done = subprocess.run(["systemd-sysusers", f"--root={machine}", "equipoise.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {line.split(":")[0] for line in (machine / "etc" / "passwd").read_text().splitlines()}
    assert {"equipoise", "equipoise-gateway", "equipoise-proxy"} <= made
    folders = machine / "usr" / "lib" / "tmpfiles.d" / "equipoise.conf"
    folders.parent.mkdir(parents=True)
    shutil.copyfile(SYSTEMD / "equipoise.tmpfiles", folders)
    done = subprocess.run(
        ["systemd-tmpfiles", f"--root={machine}", "--create", "equipoise.conf"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (machine / "srv" / "equipoise").is_dir() and (machine / "etc" / "equipoise").is_dir()
    log = machine / "var" / "lib" / "equipoise-audit" / "decisions.jsonl"
    assert log.read_bytes() == b"" and log.stat().st_mode & 0o777 == 0o640
    assert log.parent.stat().st_mode & 0o7777 == 0o2750  # further files are the server's group's as well
    for unit in UNITS:
        for file in re.findall(r"^EnvironmentFile=/etc/equipoise/(.+)$", (SYSTEMD / unit).read_text(), re.MULTILINE):
            assert (SYSTEMD / file).is_file()


@pytest.mark.parametrize("unit", ["equipoise-gateway.service", "equipoise-review.service"])
def test_the_gateways_example_lies_where_its_units_may_write(unit):
    """Everything else is read-only to them."""
    (folder,) = re.findall(r"^StateDirectory=(.+)$", (SYSTEMD / unit).read_text(), re.MULTILINE)
    assert tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["directory"] == f"/var/lib/{folder}"


def allowed(unit: str) -> set[str]:
    """System calls that the unit's filter lets through, as systemd counts its groups."""
    text = (SYSTEMD / unit).read_text()
    calls: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", text, re.MULTILINE):
        named = _calls(line.removeprefix("~").split())
        calls = calls - named if line.startswith("~") else calls | named
    return calls | _calls(["@default"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: `bash deploy/system-packages.sh`")
def test_the_server_calls_nothing_that_its_filter_denies(repository, tmp_path):
    """A real `equipoise serve`, from its start through its own questions to its orderly end, under strace."""
    trace = tmp_path / "calls"
    under = ["strace", "--follow-forks", "--summary-only", "--summary-columns=name,calls", f"--output={trace}"]
    with serving(repository, tmp_path / "run", os.environ, ["--drain-seconds=0"], under) as server:
        (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        server.process.wait(120)
    made = set(re.findall(r"^(\w+) +\d+$", trace.read_text(), re.MULTILINE)) - {"total"}
    assert {"execve", "mmap", "futex"} <= made
    assert not made - allowed("equipoise.service")


def _calls(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        members = re.findall(r"^\s+(@?[a-z0-9_-]+)$", done.stdout, re.MULTILINE)
        found |= _calls(members)
    return found
