"""What the machine has: cores, memory, shared memory, clock."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..errors import DeployError
from ..serving import staging
from ..serving.engine import chosen_configuration
from ..serving.server import SHARED_MEMORY_BYTES
from ..serving.staging import available_cores, stub_processes
from .results import CheckResult, Subject, failure, ok, skipped, warning

GIB = 1 << 30
LEAST_MEMORY, COMFORTABLE_MEMORY = 2 * GIB, 4 * GIB
"""Bytes that must be, and should be, available: three reference models take 1.5 GB with their stubs on two cores."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX puts shared memory, not a temporary file
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_UNSYNCHRONISED = 0x40  # STA_UNSYNC, adjtimex(2)


def cores(subject: Subject) -> Iterator[CheckResult]:
    """What the process may use of the machine's processor: as many aggregators and threads there are."""
    usable, left = len(os.sched_getaffinity(0)), staging.quota(staging.CGROUPS, staging.own_group())
    found = f"{min(usable, max(left, 1))} of {os.cpu_count()} cores"
    older = staging.CGROUPS / "cpu" / "cpu.cfs_quota_us"  # version 1
    if left < 1:
        yield warning(
            "cores", "the control group leaves less than one core: it is stopped in the middle of runs", "give it two"
        )
    elif older.is_file() and int(older.read_text()) > 0:
        yield warning(
            "cores",
            f"{found}; the control group (version 1) has a quota, which is not followed",
            "use version 2, bind the service to cores (AllowedCPUs=, --cpuset-cpus), or serve with --settings",
        )
    else:
        yield ok("cores", f"{found}, by the control group's quota" if left < usable else found)


def memory(subject: Subject) -> Iterator[CheckResult]:
    """Available memory, within the control group's limit."""
    available = psutil.virtual_memory().available
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    bounded = min(available, int(limit)) if limit.isdigit() else available
    found = f"{bounded / GIB:.1f} GiB available"
    if bounded < LEAST_MEMORY:
        yield failure(
            "memory", found, f"at least {LEAST_MEMORY // GIB} GiB are needed, see the models' README for theirs"
        )
    elif bounded < COMFORTABLE_MEMORY:
        yield warning("memory", found, f"{COMFORTABLE_MEMORY // GIB} GiB leave room for large images")
    else:
        yield ok("memory", found)


def shared_memory(subject: Subject) -> Iterator[CheckResult]:
    """`/dev/shm` holds a region for each Python process of the models; a container's default of 64 MB is too little."""
    try:
        configuration, _ = chosen_configuration(os.environ)
        stubs = stub_processes(subject.repository, configuration, available_cores())
    except DeployError as error:
        yield skipped("shared memory", f"the models cannot be counted: {error}")
        return
    needed = stubs * SHARED_MEMORY_BYTES
    disk = shutil.disk_usage(_SHARED_MEMORY)
    has = disk.total if subject.live else disk.free  # live, the models hold theirs already
    found = f"{_SHARED_MEMORY} has {has / GIB:.2f} GiB, {stubs} Python processes begin with {needed / GIB:.2f} GiB"
    if has < needed:
        yield failure(
            "shared memory",
            found,
            "give it more: --shm-size=2g, sizeLimit of the emptyDir, or mount -o remount,size=2g",
        )
    elif has < 2 * needed:
        yield warning("shared memory", found, "large images let these regions grow: twice as much is better")
    else:
        yield ok("shared memory", found)


def clock(subject: Subject) -> Iterator[CheckResult]:
    """Records, certificates and audit lines carry the time."""
    now, installed = time.time(), Path(__file__).stat().st_mtime
    if now < installed - 86400:
        yield failure(
            "clock",
            f"it shows {time.strftime('%Y-%m-%d', time.gmtime(now))}, before this was installed",
            "set the clock",
        )
        return
    state = _kernel_clock()
    if state is None:
        yield skipped("clock", "the kernel does not report whether it is synchronised")
    elif state & _UNSYNCHRONISED:
        yield warning(
            "clock",
            "not synchronised, by the kernel's report",
            "run chrony or systemd-timesyncd (a container: on its host)",
        )
    else:
        yield ok("clock", "synchronised, by the kernel's report")


def _kernel_clock() -> int | None:
    """The status word of adjtimex(2), read only; None where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex"):
        return None
    words = (ctypes.c_long * 32)()  # struct timex: modes (int, padded), offset, freq, maxerror, esterror, status, …
    if libc.adjtimex(ctypes.byref(words)) < 0:
        return None
    return int(words[5]) & 0xFFFFFFFF
