"""A published model's version directory → what assesses with it. Only a broken contract or sampler stops it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .budget import MOST_AT_ONCE
from .canonical import digest_of, digest_of_code, digest_of_file, digest_of_model
from .case import Model
from .contract import ContractError, load_contract
from .policy import Policy, PolicyError, load_policy


def load_model(
    directory: Path,
    at_most: int | None = None,
    computed_by: Mapping[str, Any] | None = None,
    most: int = MOST_AT_ONCE,
) -> Model:
    """Reads `contract.json`, `policy.json` and the sampler files' digests.

    Args:
        directory: `<repository>/<name>/<version>`.
        at_most, computed_by, most: see `Model`.

    Raises:
        ContractError: the contract is broken, or a sampler's file is not the one that it names.
    """
    contract = load_contract(directory / "contract.json")
    if not contract.samplers:
        raise ContractError(f"{contract.name}: the contract names no sampler")
    for sampler in contract.files:
        file = directory.parent.parent / sampler.name / directory.name / "model.onnx"
        found = digest_of_model(file) if file.is_file() else "no file"
        if found != sampler.digest:
            raise ContractError(
                f"{sampler.name}: model.onnx has digest {found}, the contract says {sampler.digest}; "
                "publish the model again or restore the file"
            )
    policy, why = _policy(directory / "policy.json")
    return Model(contract, policy, why, _code_digest(directory), at_most, computed_by or {}, most)


def _policy(path: Path) -> tuple[Policy | None, str]:
    if not path.is_file():
        return None, "there is no policy.json for this model: calibrate it first"
    try:
        return load_policy(path), ""
    except PolicyError as error:
        return None, str(error)


def _code_digest(directory: Path) -> str:
    core = Path(__file__).resolve().parent
    adapter = directory / "model.py"
    return digest_of(
        {"equipoise_core": digest_of_code(core), "model.py": digest_of_file(adapter) if adapter.is_file() else None}
    )
