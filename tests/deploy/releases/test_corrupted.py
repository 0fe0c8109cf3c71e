"""A thousand corrupted repositories, contracts, policies and records: a clear error each, no crash, no hang, no accept.

Seeded: what fails once fails again. Every parser runs in this process; what a server would do with a damaged repository
is staging it, and loading each model as its stub does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equipoise_client.cli.replay import asked, differences, read_record
from equipoise_client.errors import InvalidInput
from equipoise_core.canonical import digest_of
from equipoise_core.case import Case, Model
from equipoise_core.contract import ContractError, load_contract
from equipoise_core.decision import Route
from equipoise_core.loading import load_model
from equipoise_core.policy import PolicyError, load_policy
from equipoise_core.sampling import assess
from equipoise_deploy.errors import DeployError
from equipoise_deploy.releases.loading import verified_copy
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.store import Store
from equipoise_deploy.repository import public_models
from equipoise_deploy.serving.staging import stage_repository
from equipoise_export.graph.session import published_samplers
from equipoise_export.publish.repository import publish_pair

REPOSITORY = Path(__file__).parents[3] / "model_repository"
EACH = 300  # of contracts, policies and records; repositories and stores make it more than a thousand
TREES = 60

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    "", "x", "0", "NaN", "../../../etc/passwd", "\0", "\ud800", "ß" * 1000, [], [[]], {}, [None], {"": None}, [1, "a"],
)  # fmt: skip


def corrupted(document: Any, chance: random.Random) -> bytes:
    """The document as JSON with one to three faults: values, keys, structure, or bytes."""
    document = json.loads(json.dumps(document))
    for _ in range(chance.randint(1, 3)):
        places = list(_places(document))
        holder, key = chance.choice(places)
        fault = chance.randrange(6)
        if fault == 0 and isinstance(holder, dict):
            del holder[key]
        elif fault == 1 and isinstance(holder, list):
            holder.insert(chance.randrange(len(holder) + 1), chance.choice(NASTY))
        elif fault == 2 and isinstance(holder, dict):
            holder[str(chance.choice(NASTY))] = holder.pop(key)
        elif fault == 3:
            holder[key] = json.loads("[" * 50 + "]" * 50)
        else:
            holder[key] = chance.choice(NASTY)
        if not list(_places(document)):
            break
    content = json.dumps(document).encode("utf-8", errors="surrogatepass")
    return _bytes(content, chance) if chance.random() < 0.3 else content


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(entries):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _bytes(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) + 1)
    return chance.choice(
        (
            content[:place],
            content[:place] + bytes(chance.randrange(256) for _ in range(4)) + content[place:],
            content[:place] + content[place + 7 :],
            content[place:] + content[:place],
            b"[" * 200_000,
            b"\xef\xbb\xbf" + content,
            b"",
            content.replace(b"1", b"1" * 5000, 1),
        )
    )


def each(document: Any, path: Path, check: Callable[[], None], count: int = EACH) -> None:
    chance = random.Random(path.name)
    for number in range(count):
        path.write_bytes(corrupted(document, chance))
        try:
            check()
        except Exception as error:
            raise AssertionError(f"number {number}: {path.read_bytes()[:2000]!r}") from error


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("name", ["hippocampus", "pneumonia"])
def test_a_corrupted_contract_is_refused_or_holds_together(tmp_path, name, stated):
    """With the digest that it had, and without one, so that every field is read."""
    path = tmp_path / "contract.json"
    document = json.loads((REPOSITORY / name / "1/contract.json").read_text())
    if not stated:
        del document["digest"]

    def check() -> None:
        try:
            contract = load_contract(path)
        except ContractError as error:
            assert str(error)
            return
        assert len(contract.model_digest) == len(contract.digest) == 64
        assert load_contract(path) == contract

    each(document, path, check, EACH // 2)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["hippocampus", "pneumonia"])
def test_a_corrupted_policy_is_refused_or_holds_together(tmp_path, name, sealed):
    """Sealed anew, so that every field is read; where it is taken, deciding by it breaks nothing."""
    path, model = tmp_path / "policy.json", load_model(REPOSITORY / name / "1")
    document = json.loads((REPOSITORY / name / "1/policy.json").read_text())

    def check() -> None:
        if sealed:
            _seal(path)
        try:
            policy = load_policy(path)
        except PolicyError as error:
            assert str(error)
            return
        assert load_policy(path).digest == policy.digest
        if not sealed:
            assert policy == model.policy, "only what was not changed has the digest that it states"

    each(document, path, check, EACH // 2)


def _seal(path: Path) -> None:
    try:
        document = json.loads(path.read_bytes())
        document.pop("digest", None)
        path.write_text(json.dumps({**document, "digest": digest_of(document)}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # nothing that could be sealed


@pytest.mark.slow
def test_a_corrupted_policy_that_was_sealed_decides_without_a_crash(tmp_path):
    """Whoever edits a policy and its digest gets what they wrote; the server lives, and nonsense is not accepted."""
    model, path = load_model(REPOSITORY / "pneumonia/1"), tmp_path / "policy.json"
    document = json.loads((REPOSITORY / "pneumonia/1/policy.json").read_text())
    samplers, _ = published_samplers(REPOSITORY, model.contract)
    noise = np.random.default_rng(3).normal(0, 1e6, (1, 28, 28)).astype(np.float32)
    chance, decided = random.Random("sealed"), 0
    for _ in range(EACH):
        changed = json.loads(json.dumps(document))
        for _ in range(chance.randint(1, 4)):
            numbers = [
                (holder, key)
                for holder, key in _places(changed)
                if type(holder[key]) in (int, float) and key != "samples"  # it would draw as many
            ]
            holder, key = chance.choice(numbers)
            holder[key] = chance.choice((0, -1, 2 * holder[key], -holder[key], 1e9, 1e-300, 1e300, 10**30, 0.5))
        path.write_text(json.dumps(changed))
        _seal(path)
        try:
            policy = load_policy(path)
        except PolicyError:
            continue
        decided += 1
        assessment = assess(Model(model.contract, policy, "", ""), Case(noise), samplers)
        assert assessment.decision.route in Route and json.dumps(assessment.record)
    assert decided > 50


def test_a_corrupted_record_is_refused_or_replays_with_a_difference(tmp_path):
    """`equipoise replay` never breaks on it."""
    model, path = load_model(REPOSITORY / "pneumonia/1"), tmp_path / "record.json"
    samplers, first_pass = published_samplers(REPOSITORY, model.contract)
    image = np.random.default_rng(1).normal(500, 100, (1, 28, 28)).astype(np.float32)
    record = assess(model, Case(image), samplers, first_pass=first_pass).record
    outcomes: list[str] = []

    def check() -> None:
        try:
            found = read_record(path)
            asked(found)
        except InvalidInput as error:
            assert str(error)
            outcomes.append("refused")
            return
        outcomes.append("differs" if list(differences(found, record)) else "same")

    each(record, path, check)
    assert outcomes.count("refused") > 50 and outcomes.count("differs") > 50, outcomes


def _spoil(tree: Path, chance: random.Random) -> str:
    """One fault of the kind that disks, copies and people make; says which."""
    paths = sorted(path for path in tree.rglob("*") if not path.is_symlink())
    files = [path for path in paths if path.is_file()]
    file, path = chance.choice(files), chance.choice(paths)
    fault = chance.randrange(11)
    if fault == 0:
        content = file.read_bytes()
        file.write_bytes(_bytes(content, chance) if len(content) < 1 << 20 else content[: len(content) // 2])
    elif fault == 1:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif fault == 2:
        file.unlink()
        file.mkdir()
    elif fault == 3:
        file.unlink()
        file.symlink_to("/nowhere/at/all")
    elif fault == 4:
        file.unlink()
        file.symlink_to(file.name)
    elif fault == 5:
        (path if path.is_dir() else path.parent).joinpath(f"loop{chance.random()}").symlink_to(tree)
    elif fault == 6:
        file.unlink()
        os.mkfifo(file)
    elif fault == 7:
        file.write_bytes(chance.choice(files).read_bytes())
    elif fault == 8:
        path.rename(path.with_name("renamed"))
    elif fault == 9:
        config = chance.choice([each for each in files if each.suffix == ".pbtxt"])
        lines = config.read_text().splitlines(keepends=True)
        del lines[chance.randrange(len(lines))]
        config.write_text("".join(lines))
    else:
        config = chance.choice([each for each in files if each.suffix == ".pbtxt"])
        config.write_text(config.read_text().replace("samplers", chance.choice(("x", 'samplers\\":[{}],\\"y'))))
    return f"fault {fault} of {file.relative_to(tree)} or {path.relative_to(tree)}"


def _trees(root: Path, source: Path, seed: str) -> Iterator[tuple[Path, str]]:
    chance = random.Random(seed)
    for number in range(TREES):
        tree = root / str(number)
        shutil.copytree(source, tree)
        yield tree, "; ".join(_spoil(tree, chance) for _ in range(chance.randint(1, 2)))
        shutil.rmtree(tree)


@pytest.fixture
def pairs(tmp_path, tiny_classifier, tiny_segmentation) -> Path:
    folder = tmp_path / "pairs"
    for tiny in (tiny_classifier, tiny_segmentation):
        publish_pair(tiny, folder)
    return folder


@pytest.mark.slow
def test_a_corrupted_repository_is_refused_or_staged(tmp_path, pairs):
    """What `equipoise serve` does before Triton, and what the stub does after it: one of our errors, or it holds."""
    outcomes: list[str] = []
    for number, (tree, fault) in enumerate(_trees(tmp_path / "trees", pairs, "repository")):
        staged = tmp_path / f"staged{number}"
        staged.mkdir()
        try:
            names = stage_repository(tree, staged, "embedded", 2)
            assert public_models(tree) == names
            for name in names:
                load_model(staged / name / "1")
            outcomes.append("held")
        except (DeployError, ContractError) as error:
            assert str(error), fault
            outcomes.append("refused")
        except Exception as error:
            raise AssertionError(fault) from error
        shutil.rmtree(staged)
    assert outcomes.count("refused") > TREES // 3, outcomes


def test_a_corrupted_pair_is_not_published(tmp_path, pairs):
    """Or it is still what it was."""
    store = Store(tmp_path / "store")
    for tree, fault in _trees(tmp_path / "trees", pairs, "publish"):
        try:
            make_release(tree, "tinycls", store)
        except DeployError as error:
            assert str(error), fault
        except Exception as error:
            raise AssertionError(fault) from error
    assert not [path for path in (store.path / "models/tinycls").iterdir() if path.name.startswith(".")]
    for version in store.versions("tinycls"):
        load_model(store.folder("tinycls", version) / "tinycls/1")


def test_a_corrupted_release_is_never_served(tmp_path, pairs):
    """Not one of them: each file of a release is known."""
    store = Store(tmp_path / "store")
    make_release(pairs, "tinycls", store)
    source = store.folder("tinycls", 1)
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for number, (tree, fault) in enumerate(_trees(tmp_path / "trees", source, "release")):
        into = tmp_path / f"copy{number}"
        unchanged = _same(tree, source)
        try:
            served = verified_copy(tree, into)
            # With `release.json` gone it is a plain repository: only a store or --trust knows that it was a release.
            assert unchanged or served == tree, fault
        except DeployError as error:
            assert str(error), fault
        except Exception as error:
            raise AssertionError(fault) from error
        shutil.rmtree(into, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    def listed(tree: Path) -> dict[str, bytes | None]:
        return {
            path.relative_to(tree).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
            for path in tree.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }

    return listed(one) == listed(other)
