"""Machines of plain Debian, and what of a foreign one goes into a container."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..support.steps import Absent, Wrong
from .engine import must, podman, run
from .images import require_images

IMAGE = "localhost/root/machine"


@dataclass(frozen=True)
class Machine:
    """A container that stands for a machine.

    Attributes:
        name: of the container.
    """

    name: str

    def shell(self, script: str) -> str:
        """Runs a script as its root, in the folder of its home, until the first command that fails. Raises Wrong."""
        words = ["podman", "exec", "--interactive", "--workdir", "/root", self.name, "bash", "-euo", "pipefail", "-s"]
        done = run(words, input=script)
        if done.returncode:
            print(f"{script}\n== {done.stdout}\n{done.stderr}", flush=True)
            raise Wrong(f"on {self.name} a command ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
        return done.stdout


@contextmanager
def machine(name: str, *options: str, command: tuple[str, ...] = ("sleep", "infinity")) -> Iterator[Machine]:
    """Plain Debian with the packages that INSTALL.md names, gone afterwards."""
    require_images([IMAGE])
    podman("rm", "--force", "--ignore", "--time", "0", name)
    try:
        podman("run", "--detach", "--name", name, *options, IMAGE, *command)
        yield Machine(name)
    finally:
        podman("rm", "--force", "--ignore", "--time", "0", name)


def libraries_of_a_foreign_host(into: Path) -> Path:
    """A folder with a Turkish locale, and a library that puts the clock of what loads it back. Raises Absent."""
    if shutil.which("cc") is None:
        raise Absent("no C compiler: a container has its host's clock, and a library has to put it back")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    script = "mkdir /out/locale && localedef --no-archive -i tr_TR -f UTF-8 /out/locale/tr_TR.UTF-8"
    with machine("equipoise-libraries", "--network=none", f"--volume={into}:/out") as plain:
        plain.shell(script)
    must(["cc", "-shared", "-fPIC", "-O2", "-xc", "-", "-o", into / SLOW], input=CLOCK)
    return into


SLOW, HOURS_BEHIND = "slow.so", 40
CLOCK = f"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= {HOURS_BEHIND} * 3600;
    return failed;
}}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {{
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec -= {HOURS_BEHIND} * 3600;
    return failed;
}}
time_t time(time_t *where) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}}
"""
"""Debian's libfaketime 0.9.10 fails where a sleep ends at a time of a clock that it leaves alone, as Python's do."""
