"""What the served image needs of the GPUs: driver, compute capability, device files, MIG, memory against the limits.

Nothing of it was tried on a GPU; versions are NVIDIA's, of the image that `software.SAFE_TRITON` names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from ..errors import DeployError
from ..repository import configuration_of, models_in, parse_configuration
from ..serving.engine import CONFIGURATION_VARIABLE, chosen_configuration
from ..serving.settings import on_cpu
from .results import CheckResult, Subject, failure, ok, skipped, warning
from .software import SAFE_TRITON

DRIVER, COMPATIBLE_DRIVER = 610, 580
"""Branches: of CUDA 13.3 in image 26.07, and the oldest that its forward compatibility package lifts to it."""

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (11, 0), (12, 0))
"""What the image's ONNX Runtime has code for; it runs on later minor versions of the same major one, too."""

GIB = 1 << 30
CONTEXT = GIB
"""Bytes that CUDA's context and its libraries take beside the arenas, by estimate."""

LIMIT = "gpu_mem_limit"
"""Parameter of a sampler's configuration: bytes of each instance's arena."""

_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))
_UVM, _CAPS = Path("/dev/nvidia-uvm"), Path("/dev/nvidia-caps")
_COMPATIBILITY = Path("/usr/local/cuda/compat")
_UNITS = Path("/etc/systemd/system")
_FIELDS = ("name", "driver_version", "memory.total", "compute_cap", "mig.mode.current")
_INSTANCE = re.compile(r"^\s+MIG (\d+g\.(\d+)gb)\S*\s", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi. `memory` in bytes; `capability` None where it is not shown."""

    name: str
    driver: str
    memory: int
    capability: tuple[int, int] | None
    mig: bool

    @classmethod
    def read(cls, line: str) -> Gpu:
        name, driver, memory, capability, mig = (part.strip() for part in line.rsplit(",", len(_FIELDS) - 1))
        major, _, minor = capability.partition(".")
        shown = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        return cls(name, driver, int(memory.split()[0]) << 20, shown, mig == "Enabled")


def driver(subject: Subject) -> Iterator[CheckResult]:
    """GPUs and their driver, if there are any, and whether the image runs on them."""
    if shutil.which("nvidia-smi") is None and not any(path.exists() for path in _NVIDIA):
        yield warning(
            "driver",
            "no GPU: neither nvidia-smi nor an NVIDIA device was found; models run on the processor",
            "to use a GPU, install its driver and the NVIDIA container toolkit",
        )
        return
    try:
        gpus = found_gpus()
    except OSError as error:
        yield failure("driver", str(error), "repair the driver (often a reboot after an upgrade) and its utilities")
        return
    bad = warning  # a GPU that nothing is served on may be as old as it likes
    with contextlib.suppress(DeployError):  # `permissions` and others say what is wrong with the repository
        bad = failure if _on_gpu(subject.repository) else warning
    for gpu in gpus:
        shown = f"{gpu.name}, driver {gpu.driver}, {gpu.memory / GIB:.0f} GiB"
        branch = int(gpu.driver.split(".")[0]) if gpu.driver.split(".")[0].isdigit() else 0
        lifted = branch >= COMPATIBLE_DRIVER and any(_COMPATIBILITY.glob("libcuda.so*"))
        if branch >= DRIVER or lifted:
            yield ok("driver", shown + (", lifted by the forward compatibility package" if branch < DRIVER else ""))
        elif branch >= COMPATIBLE_DRIVER:
            yield warning(
                "driver",
                f"{shown}: image {SAFE_TRITON} needs {DRIVER}, or the forward compatibility package, of which there is "
                f"nothing in {_COMPATIBILITY}",
                f"upgrade to {DRIVER}; or run doctor in the container, which has the package (for data center GPUs)",
            )
        else:
            yield bad("driver", f"{shown}: older than image {SAFE_TRITON} runs with", f"upgrade to {DRIVER} or newer")
        if gpu.capability is not None:
            yield _capability(gpu.name, gpu.capability, bad)


def _capability(name: str, capability: tuple[int, int], bad: Callable[[str, str, str], CheckResult]) -> CheckResult:
    shown = f"{name} has compute capability {capability[0]}.{capability[1]}"
    if any(major == capability[0] and minor <= capability[1] for major, minor in CAPABILITIES):
        return ok("compute capability", shown)
    known = ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
    return bad(
        "compute capability",
        f"{shown}; the image's ONNX Runtime has code for {known}, and for later minor versions of these",
        "use another GPU, or serve on the processor (EQUIPOISE_TRITON_CONFIG=cpu)",
    )


def device_files(subject: Subject) -> Iterator[CheckResult]:
    """The device files that CUDA opens. A service that may gain no privileges cannot have them made."""
    gpus = _gpus_or_none()
    if not gpus:
        yield skipped("device files", "no GPU answers")
        return
    if _UVM.exists():
        yield ok("device files", f"{_UVM} is there")
    else:
        yield failure(
            "device files",
            f"{_UVM} is missing: under NoNewPrivileges CUDA cannot have it made, and finds no device",
            "load nvidia_uvm before the service starts (gpu.conf does): `nvidia-modprobe -u -c=0`, at each boot",
        )
    if any(gpu.mig for gpu in gpus):
        yield from _mig()


def _mig() -> Iterator[CheckResult]:
    instances = [name for name, _ in _instances()]
    if not instances:
        yield failure(
            "MIG",
            "it is on, and no instance is visible: CUDA finds no device",
            "make one (`nvidia-smi mig -cgi PROFILE -C`), give it to the container, or switch MIG off",
        )
        return
    if not _CAPS.is_dir():
        yield failure(
            "MIG",
            f"there is an instance ({', '.join(instances)}), but no {_CAPS}, through which it is opened",
            "let the container toolkit pass it in; on bare metal `nvidia-modprobe -f` for its capability files",
        )
        return
    files = [_UNITS / "equipoise.service", *sorted(_UNITS.glob("equipoise.service.d/*.conf"))]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    if "DevicePolicy=closed" in text and not re.search(r"^DeviceAllow=char-nvidia-caps\b", text, re.MULTILINE):
        yield failure(
            "MIG",
            f"the unit in {_UNITS} lets the service open no {_CAPS}",
            "add `DeviceAllow=char-nvidia-caps rw` to its gpu.conf, then `systemctl daemon-reload` and restart",
        )
    else:
        yield ok("MIG", f"{', '.join(instances)}")


def gpu_memory(subject: Subject) -> Iterator[CheckResult]:
    """What the samplers' arenas may take together, against what one GPU has: each GPU holds all samplers."""
    gpus = _gpus_or_none()
    if not gpus:
        yield skipped("GPU memory", "no GPU answers")
        return
    try:
        limits = {name: _limit(config) for name, config in _on_gpu(subject.repository).items()}
    except DeployError as error:
        yield failure("GPU memory", str(error), "give what is served with --repository")
        return
    if not limits:
        yield skipped(
            "GPU memory",
            f"the models are served on the processor in the configuration {chosen_configuration(os.environ)[0]!r}",
            f"set {CONFIGURATION_VARIABLE} as the service has it",
        )
        return
    instances = [GIB * size for _, size in _instances()] if any(gpu.mig for gpu in gpus) else []
    has = min(instances or [gpu.memory for gpu in gpus])
    if unbounded := [name for name, limit in limits.items() if limit is None]:
        yield warning(
            "GPU memory",
            f"{', '.join(unbounded)} may take all of {has / GIB:.1f} GiB: no {LIMIT}",
            "publish again with a limit: an arena grows with the largest images, and keeps what it took",
        )
        return
    total = sum(limit or 0 for limit in limits.values())
    found = f"{len(limits)} samplers may take {total / GIB:.1f} GiB of {has / GIB:.1f} GiB"
    if total + CONTEXT > has:
        yield failure(
            "GPU memory", f"{found}, which leaves no {CONTEXT / GIB:.0f} GiB for CUDA itself",
            f"lower {LIMIT}, serve fewer models, or use a GPU with more memory",
        )  # fmt: skip
    else:
        yield ok("GPU memory", found)


def found_gpus() -> list[Gpu]:
    """Of nvidia-smi. Raises OSError that says what it said."""
    said = _ask(f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader")
    try:
        found = [Gpu.read(line) for line in said.splitlines() if line.strip()]
    except (ValueError, IndexError) as error:
        raise OSError(f"nvidia-smi answers {said.strip()[:200]!r}, not {', '.join(_FIELDS)}") from error
    if not found:
        raise OSError("nvidia-smi shows no GPU")
    return found


def _gpus_or_none() -> list[Gpu]:
    try:
        return found_gpus()
    except OSError:
        return []  # `driver` says why


def _instances() -> list[tuple[str, int]]:
    """MIG instances that are visible: profile, and its GB."""
    return [(name, int(size)) for name, size in _INSTANCE.findall(_ask("-L"))]


def _ask(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise OSError("there is an NVIDIA device, but no nvidia-smi")
    try:
        run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError("nvidia-smi does not answer within 30 s") from error
    if run.returncode:
        raise OSError(f"nvidia-smi does not answer: {(run.stderr or run.stdout).strip()[:200]}")
    return run.stdout


def _on_gpu(repository: Path) -> dict[str, ModelConfig]:
    """Samplers that run on a GPU in the configuration that this environment chooses. Raises RepositoryError."""
    configs = {
        name: parse_configuration(configuration_of(repository / name, chosen_configuration(os.environ)[0]))
        for name in models_in(repository)
    }
    return {name: config for name, config in configs.items() if not on_cpu(config)}


def _limit(config: ModelConfig) -> int | None:
    """Bytes of all instances of a sampler on one GPU; None where there is no limit."""
    stated = config.parameters[LIMIT].string_value if LIMIT in config.parameters else ""
    if not stated.isdigit() or not int(stated):
        return None
    return int(stated) * sum(max(1, group.count) for group in config.instance_group)
