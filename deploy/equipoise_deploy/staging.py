"""A run directory that Triton reads instead of the repository itself.

It mirrors the models with links, file by file, so that nothing is ever written into the repository (Python would leave
its `__pycache__` there), and holds the configurations as this machine wants them.
"""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .errors import RepositoryError
from .settings import NONE, Settings

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


def stage_repository(
    repository: Path, into: Path, configuration: str, cores: int, settings: Mapping[str, Settings] = NONE
) -> tuple[str, ...]:
    """Mirrors every model of `repository` into the directory `into`; returns the public models' names, sorted.

    A model is a folder with a `config.pbtxt`; a public one's configuration carries its contract.

    Args:
        settings: by public model's name. Raises RepositoryError where there is no such model.
    """
    public = public_models(repository)
    if unknown := sorted(set(settings) - set(public)):
        raise RepositoryError(f"settings for {', '.join(unknown)}, but {repository} serves {', '.join(public)}")
    owners = {sampler: name for name in settings for sampler in _samplers(repository / name)}
    compiled: dict[Path, Path] = {}
    for model in _models(repository):
        _mirror(model, into / model.name, compiled)
        chosen = _chosen(model, configuration)
        config = _parse(chosen)
        if model.name in public:
            own = settings.get(model.name, Settings())
            replace(own, aggregators=own.aggregators or aggregator_instances(cores)).configure_aggregator(config)
        elif model.name in owners:
            settings[owners[model.name]].configure_sampler(config)
        else:
            continue
        staged = into / chosen.relative_to(repository)
        staged.unlink()
        staged.write_text(text_format.MessageToString(config), encoding="utf-8")
    return public


def link_model(repository: Path, model: str, into: Path) -> None:
    """Links one public model and its samplers into the folder `into`, as a repository of their own."""
    for name in (model, *_samplers(repository / model)):
        (into / name).symlink_to((repository / name).resolve())


def published_settings(repository: Path, model: str, configuration: str, cores: int) -> Settings:
    """How `serve` runs a public model where nothing else is asked for; None where a number is T or left to Triton."""
    aggregator = _parse(_chosen(repository / model, configuration))
    sampler = _parse(_chosen(repository / _samplers(repository / model)[0], configuration))
    stated = Settings.stated(aggregator, sampler)
    return replace(stated, aggregators=aggregator_instances(cores), threads=stated.threads or cores)


def _chosen(model: Path, configuration: str) -> Path:
    """The file that Triton reads."""
    named = model / "configs" / f"{configuration}.pbtxt"
    return named if configuration and named.is_file() else model / "config.pbtxt"


def _samplers(model: Path) -> list[str]:
    """Names of the samplers, and of the screen, that a public model's contract lists."""
    contract = json.loads(_parse(model / "config.pbtxt").parameters[CONTRACT_PARAMETER].string_value)
    screen = [contract["screen"]] if contract.get("screen") else []
    return [str(each["name"]) for each in (*contract["samplers"], *screen)]


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
