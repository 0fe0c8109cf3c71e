"""A run directory that Triton reads instead of the repository itself.

It mirrors the models with links, file by file, so that nothing is ever written into the repository (Python would leave
its `__pycache__` there), and holds the configurations as this machine wants them.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .errors import RepositoryError

CONTRACT_PARAMETER = "contract"
# Triton 2.51 loses wake-ups on a queue with priorities: a free instance can wait for another one to finish, or for
# 500 ms. 41 requests of 30 ms took 10 times as long as without priorities with one instance, 1.2 to 2.5 times with two,
# 1.1 to 1.3 times with four, no longer with eight.
_FEWEST_INSTANCES = 4
_MOST_INSTANCES = 16  # each is a process; more of them would wait for the sampler, not for a core


def available_cores() -> int:
    """Cores this process may use, at least 1."""
    return len(os.sched_getaffinity(0))


def aggregator_instances(cores: int) -> int:
    """Aggregators per model: one per core, so that one request's arithmetic overlaps with another's sampling."""
    return min(max(_FEWEST_INSTANCES, cores), _MOST_INSTANCES)


def public_models(repository: Path) -> tuple[str, ...]:
    """Names of the models that clients talk to, sorted: those whose configuration carries a contract."""
    return tuple(model.name for model in _models(repository) if _is_public(_parse(model / "config.pbtxt")))


def stage_repository(repository: Path, into: Path, configuration: str, cores: int) -> tuple[str, ...]:
    """Mirrors every model of `repository` into the directory `into`; returns the public models' names, sorted.

    A model is a folder with a `config.pbtxt`; a public one's configuration carries its contract.
    """
    public = public_models(repository)
    compiled: dict[Path, Path] = {}
    for model in _models(repository):
        _mirror(model, into / model.name, compiled)
        if model.name in public:
            named = Path("configs") / f"{configuration}.pbtxt"
            chosen = named if configuration and (model / named).is_file() else Path("config.pbtxt")
            config = _parse(model / chosen)
            for group in config.instance_group:
                group.count = aggregator_instances(cores)
            staged = into / model.name / chosen
            staged.unlink()
            staged.write_text(text_format.MessageToString(config), encoding="utf-8")
    return public


def _models(repository: Path) -> list[Path]:
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder; give the model repository that `equipoise export` wrote")
    models = sorted(path.parent for path in repository.glob("*/config.pbtxt") if not path.parent.name.startswith("."))
    if not models:
        raise RepositoryError(f"{repository} holds no model (no folder with a config.pbtxt); publish one into it first")
    return models


def _is_public(config: ModelConfig) -> bool:
    return CONTRACT_PARAMETER in config.parameters


def _parse(path: Path) -> ModelConfig:
    try:
        config: ModelConfig = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is not a Triton model configuration: {error}") from error
    return config


def _mirror(source: Path, target: Path, compiled: dict[Path, Path]) -> None:
    """Real directories, linked files; links inside the repository are followed.

    Every stub would compile the code anew, a dozen of them at a time: here it is done once.

    Args:
        compiled: Python file → its bytecode, of those that were compiled before.
    """
    target.mkdir()
    for entry in source.iterdir():
        if entry.name == "__pycache__":
            continue
        staged = target / entry.name
        if entry.is_dir():
            _mirror(entry, staged, compiled)
            continue
        file = entry.resolve()
        staged.symlink_to(file)
        if file.suffix == ".py":
            bytecode = target / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc"
            bytecode.parent.mkdir(exist_ok=True)
            if file in compiled:
                shutil.copyfile(compiled[file], bytecode)
            elif py_compile.compile(str(file), cfile=str(bytecode), quiet=2):  # what does not compile, Triton reports
                compiled[file] = bytecode
