"""The content of a model repository: its models, which of them are public, and the contracts that they carry."""

from __future__ import annotations

import json
from pathlib import Path

from equipoise_core.contract import Contract, ContractError, parse_contract
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .errors import RepositoryError

CONTRACT_PARAMETER = "contract"
"""The parameter of a public model's configuration that holds its contract."""


def public_models(repository: Path) -> tuple[str, ...]:
    """Names of the models that clients talk to, sorted: those whose configuration carries a contract."""
    return tuple(model.name for model in model_folders(repository) if is_public(model))


def is_public(model: Path) -> bool:
    """Whether the configuration of a model carries a contract."""
    return CONTRACT_PARAMETER in parse_configuration(model / "config.pbtxt").parameters


def models_in(repository: Path) -> tuple[str, ...]:
    """Names of all models, public or not, sorted. Raises RepositoryError where there is none."""
    return tuple(model.name for model in model_folders(repository))


def models_of(repository: Path, model: str) -> tuple[str, ...]:
    """The folders of one public model: its own, and those of its samplers and its first pass."""
    return (model, *samplers_of(repository / model))


def samplers_of(model: Path) -> list[str]:
    """Names of the samplers, and of the first pass, that a public model's contract lists."""
    contract = carried_contract(model)
    names = [each.name for each in contract.files]
    if odd := [name for name in names if Path(name).name != name or name.startswith(".")]:
        raise RepositoryError(
            f"{model / 'config.pbtxt'} names the sampler {odd[0]!r}, which is not the name of a folder"
        )
    return names


def carried_contract(model: Path) -> Contract:
    """The contract in a public model's `config.pbtxt`. Raises RepositoryError where none can be read."""
    path = model / "config.pbtxt"
    try:
        contract = parse_contract(json.loads(parse_configuration(path).parameters[CONTRACT_PARAMETER].string_value))
    except (ContractError, ValueError, RecursionError) as error:
        raise RepositoryError(f"{path} carries no readable contract: {error}; export the model again") from error
    if not contract.samplers:
        raise RepositoryError(f"{path} carries a contract that names no sampler; export the model again")
    return contract


def configuration_of(model: Path, configuration: str) -> Path:
    """The file that Triton reads of a model: `configs/CONFIGURATION.pbtxt` where it is there, else `config.pbtxt`."""
    named = model / "configs" / f"{configuration}.pbtxt"
    return named if configuration and named.is_file() else model / "config.pbtxt"


def parse_configuration(path: Path) -> ModelConfig:
    """Triton's model configuration in a file. Raises RepositoryError."""
    if path.exists() and not path.is_file():  # whoever opens a named pipe waits for its writer
        raise RepositoryError(f"{path} is not a file; restore it, or export the model again")
    try:
        config: ModelConfig = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryError(f"{path} is not a Triton model configuration: {error}; export the model again") from error
    except OSError as error:
        raise RepositoryError(
            f"{path} cannot be read: {error.strerror}; restore it, or export the model again"
        ) from error
    return config


def model_folders(repository: Path) -> list[Path]:
    """The folders with a `config.pbtxt`, sorted. Raises RepositoryError where there is none."""
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder; give the model repository that `equipoise export` wrote")
    models = sorted(path.parent for path in repository.glob("*/config.pbtxt") if not path.parent.name.startswith("."))
    if not models:
        raise RepositoryError(f"{repository} has no model (no folder with a config.pbtxt); publish one into it first")
    return models
