"""A pair of an earlier format → the same networks in this one, with this version's code.

Contract 1 → 2: the mask generator, precision and `states_moments` are stated; `screen` is `first_pass`; the output
`sum_own` is `sum_uncertainty`. Weights and mask generator stay; seeds and masks follow the model's new digest. A policy
does not stay: it says how an earlier procedure stopped early, and that is not the one it would be served by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from equipoise_core.canonical import digest_of_model, read_json
from equipoise_core.contract import FORMAT, PHILOX, Contract, ContractError, parse_contract

from ..compiled import Compiled
from ..graph.storage import DATA, MODEL, Weights
from ..proof.parity import Proof
from .repository import PROOF, publish_pair

EARLIER = "equipoise-contract/1"


def migrate(name: str, repository: Path, into: Path) -> tuple[Path, list[str]]:
    """Writes the pair `name` of `repository` into another repository, in the format of this version.

    Returns the public model's new folder, and what could not be kept, in words.

    Raises:
        ContractError: there is no pair of the earlier format, or a file is not the one that its contract names.
        PublishError: it cannot be written; nothing was changed.
    """
    folder = repository / name
    document = read_json(folder / "1" / "contract.json", ContractError)
    contract = contract_of(document)
    members = [_member(repository, each.name, each.digest, contract) for each in contract.samplers]
    first_pass = None
    if contract.first_pass is not None:
        its = contract.of_first_pass
        first_pass = _member(repository, contract.first_pass.name, contract.first_pass.digest, its)
    card = folder / "README.md"
    public = publish_pair(
        members[0],
        into,
        card=card.read_text(encoding="utf-8") if card.is_file() else None,
        further=members[1:],
        first_pass=first_pass,
    )
    lost = []
    if (folder / "1" / "policy.json").exists():
        lost.append(
            "policy.json: its thresholds were certified for another way of stopping early; until you calibrate again "
            "everything goes to review"
        )
    return public, lost


def contract_of(document: Any) -> Contract:
    """The contract that a document of the earlier format describes. Raises ContractError."""
    found = document.get("format") if isinstance(document, dict) else None
    if found != EARLIER:
        raise ContractError(f"expected a contract of format {EARLIER}; got {found}: there is nothing to migrate")
    changed = {key: value for key, value in document.items() if key not in ("digest", "screen")}
    return parse_contract(
        {
            "precision": "fp32",
            "states_moments": False,
            **changed,
            "format": FORMAT,
            "generator": PHILOX,
            "first_pass": document.get("screen"),
        }
    )


def _member(repository: Path, name: str, digest: str, contract: Contract) -> Compiled:
    """One ONNX file under the new contract; only names and metadata change."""
    file = repository / name / "1" / MODEL
    found = digest_of_model(file) if file.is_file() else "no file"
    if found != digest:
        raise ContractError(f"{name}: {MODEL} has digest {found}, the contract says {digest}; restore the file")
    model = onnx.load(file, load_external_data=False)
    _rename(model.graph, {"sum_own": "sum_uncertainty"})
    del model.metadata_props[:]
    graph_contract = replace(contract, samplers=(), first_pass=None)
    onnx.helper.set_model_props(model, graph_contract.graph_metadata())
    weights = None
    if (data := file.with_name(DATA)).exists():
        weights = Weights()
        weights.path.write_bytes(data.read_bytes())
    return Compiled(model, graph_contract, _proof(file.with_name(PROOF), digest), None, weights=weights)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                tensors[place] = names.get(name, name)


def _proof(path: Path, digest: str) -> Proof:
    """The graph is the same, so its proof still holds; where it names no file or another one, there is none."""
    document = read_json(path, ContractError)
    if not isinstance(document, dict) or document.get("model_digest") != digest:
        raise ContractError(f"{path}: it proves another file; export the network again")
    try:
        return Proof.read(document)
    except (KeyError, TypeError) as error:
        raise ContractError(f"{path} is malformed: {error}; export the network again") from error
