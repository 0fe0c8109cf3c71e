"""Machines of plain Debian, and what of a foreign one goes into a container."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .bases import make_root
from .engine import must, podman

IMAGE = "localhost/root/machine"


@dataclass(frozen=True)
class Machine:
    """A container that stands for a machine.

    Attributes:
        name: of the container.
    """

    name: str

    def shell(self, script: str, **options: float) -> str:
        """Runs a script as its root, in the folder of its home, until the first command that fails. Raises Wrong."""
        words = ["podman", "exec", "--interactive", "--workdir", "/root", self.name, "bash", "-euo", "pipefail", "-s"]
        return must(words, input=script, **options)


@contextmanager
def machine(name: str, *options: str, command: tuple[str, ...] = ("sleep", "infinity")) -> Iterator[Machine]:
    """Plain Debian with the packages that INSTALL.md names, gone afterwards."""
    make_root("machine")
    podman("rm", "--force", "--ignore", "--time", "0", name)
    try:
        podman("run", "--detach", "--name", name, *options, IMAGE, *command)
        yield Machine(name)
    finally:
        podman("rm", "--force", "--ignore", "--time", "0", name)


def libraries_of_a_foreign_host(into: Path) -> Path:
    """A folder with a Turkish locale, and a library that sets the clock of what loads it."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    script = """
        mkdir /out/locale && localedef --no-archive -i tr_TR -f UTF-8 /out/locale/tr_TR.UTF-8
        cp /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 /out/
    """
    with machine("equipoise-libraries", "--network=none", f"--volume={into}:/out") as plain:
        plain.shell(script)
    return into
