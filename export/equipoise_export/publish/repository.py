"""A compiled sampler → the Triton models that serve it (NAME and its samplers), complete or not at all.

It carries its own code: a validated model keeps the code that decides for it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace as with_changes
from os.path import relpath
from pathlib import Path
from typing import Any

import equipoise_core
import onnx
from equipoise_core.canonical import digest_of_file, digest_of_model
from equipoise_core.case import Model
from equipoise_core.contract import Contract, ContractError, FirstPass, Sampler, load_contract
from equipoise_core.policy import PolicyError, load_policy

from ..compiled import Compiled
from ..errors import ExportError
from ..graph.storage import DATA, MODEL
from ..progress import phase
from .memory import measure_memory
from .triton_config import differences, first_pass_name, model_configs, render, sampler_configs, sampler_names

PROOF, POLICY = "proof.json", "policy.json"

_CORE = Path(equipoise_core.__file__).parent
_CARRIED = Path(__file__).parents[1] / "_adapters"  # filled when the wheel is built; see pyproject.toml


class PublishError(ExportError):
    """The pair cannot be written as asked; nothing was changed."""


def publish_pair(
    compiled: Compiled,
    into: Path,
    policy: Mapping[str, Any] | None = None,
    card: str | None = None,
    link_code_to: Path | None = None,
    replace: bool = False,
    further: Sequence[Compiled] = (),
    first_pass: Compiled | None = None,
    measure: bool = False,
) -> Path:
    """Writes NAME and its samplers into the repository `into`; returns NAME's folder.

    The files are written beside the target and moved into place together: no reader sees half a pair.

    Args:
        policy: the document of `policy.json`; without one, every answer goes to review.
        card: the model card, in Markdown.
        link_code_to: version directory of another public model (`…/hippocampus/1`) in the same repository: its code is
            linked, not copied.
        replace: whether a different model of the same name may be overwritten. The same model again changes nothing.
        further: the other members of a deep ensemble: the same network and contract with other weights.
        first_pass: one pass before any sample is drawn. Its contract differs in its sites (none) and in
            `states_moments` only.
        measure: whether to measure what a run takes of memory (a few seconds a file), for the limits of a GPU; what was
            measured of the same file before is kept. Without, it is reckoned from the images' size.
    """
    name, members = compiled.contract.name, (compiled, *further)
    samplers = sampler_names(compiled.contract, len(members))
    for member in members:
        _check_metadata(member, compiled.contract)
    if first_pass is not None:
        _check_first_pass(first_pass, compiled.contract)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=into) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        files = dict(zip(samplers, members, strict=True))
        _write_model(files, first_pass, new, into, policy, card, link_code_to, measure, replace)
        written = (*samplers, *([first_pass_name(compiled.contract)] if first_pass else []), name)
        existing = [
            folder for folder in {**dict.fromkeys(written), **_belonging(into / name)} if (into / folder).exists()
        ]
        if existing and not replace:
            if all(_covers(into / folder, new / folder) for folder in written):
                _renew_proofs(new, into)
                return into / name
            raise PublishError(
                f"{into} already holds another {' and '.join(existing)}; publish under another name, or replace it "
                "(which discards its policy: calibrate again)"
            )
        old.mkdir()
        _exchange(into, new, old, written, existing)
    return into / name


def _belonging(public: Path) -> dict[str, None]:
    """The samplers of the model that is published there already: a larger ensemble leaves none behind."""
    try:
        contract = load_contract(public / "1" / "contract.json")
        return dict.fromkeys(file.name for file in contract.files)
    except ContractError:
        return {}


def _check_metadata(compiled: Compiled, contract: Contract) -> None:
    stated = {entry.key: entry.value for entry in compiled.model.metadata_props}.get("equipoise.digest")
    if stated != contract.digest:
        raise PublishError(
            f"the ONNX file was compiled for the contract {stated}, the one to publish is {contract.digest}; "
            "compile it again with this contract (all members of an ensemble share one)"
        )


def _check_first_pass(first_pass: Compiled, contract: Contract) -> None:
    expected = with_changes(contract, sites=(), states_moments=first_pass.contract.states_moments)
    if first_pass.contract.digest != expected.digest:
        raise PublishError(
            f"the first pass is not over the same images, classes and sizes as {contract.name}; compile it under that "
            "contract, without dropout"
        )
    _check_metadata(first_pass, expected)


def _write_model(
    members: Mapping[str, Compiled],
    first_pass: Compiled | None,
    root: Path,
    into: Path,
    policy: Mapping[str, Any] | None,
    card: str | None,
    link_code_to: Path | None,
    measure: bool,
    replace: bool,
) -> None:
    contract = next(iter(members.values())).contract
    public = root / contract.name
    (public / "1").mkdir(parents=True)
    published = with_changes(
        contract, samplers=tuple(_write_sampler(name, member, root, into, measure) for name, member in members.items())
    )
    if first_pass is not None:
        written = _write_sampler(first_pass_name(contract), first_pass, root, into, measure)
        published = with_changes(
            published, first_pass=FirstPass(written.name, written.digest, first_pass.contract.states_moments)
        )
    (public / "1" / "contract.json").write_text(published.dumps(), encoding="utf-8")
    samplers = [*members, *([first_pass_name(contract)] if first_pass else [])]
    if policy is not None:
        _write_json(public / "1" / POLICY, policy)
    later = into / contract.name / "1" / POLICY  # calibrated for this model since it was published; replaced with it
    _write_configurations(root, published, later if policy is None and not replace else public / "1" / POLICY)
    if card is not None:
        (public / "README.md").write_text(card, encoding="utf-8")

    if link_code_to is None:
        _copy_code(public / "1", [root / name / "1" for name in samplers])
    else:
        _link_code(public.name, samplers, root, into, link_code_to)


def renew_configurations(repository: Path, name: str) -> None:
    """Writes the configurations of a published model again, for a policy that came later: its stages decide on T.

    Raises ContractError where it has no readable contract.
    """
    version = repository / name / "1"
    _write_configurations(repository, load_contract(version / "contract.json"), version / POLICY)


def _write_configurations(repository: Path, contract: Contract, policy: Path) -> None:
    try:
        given = load_policy(policy)
    except PolicyError:
        given = None
    for path, config in model_configs(repository, contract, Model(contract, given, "", "").chunk).items():
        (repository / path).parent.mkdir(exist_ok=True)
        (repository / path).write_text(render(config), encoding="utf-8")


def _write_sampler(name: str, member: Compiled, root: Path, into: Path, measure: bool) -> Sampler:
    folder = root / name
    (folder / "1").mkdir(parents=True)
    onnx.save(member.model, folder / "1" / MODEL)
    if member.weights is not None:
        shutil.copyfile(member.weights.path, folder / "1" / DATA)
    for path, config in sampler_configs(member.contract, name).items():
        if found := differences(config, member.model):
            raise PublishError(
                f"{name}: {path} and the ONNX file differ in {'; '.join(found)} (type, axes), and Triton would not "
                "load it. Export the model again; where that does not help, report it"
            )
    sampler = Sampler(name, digest_of_model(folder / "1" / MODEL))
    memory = _known_memory(into / name / "1" / PROOF, sampler.digest)
    if measure and memory is None:
        with phase(f"measuring the memory of {name}"):
            memory = measure_memory(folder / "1" / MODEL, member.contract)
    # The proof names its file: beside another model it proves nothing.
    document = {**member.proof.document(), "gpu": member.placement.document(), "model_digest": sampler.digest}
    _write_json(folder / "1" / PROOF, document if memory is None else {**document, "memory": memory})
    return sampler


def _known_memory(proof: Path, digest: str) -> Any:
    """What was measured of this very file before: measured again it could differ a little, and so the limits."""
    try:
        document = json.loads(proof.read_text(encoding="utf-8"))
        return document.get("memory") if document.get("model_digest") == digest else None
    except (OSError, ValueError, AttributeError):
        return None


def _copy_code(public: Path, samplers: Sequence[Path]) -> None:
    shutil.copytree(_CORE, public / "equipoise_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(_adapter("aggregator"), public / "model.py")
    for sampler in samplers:
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


def _link_code(name: str, samplers: Sequence[str], root: Path, into: Path, code: Path) -> None:
    """Relative links, as they must read once the pair is in place: the repository can be moved and mounted anywhere."""
    model = code.resolve().parent
    stand_in = model.with_name(f"{model.name}_sampler") / code.name / "model.py"
    links = {
        Path(name) / "1" / "model.py": code.resolve() / "model.py",
        Path(name) / "1" / "equipoise_core": code.resolve() / "equipoise_core",
        **{Path(sampler) / "1" / "model.py": stand_in for sampler in samplers},
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
    files = [path.relative_to(new) for path in paths if path.name != PROOF]
    return all(_content(existing / file) == _content(new / file) for file in files)


def _renew_proofs(new: Path, into: Path) -> None:
    """Replaces proofs of an older format by this run's: those that lack something, such as the file's digest."""
    for fresh in new.glob(f"*/1/{PROOF}"):
        old = into / fresh.relative_to(new)
        if not old.is_file() or _entries(fresh) - _entries(old):
            fresh.replace(old)


def _entries(path: Path) -> set[str]:
    """What a JSON document says something of; nothing where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return set()
    return {key for key, value in document.items() if value is not None} if isinstance(document, dict) else set()


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
    except BaseException as error:  # also at Ctrl-C: what is in `old` is deleted afterwards
        for source, target in reversed(done):
            target.rename(source)
        if isinstance(error, OSError):
            raise PublishError(f"{into} could not be written: {error}; nothing was changed") from error
        raise
