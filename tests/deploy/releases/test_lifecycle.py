"""A model goes into service only when it is fit, switches as a whole, comes back, and every decision is on record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from equipoise_client import UncertaintyClient
from equipoise_client.cli.main import main
from equipoise_clinic.audit import verify
from equipoise_clinic.audit.chain import entries
from equipoise_deploy.errors import ReleaseError, StartError, TamperedError
from equipoise_deploy.ports import Ports
from equipoise_deploy.promotion.promotion import PromotionRequest, promote, reload, rollback
from equipoise_deploy.promotion.shadow import Comparison, Pair
from equipoise_deploy.releases.loading import verified_copy
from equipoise_deploy.releases.publishing import find_pair, make_release
from equipoise_deploy.releases.release import read_release, verify_release
from equipoise_deploy.releases.store import Store
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair

from ...support.asking import poll
from ...support.disks import small_disk
from ...support.processes import Serving, serving
from ...support.releases import edit, give_policy, make_keys, proven

WHY = PromotionRequest(accept_changes="a test")


@pytest.fixture
def pairs(tmp_path, tiny_classifier) -> Path:
    """A repository with one proven classifier and its policy."""
    folder = tmp_path / "pairs"
    publish_pair(proven(tiny_classifier), folder)
    give_policy(folder / "tinycls")
    return folder


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def _next_version(pairs: Path, threshold: float) -> None:
    give_policy(pairs / "tinycls", threshold)


def _routes(*pairs: tuple[str, str]) -> Comparison:
    return Comparison(tuple(Pair(f"{i}.npy", "", b, a, 0.1, 0.1, None, None) for i, (b, a) in enumerate(pairs)))


def test_a_store_may_be_named_from_where_one_stands(pairs, tmp_path, monkeypatch):
    """A relative path is signed and verified like any other."""
    keys = make_keys(tmp_path)
    monkeypatch.chdir(tmp_path)
    near = Store(Path("near"))
    release = make_release(pairs, "tinycls", near, keys.private)
    assert verify_release(near.folder("tinycls", 1), keys.public) == release


def test_a_release_is_a_copy_that_stands_alone(pairs, store):
    """Links are replaced, digests are those of the contract, and nothing of it can be written by chance."""
    release = make_release(pairs, "tinycls", store)
    folder = store.folder("tinycls", 1)
    assert verify_release(folder) == release == read_release(folder)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert all(not path.stat().st_mode & 0o222 for path in folder.rglob("*"))
    assert {"tinycls/1/policy.json", "tinycls_sampler/1/model.onnx"} <= set(release.files)
    assert release.policy_digest and release.previous is None


def test_the_same_again_is_the_same_release(pairs, store, tmp_path):
    """Publishing twice is no second version; another policy is."""
    make_release(pairs, "tinycls", store)
    assert make_release(pairs, "tinycls", store, make_keys(tmp_path).private).version == 1
    assert (store.folder("tinycls", 1) / "release.sig").is_file(), "signed later"
    _next_version(pairs, 0.4)
    second = make_release(pairs, "tinycls", store)
    assert (second.version, second.previous) == (2, 1)


def test_a_pair_is_named_by_its_folder_or_within_its_repository(pairs):
    """Both spellings of the command line."""
    assert find_pair(str(pairs / "tinycls")) == find_pair(f"{pairs}:tinycls") == (pairs, "tinycls")
    with pytest.raises(ReleaseError, match="is not a published model"):
        find_pair(f"{pairs}:absent")


def test_what_would_not_load_is_not_published(pairs, store):
    """Half a model is found out before it is a release, and leaves nothing behind."""
    shutil.rmtree(pairs / "tinycls_sampler")
    (pairs / "tinycls_sampler").mkdir()
    with pytest.raises(ReleaseError, match="does not load"):
        make_release(pairs, "tinycls", store)
    assert store.versions("tinycls") == ()


def test_promotion_switches_the_model_and_its_samplers_with_one_link(pairs, store):
    """`current` is a link to a generation that holds both."""
    make_release(pairs, "tinycls", store)
    done = promote(store, "tinycls")
    assert done.passed and done.generation.number == 1
    assert store.current.is_symlink() and str(store.current.readlink()) == "generations/1"
    assert {path.name for path in store.current.iterdir()} == {"tinycls", "tinycls_sampler", "generation.json"}
    assert promote(store, "tinycls").generation is None, "it is in service already"


@pytest.mark.parametrize("spoil", ["absent", "foreign", "failed", "empty", "unreadable"])
def test_without_a_proof_of_this_file_nothing_is_promoted(tmp_path, tiny_classifier, store, spoil):
    """A proof that is missing, about another file, or says no, is no proof."""
    pairs = tmp_path / "pairs"
    publish_pair(proven(tiny_classifier, passed=spoil != "failed"), pairs)
    give_policy(pairs / "tinycls")
    proof = pairs / "tinycls_sampler/1/proof.json"
    if spoil == "absent":
        proof.unlink()
    elif spoil == "foreign":
        edit(proof, model_digest="0" * 64)
    elif spoil == "empty":
        edit(proof, checks=[])
    elif spoil == "unreadable":
        proof.write_text('{"checks": [1]}')
    make_release(pairs, "tinycls", store)
    done = promote(store, "tinycls", WHY)
    assert not done.passed and done.generation is None and not store.current.exists()
    assert [check.name for check in done.checks if not check.holds] == ["export proof"]


@pytest.mark.parametrize("kind", ["none", "foreign", "damaged"])
def test_a_model_without_a_policy_needs_a_word(tmp_path, tiny_classifier, store, kind):
    """It runs and routes everything to review, which must be what somebody wants."""
    pairs = tmp_path / "pairs"
    publish_pair(proven(tiny_classifier), pairs)
    if kind != "none":
        give_policy(pairs / "tinycls")
        policy = pairs / "tinycls/1/policy.json"
        text = policy.read_text().replace('"samples": 20', '"samples": 21')
        if kind == "damaged":
            policy.write_text(text)
        else:
            from equipoise_core.policy import Policy
            from equipoise_core.stages import Stage

            policy.write_text(Policy("0" * 64, "0" * 64, (Stage(20, "lack_of_confidence"),)).dumps())
    make_release(pairs, "tinycls", store)
    assert not promote(store, "tinycls", WHY).passed
    done = promote(store, "tinycls", PromotionRequest(without_policy=True))
    assert done.generation is not None and any("review" in check.waived for check in done.checks)


def test_a_release_carries_no_pictures_of_cases(pairs, store, tmp_path):
    """It travels; figures and guarantees of the calibration report go with it."""
    page = b"<h1>figures</h1>\n<!-- cases -->\n<img src='data:'>\n<b>Miller.nii</b>\n<!-- /cases -->\n<p>ECE</p>"
    (tmp_path / "report.html").write_bytes(page)
    make_release(pairs, "tinycls", store, report=tmp_path / "report.html")
    (kept,) = store.path.rglob("report.html")
    assert kept.read_bytes() == b"<h1>figures</h1>\n<p>Left out of the release.</p>\n<p>ECE</p>"


def test_another_version_has_to_be_compared_first(pairs, store):
    """Without cases it takes a reason, and the reason is on record."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    assert not promote(store, "tinycls").passed
    assert promote(store, "tinycls", PromotionRequest(accept_changes="only the report changed")).generation.number == 2
    last = list(entries(store.log))[-1].body
    assert last["action"] == "promote" and last["reason"] == "only the report changed" and last["by"]


@pytest.mark.parametrize(
    ("routes", "at_most", "why", "passes"),
    [
        ([("review", "accept")], 0, None, False),
        ([("reject", "accept")], 0, None, False),
        ([("review", "accept")], 1, None, True),
        ([("review", "accept")], 0, "seen by an expert", True),
        ([("accept", "review"), ("accept", "accept"), ("review", "reject")], 0, None, True),
    ],
)
def test_cases_that_nobody_would_look_at_any_more_stop_it(pairs, store, tmp_path, routes, at_most, why, passes):
    """From review to accept is the direction that hurts; the other one is work."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    request = PromotionRequest(cases=tmp_path, at_most=at_most, accept_changes=why)
    done = promote(store, "tinycls", request, run=lambda *_: _routes(*routes))
    assert (done.generation is not None) is passes
    assert store.generation().models["tinycls"].version == (2 if passes else 1)
    logged = list(entries(store.log))[-1].body
    assert logged["action"] == ("promote" if passes else "refused") and logged["shadow"]["cases"] == len(routes)


def test_the_log_is_a_chain_and_names_no_file(pairs, store, tmp_path):
    """A file's name can be a patient's."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls", PromotionRequest(cases=tmp_path), run=lambda *_: _routes(("review", "review")))
    assert list(verify(store.log)) == []
    assert "0.npy" not in store.log.read_text()
    changed = store.log.read_text().replace('"version":2', '"version":3')
    store.log.write_text(changed)
    assert list(verify(store.log))
    with pytest.raises(ReleaseError, match="releases in service are unchanged"):
        rollback(store, "tinycls")


def test_rollback_goes_back_and_never_forth(pairs, store):
    """Twice after two promotions is the first version; a third has nowhere to go."""
    for number, threshold in enumerate((0.5, 0.4, 0.3), start=1):
        _next_version(pairs, threshold)
        make_release(pairs, "tinycls", store)
        assert promote(store, "tinycls", WHY).generation.number == number
    assert [rollback(store, "tinycls").version for _ in range(2)] == [2, 1]
    with pytest.raises(ReleaseError, match="first version"):
        rollback(store, "tinycls")
    with pytest.raises(ReleaseError, match="not in service"):
        rollback(store, "absent")
    assert store.generation().number == 5


def test_a_rollback_leaves_other_models_alone(pairs, store, tiny_segmentation):
    """A generation holds all models that are served together."""
    publish_pair(proven(tiny_segmentation), pairs)
    for name in ("tinycls", "tinyseg"):
        make_release(pairs, name, store)
        promote(store, name, PromotionRequest(without_policy=True))
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls", WHY)
    rollback(store, "tinycls")
    assert {name: chosen.version for name, chosen in store.generation().models.items()} == {"tinycls": 1, "tinyseg": 1}


def test_a_crash_before_the_switch_changes_nothing(pairs, store, monkeypatch):
    """All is written beside; the rename comes last."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    before = store.current.readlink()

    def fail(self, target):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="power cut"):
            promote(store, "tinycls", WHY)
    assert store.current.readlink() == before and store.generation().models["tinycls"].version == 1
    assert promote(store, "tinycls", WHY).generation.number == 3


def test_only_a_serving_process_is_signalled(tmp_path):
    """SIGHUP ends most other programs."""
    with pytest.raises(ReleaseError, match="is not `equipoise serve`"):
        reload(str(os.getpid()))
    waiting = "import signal, sys; signal.signal(1, lambda *_: sys.exit(7)); print('on', flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", waiting, "serve"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    assert "asked to reload" in reload(str(process.pid))
    assert process.wait(timeout=30) == 7
    process.stdout.close()


def test_a_plain_repository_is_served_as_it_lies(pairs, tmp_path):
    """Without a release there is nothing to hold it to; with --trust that is refused."""
    assert verified_copy(pairs, tmp_path / "copy") == pairs
    with pytest.raises(ReleaseError, match="is not part of a release"):
        verified_copy(pairs, tmp_path / "copy", make_keys(tmp_path).public)


def test_serve_starts_nothing_that_is_not_signed(pairs, tmp_path, capsys):
    """Exit code 1 and what to do; for a container the copy is made beforehand."""
    key = str(make_keys(tmp_path).public)
    ports = ("--grpc-port=0", "--http-port=0", "--metrics-port=0", "--engine=embedded")
    with pytest.raises(SystemExit) as done:
        main(["serve", str(pairs), "--trust", key, *ports])
    assert done.value.code == 1 and "`equipoise publish`" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["serve", str(pairs), "--trust", str(pairs / "absent"), *ports])
    assert done.value.code == 1


def test_a_release_whose_description_was_removed_is_refused(pairs, store, tmp_path):
    """Otherwise removing `release.json` would switch verification off."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    (store.folder("tinycls", 1) / "release.json").unlink()
    with pytest.raises(ReleaseError, match="is not part of a release"):
        verified_copy(store.current, tmp_path / "copy")


def test_links_that_lead_elsewhere_than_the_generation_says_are_refused(pairs, store, tmp_path):
    """Another release of the same model is a real release too."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.4)
    make_release(pairs, "tinycls", store)
    for part in ("tinycls", "tinycls_sampler"):
        link = store.path / "generations/1" / part
        link.unlink()
        link.symlink_to(store.folder("tinycls", 2) / part)
    with pytest.raises(TamperedError, match="disagree about tinycls"):
        verified_copy(store.current, tmp_path / "copy")


def test_a_copy_is_served_and_not_the_store(pairs, store, tmp_path):
    """What changes in the store afterwards reaches nobody."""
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    served = verified_copy(store.current, tmp_path / "copy")
    inside = (served / "tinycls_sampler/1/model.onnx").resolve()
    assert tmp_path / "copy" in inside.parents
    assert inside.stat().st_ino != (store.folder("tinycls", 1) / "tinycls_sampler/1/model.onnx").stat().st_ino


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="a file system of one's own takes root")
def test_a_full_disk_is_an_error_and_leaves_no_half_release(pairs, tmp_path, capsys):
    """Nothing is in the store that was not written whole."""
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "others").write_bytes(b"x" * 950_000)
        with pytest.raises(SystemExit) as done:
            main(["publish", f"{pairs}:tinycls", "--store", str(disk / "store")])
        assert done.value.code == 1 and "No space left" in capsys.readouterr().err
        assert Store(disk / "store").versions("tinycls") == ()


def test_verbs_say_what_they_did(pairs, store, capsys):
    """One JSON object each; a refusal is exit code 1, and so is a store that is not there."""

    def call(code: int, *words: str) -> str:
        with pytest.raises(SystemExit) as done:
            main([*words, "--store", str(store.path)])
        assert done.value.code == code
        return capsys.readouterr().out

    call(1, "releases")
    assert json.loads(call(0, "publish", f"{pairs}:tinycls", "--json"))["version"] == 1
    assert json.loads(call(0, "promote", "tinycls", "--json"))["generation"] == 1
    _next_version(pairs, 0.4)
    assert "tinycls 2: " in call(0, "publish", str(pairs / "tinycls"))
    refused = json.loads(call(1, "promote", "tinycls@2", "--json"))
    assert refused["refused"] and [check["name"] for check in refused["checks"] if not check["passed"]] == [
        "shadow comparison"
    ]
    assert "--cases DIR" in call(1, "promote", "tinycls").replace("\n", " ")
    assert "is current (generation 2)" in call(0, "promote", "tinycls", "--accept-changes", "a test")
    assert json.loads(call(0, "rollback", "tinycls", "--json"))["version"] == 1
    staged = store.path.parent / "staged"
    assert "every file in service is as published" in call(0, "releases", "--stage", str(staged))
    assert (staged / "tinycls_sampler/1/model.onnx").is_file()
    call(1, "releases", "--stage", str(staged))
    listed = json.loads(call(0, "releases", "--verify", "--json"))
    assert [(each["version"], each["in_service"]) for each in listed["releases"]] == [(1, True), (2, False)]


@pytest.mark.triton
@pytest.mark.slow
def test_both_versions_are_served_on_the_cases_and_compared(pairs, store, tmp_path):
    """A policy that accepts more is found out by the cases that it would accept; then the old one is still served."""
    cases = tmp_path / "cases"
    cases.mkdir()
    for number, level in enumerate((-3.0, 0.0, 3.0)):
        np.save(cases / f"{number}.npy", np.full((4, 4), level, np.float32) + np.eye(4, dtype=np.float32))
    _next_version(pairs, 0.0)
    make_release(pairs, "tinycls", store)
    promote(store, "tinycls")
    _next_version(pairs, 0.9)
    make_release(pairs, "tinycls", store)
    refused = promote(store, "tinycls", PromotionRequest(cases=cases))
    assert not refused.passed and refused.comparison.loosened == 3 and len(refused.comparison.pairs) == 3
    for pair in refused.comparison.pairs:
        assert (pair.before, pair.after) == ("review", "accept")
        assert pair.score_before == pytest.approx(pair.score_after, abs=1e-6)
    assert promote(store, "tinycls", PromotionRequest(cases=cases, at_most=3)).generation.number == 2


@pytest.mark.slow
@pytest.mark.triton
def test_a_signed_store_is_served_and_a_changed_one_is_not(pairs, store, tmp_path):
    """A real Triton answers from `STORE/current`; after one changed byte the same call refuses and names the file."""
    keys = make_keys(tmp_path)
    make_release(pairs, "tinycls", store, keys.private)
    promote(store, "tinycls", PromotionRequest(trust=keys.public))
    image = np.eye(4, dtype=np.float32)[None]
    with TritonServer(store.current, ports=Ports(0, 0, 0), trust=keys.public) as server:
        check_readiness(server.grpc_url, server.models)
        with UncertaintyClient(server.grpc_url) as client:
            answer = client.predict("tinycls", image)
        assert answer.record["policy_digest"] == read_release(store.folder("tinycls", 1)).policy_digest
    policy = store.folder("tinycls", 1) / "tinycls/1/policy.json"
    policy.chmod(0o644)
    content = bytearray(policy.read_bytes())
    content[len(content) // 2] ^= 1
    policy.write_bytes(bytes(content))
    with pytest.raises(TamperedError, match=f"{policy} was changed"), TritonServer(store.current) as server:
        raise StartError("it must not start")


@pytest.mark.triton
@pytest.mark.slow
def test_a_running_server_takes_up_what_is_promoted_and_nothing_that_was_changed(pairs, store, tmp_path):
    """Published, promoted, reloaded: the new policy decides. One changed byte later the reload is refused, and the
    version before goes on deciding."""
    keys, image = make_keys(tmp_path), np.eye(4, dtype=np.float32)[None]

    def in_force(server: Serving) -> str:
        with UncertaintyClient(server.urls["grpc"], timeout=90.0) as client:
            return client.predict("tinycls", image, outputs=()).record["policy_digest"]

    def published(version: int) -> str | None:
        return read_release(store.folder("tinycls", version)).policy_digest

    make_release(pairs, "tinycls", store, keys.private)
    promote(store, "tinycls", PromotionRequest(trust=keys.public))
    options = ("--drain-seconds=0.1", f"--trust={keys.public}")
    with serving(store.current, tmp_path / "run", os.environ, options) as server:
        assert in_force(server) == published(1)
        _next_version(pairs, 0.4)
        make_release(pairs, "tinycls", store, keys.private)
        promote(store, "tinycls", WHY)
        assert in_force(server) == published(1), "nothing changes before it is asked to"
        reload(str(server.process.pid))
        poll(lambda: server.health()[1].get("generation") == 2, "it serves the new version", 90.0)
        assert in_force(server) == published(2)

        _next_version(pairs, 0.3)
        make_release(pairs, "tinycls", store, keys.private)
        promote(store, "tinycls", WHY)
        policy = store.folder("tinycls", 3) / "tinycls/1/policy.json"
        policy.chmod(0o644)
        policy.write_text(policy.read_text().replace("0.3", "0.9", 1))
        reload(str(server.process.pid))
        poll(lambda: server.health()[1].get("fell_back"), "the reload is refused", 90.0)
        poll(lambda: server.health()[0] == 200, "it serves", 90.0)
        assert in_force(server) == published(2)
        rollback(store, "tinycls", PromotionRequest(trust=keys.public))
        reload(str(server.process.pid))
        poll(lambda: server.health()[1].get("generation") == 3, "it serves what was rolled back to", 90.0)
        assert in_force(server) == published(2)
