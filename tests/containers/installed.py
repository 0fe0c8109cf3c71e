"""INSTALL.md and OPERATIONS.md followed literally, on two plain Debians: one has a clone, the server has no network.

Commands come from the pages; only the order of the chapters is here. The machine with the clone has this machine's
network and folders of packages; what it fetched is kept for the next run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..support.steps import Absent, Note, Wrong
from .bases import AUTHORITIES
from .compose import DECIDED
from .engine import BUILD, ROOT, must, podman, run, wait
from .images import require_images
from .machines import Machine, machine
from .pages import INSTALL, OPERATIONS, bash, console

FOLDER = BUILD / "machines"
HOME, CARRIED = FOLDER / "home", FOLDER / "carried"
PLACES = ("/opt/wheels", "/opt/pypi", "/opt/pypi-more", "/etc/pip.conf")
"""Of this machine: where packages may lie, and what says so."""
MADE = CARRIED / "commit"
"""Names the commit that the bundles are of."""
NEXT = "99.0"
"""Version of the bundle that the server is upgraded to."""


def bundles(target: object, note: Note) -> str:
    """The chapters for the machine with a clone; then the next version's bundle, with another release and an image."""
    commit = must(["git", "rev-parse", "HEAD"])
    if MADE.is_file() and MADE.read_text() == commit:
        return "the bundles of this commit are there, from an earlier run"
    shutil.rmtree(FOLDER, ignore_errors=True)
    cached = BUILD / "packages"
    for folder in (HOME, CARRIED, cached):
        folder.mkdir(parents=True, exist_ok=True)
    must(["git", "clone", "--quiet", ROOT, HOME / "clone"])
    shared = [f"--volume={path}:{path}:ro" for path in (*PLACES, str(AUTHORITIES)) if Path(path).exists()]
    shared.append(f"--volume={cached}:/root/.cache")
    with machine("equipoise-clone", "--network=host", "--init", f"--volume={HOME}:/root", *shared) as plain:
        page = bash(INSTALL, "Choose folders and ports") + bash(INSTALL, "On a machine with a network")
        plain.shell(f"export PIP_CERT={AUTHORITIES} PIP_FIND_LINKS=/opt/wheels\ncd clone\n{page}\n{KEEP}")
        plain.shell(f"cd clone\n{MORE.format(version=NEXT)}")
    clone = HOME / "clone"
    (clone / "build" / "equipoise.tar").rename(CARRIED / "equipoise.tar")
    (HOME / "release.pub").rename(CARRIED / "release.pub")
    command = [ROOT / ".venv" / "bin" / "equipoise", "bundle", "make", CARRIED / "next.tar", "--repository"]
    command += [clone / "build" / "store", "--wheels", clone / "build" / "next" / "wheels"]
    command += ["--sign", HOME / "equipoise-keys" / "release.key", "--trust", CARRIED / "release.pub"]
    require_images([IMAGE])
    must([*command, "--image", IMAGE])
    sizes = {file.name: round(file.stat().st_size / 1e6) for file in sorted(CARRIED.glob("*.tar"))}
    note("MB", sizes)
    MADE.write_text(commit)
    return f"a clone on plain Debian: keys, releases, signed bundles; MB: {sizes}, the second with {IMAGE}"


IMAGE = "equipoise/gateway"
KEEP = 'cp "$STATE/release.pub" ../release.pub'
MORE = """
sed -i 's/^__version__ = .*/__version__ = "{version}"/' client/equipoise_client/__init__.py
tar -xf build/equipoise.tar --one-top-level=build/next wheels
rm build/next/wheels/equipoise-*.whl
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/next/wheels .
.venv/bin/equipoise publish model_repository:pneumonia --store build/store --gpu-memory 8G \\
    --sign ~/equipoise-keys/release.key
.venv/bin/equipoise promote pneumonia --store build/store --trust ~/release.pub --accept-changes "the same model"
"""
"""Not on the page: a version of the software and a release of a model that come after those of the page."""


@contextmanager
def server() -> Iterator[Machine]:
    """Plain Debian under systemd, without any network; what was carried to it lies where the page has it."""
    if not (CARRIED / "next.tar").is_file():
        raise Wrong("there is no bundle; run the step `bundles` before this one")
    home, state, prefix = (FOLDER / name for name in ("server", "srv", "opt"))
    for folder in (home, state, prefix):
        shutil.rmtree(folder, ignore_errors=True)
    (home / "build").mkdir(parents=True)
    (state / "equipoise").mkdir(parents=True)
    prefix.mkdir()
    shutil.copyfile(CARRIED / "release.pub", state / "equipoise" / "release.pub")
    for name, target in (("equipoise.tar", home / "build" / "equipoise.tar"), ("next.tar", home / "next.tar")):
        target.hardlink_to(CARRIED / name)
    places = [f"--volume={home}:/root", f"--volume={state}:/srv", f"--volume={prefix}:/opt"]
    # Tensors pass through shared memory, of which a container has 64 MB; a machine has half of its memory.
    init = ("--systemd=always", "--privileged", "--network=none", "--shm-size=2g", *places)
    with machine("equipoise-server", *init, command=("/sbin/init",)) as debian:
        try:
            wait(lambda: run([*STATE, "is-system-running"]).stdout.strip() in ("running", "degraded"), "", 60.0)
        except Wrong as wrong:
            raise Absent(
                f"systemd does not start as PID 1 of a container: {podman('logs', debian.name)[-500:]}"
            ) from wrong
        yield debian


STATE = ("podman", "exec", "equipoise-server", "systemctl")


def installed(target: object, note: Note) -> str:
    """From nothing to a server behind its reverse proxy, first by hand, then by systemd; then what an operator does."""
    with server() as debian:
        choose, by_hand = bash(INSTALL, "Choose folders and ports"), bash(INSTALL, "On the server")
        ends = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"
        said = debian.shell(f"{choose}\n{ends}\n{by_hand}")
        if not re.search(r"\b(accept|review|reject)\b", said):
            raise Wrong(f"no decision was made by hand: {said[-500:]}")
        note("by hand", "decided")
        debian.shell(console(INSTALL, "With systemd"))
        before = decision(debian)
        note("under systemd", before)
        debian.shell(GATEWAY)
        note("gateway and worklist under systemd", "they answer")
        for chapter, what in CHAPTERS.items():
            debian.shell(f"{PREPARED.get(chapter, '')}\nexport PATH=/opt/equipoise/venv/bin:$PATH\n{what(chapter)}")
            if (after := decision(debian)) != before:
                raise Wrong(f"after {chapter!r} the answer is {after}, before it was {before}")
            note(chapter, "the same decision")
        version = debian.shell("/opt/equipoise-NEW/venv/bin/python -c 'from importlib.metadata import version as v;"
                               "print(v(\"equipoise\"))'")  # fmt: skip
        if NEXT not in version or "/opt/equipoise-NEW/" not in debian.shell("systemctl show -p ExecStart equipoise"):
            raise Wrong("the upgraded unit does not run the new version")
        units = ("equipoise-review", "equipoise-gateway", "equipoise-haproxy", "equipoise")
        note("stopped", {unit: stopped(debian, unit) for unit in units})
        if (FOLDER / "opt" / "equipoise-NEW" / "images").is_dir():
            (archive,) = (FOLDER / "opt" / "equipoise-NEW" / "images").iterdir()
            note("image", podman("load", "--quiet", "--input", archive).strip())
    return "plain Debian without a network: installed, served by hand and by systemd, upgraded, rolled back, restored"


def decision(debian: Machine) -> str:
    """Through the reverse proxy, as soon as the units serve. Raises Wrong."""
    said = debian.shell(ASK)
    found = json.loads(said[said.index("[") :])
    return str({name: found[0][name] for name in DECIDED})


ASK = """
curl --silent --fail --retry 120 --retry-delay 1 --retry-all-errors --output /dev/null http://127.0.0.1:8003/healthz
for attempt in $(seq 60); do
    /opt/equipoise/venv/bin/equipoise predict pneumonia build/grey.png --url localhost:8443 --json \\
        --tls-root /srv/equipoise/certs/ca.pem --tls-cert /srv/equipoise/certs/clients/gateway.pem \\
        --tls-key /srv/equipoise/certs/clients/gateway.key && exit 0
done
exit 1
"""
GATEWAY = """
for address in 127.0.0.1:8046/ready 127.0.0.1:8044/; do
    curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null http://$address
done
"""
CHAPTERS: Mapping[str, Callable[[str], str]] = {
    name: partial(console, OPERATIONS) for name in ("Upgrade the software", "Change a model", "Back up")
}
"""Of OPERATIONS.md, in this order."""
PREPARED: Mapping[str, str] = {
    "Upgrade the software": "mv next.tar equipoise.tar",
    "Change a model": "mkdir last-week && cp build/grey.png last-week/",
}
"""What the page takes for granted."""


def stopped(debian: Machine, unit: str) -> str:
    """How systemd says that it ended. Raises Wrong unless in order."""
    said = debian.shell(f"systemctl stop {unit}; systemctl show -p Result -p ExecMainStatus --value {unit}").split()
    if "success" not in said:
        raise Wrong(f"{unit} ended with {said}")
    return " ".join(said)
