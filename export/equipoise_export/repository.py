"""A compiled sampler → the pair of Triton models that serves it, complete or not at all.

The pair carries its own code: a validated model keeps the code that decides for it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace as with_changes
from os.path import relpath
from pathlib import Path
from typing import Any, Protocol

import equipoise_core
import onnx
from equipoise_core.canonical import digest_of_file
from equipoise_core.contract import Contract, Sampler

from .errors import ExportError
from .triton_config import aggregator_config, render, sampler_configs, sampler_name

_CORE = Path(equipoise_core.__file__).parent
_CARRIED = Path(__file__).parent / "_adapters"  # filled when the wheel is built


class PublishError(ExportError):
    """The pair cannot be written as asked; nothing was changed."""


class Proof(Protocol):
    """Evidence that the ONNX file computes what the network computes."""

    def document(self) -> Any:
        """JSON-able."""


class Publishable(Protocol):
    """What `compile_sampler` returns; its contract does not name the sampler files yet."""

    @property
    def model(self) -> onnx.ModelProto: ...
    @property
    def contract(self) -> Contract: ...
    @property
    def proof(self) -> Proof: ...


def publish(
    compiled: Publishable,
    into: Path,
    policy: Mapping[str, Any] | None = None,
    card: str | None = None,
    link_code_to: Path | None = None,
    replace: bool = False,
) -> Path:
    """Writes NAME and NAME_sampler into the repository `into`; returns NAME's folder.

    The files are written beside the target and moved into place together: no reader sees half a pair.

    Args:
        policy: the document of `policy.json`; without one, everything the model says goes to review.
        card: the model card, in Markdown.
        link_code_to: version directory of another public model (`…/hippocampus/1`) in the same repository: its code is
            linked, not copied.
        replace: whether a different model of the same name may be overwritten. The same model again changes nothing.
    """
    name, sampler = compiled.contract.name, sampler_name(compiled.contract)
    _check_metadata(compiled)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=into) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        _write_pair(compiled, new, into, policy, card, link_code_to)
        existing = [folder for folder in (sampler, name) if (into / folder).exists()]
        if existing and not replace:
            if all(_covers(into / folder, new / folder) for folder in (sampler, name)):
                return into / name
            raise PublishError(
                f"{into} already holds another {' and '.join(existing)}; publish under another name, or replace it "
                "(which discards its policy: calibrate again)"
            )
        old.mkdir()
        _exchange(into, new, old, (sampler, name), existing)
    return into / name


def _check_metadata(compiled: Publishable) -> None:
    stated = {entry.key: entry.value for entry in compiled.model.metadata_props}.get("equipoise.digest")
    if stated != compiled.contract.digest:
        raise PublishError(
            f"the ONNX file was compiled for the contract {stated}, the one to publish is {compiled.contract.digest}; "
            "compile it again with this contract"
        )


def _write_pair(
    compiled: Publishable,
    root: Path,
    into: Path,
    policy: Mapping[str, Any] | None,
    card: str | None,
    link_code_to: Path | None,
) -> None:
    contract = compiled.contract
    public, sampler = root / contract.name, root / sampler_name(contract)
    for folder in (public / "1", sampler / "1", sampler / "configs"):
        folder.mkdir(parents=True)

    onnx.save(compiled.model, sampler / "1" / "model.onnx")
    digest = digest_of_file(sampler / "1" / "model.onnx")
    published = with_changes(contract, samplers=(Sampler(sampler.name, digest),))

    for path, config in sampler_configs(published).items():
        (sampler / path).write_text(render(config), encoding="utf-8")
    _write_json(sampler / "1" / "proof.json", compiled.proof.document())
    (public / "config.pbtxt").write_text(render(aggregator_config(published)), encoding="utf-8")
    (public / "1" / "contract.json").write_text(published.dumps(), encoding="utf-8")
    if policy is not None:
        _write_json(public / "1" / "policy.json", policy)
    if card is not None:
        (public / "README.md").write_text(card, encoding="utf-8")

    if link_code_to is None:
        _copy_code(public / "1", sampler / "1")
    else:
        _link_code(public.name, sampler.name, root, into, link_code_to)


def _copy_code(public: Path, sampler: Path) -> None:
    shutil.copytree(_CORE, public / "equipoise_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(_adapter("aggregator"), public / "model.py")
    shutil.copyfile(_adapter("sampler"), sampler / "model.py")


def _adapter(role: str) -> Path:
    """The `model.py` that Triton runs: carried by the wheel, or in an editable installation the repository's own."""
    repository = _CORE.parents[2]
    places = (
        _CARRIED / role / "model.py",
        repository / {"aggregator": "hippocampus", "sampler": "hippocampus_sampler"}[role] / "1" / "model.py",
    )
    for place in places:
        if place.is_file():
            return place
    raise PublishError(f"no {role} adapter in {[str(place) for place in places]}: install equipoise again")


def _link_code(name: str, sampler: str, root: Path, into: Path, code: Path) -> None:
    """Relative links, as they must read once the pair is in place: the repository can be moved and mounted anywhere."""
    model = code.resolve().parent
    stand_in = model.with_name(f"{model.name}_sampler") / code.name / "model.py"
    links = {
        Path(name) / "1" / "model.py": code.resolve() / "model.py",
        Path(name) / "1" / "equipoise_core": code.resolve() / "equipoise_core",
        Path(sampler) / "1" / "model.py": stand_in,
    }
    for link, target in links.items():
        if not target.exists():
            raise PublishError(f"link_code_to={code}: {target} does not exist; publish that model with its code first")
        (root / link).symlink_to(relpath(target, (into / link).parent.resolve()))


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _covers(existing: Path, new: Path) -> bool:
    """Whether every file of `new` lies in `existing` byte for byte.

    A policy that came later does not make it another model, nor does the evidence of another run of the proof.
    """
    paths = (path for path in new.rglob("*") if path.is_file() or path.is_symlink())
    files = [path.relative_to(new) for path in paths if path.name != "proof.json"]
    return all(_content(existing / file) == _content(new / file) for file in files)


def _content(path: Path) -> str | None:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return digest_of_file(path) if path.is_file() else None


def _exchange(into: Path, new: Path, old: Path, folders: tuple[str, ...], existing: list[str]) -> None:
    """Moves the old folders out and the new ones in; on any failure everything is moved back."""
    done: list[tuple[Path, Path]] = []
    moves = [(into / folder, old / folder) for folder in existing]
    moves += [(new / folder, into / folder) for folder in folders]
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            target.rename(source)
        raise PublishError(f"{into} could not be written: {error}; nothing was changed") from error
