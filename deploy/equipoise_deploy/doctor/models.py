"""The models to be served: who can change them, whether they are as published, whether their policies are in force."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from equipoise_clinic.audit import AuditError, Kind, verify
from equipoise_clinic.audit.chain import entries
from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model

from ..errors import DeployError, ReleaseError
from ..releases.loading import verified_copy
from ..releases.release import DOCUMENT
from ..releases.store import Store
from ..repository import models_in, parse_configuration, public_models
from .results import CheckResult, Subject, failure, ok, skipped, warning

CUDA_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
"""Options of ONNX Runtime's providers that replay a captured run."""


def permissions(subject: Subject) -> Iterator[CheckResult]:
    """Nobody but an administrator should be able to change what decides about patients."""
    try:
        root = subject.repository.resolve()
        folders = {root, *((root / model).resolve() for model in models_in(root))}
        user = None if subject.user is None else pwd.getpwnam(subject.user)
    except DeployError as error:
        yield failure("permissions", str(error), "give what is served with --repository")
        return
    except KeyError:
        yield failure("permissions", f"there is no user {subject.user!r} here", "give the user of the service")
        return
    anybody, group, service = [], [], []
    groups = set() if user is None else set(os.getgrouplist(user.pw_name, user.pw_gid))
    # Write access above is enough to put another folder here, or to point STORE/current at an older release.
    above = {parent for folder in folders for parent in folder.parents} | set(subject.repository.absolute().parents)
    for path in sorted({*above, *(path for folder in folders for path in (folder, *folder.rglob("*")))}):
        status = path.stat()  # of a link's target: Triton loads that
        if path in above and status.st_mode & stat.S_ISVTX:
            continue  # as in /tmp: nobody can rename another user's entries
        if status.st_mode & stat.S_IWOTH and not (path.is_dir() and status.st_mode & stat.S_ISVTX):
            anybody.append(path)
        elif user is not None and user.pw_uid and _may_write(status, user.pw_uid, groups):
            service.append(path)
        elif status.st_mode & stat.S_IWGRP and status.st_gid != 0:
            group.append(path)
    if anybody:
        yield failure("permissions", f"anybody can change {_some(anybody)}", f"chmod -R o-w {root}")
    if service:
        yield failure(
            "permissions",
            f"the service's own user {subject.user} can change {_some(service)}",
            "have another user own it, and mount it read-only",
        )
    if group:
        yield warning(
            "permissions", f"a group can change {_some(group)}", f"chmod -R g-w {root}, unless that is intended"
        )
    if not (anybody or service or group):
        yield ok("permissions", f"only its owner can change {root}")


def release(subject: Subject) -> Iterator[CheckResult]:
    """Every file is as published, and signed where a key is given."""
    try:
        root = subject.repository.resolve()
        released = [model for model in models_in(root) if ((root / model).resolve().parent / DOCUMENT).exists()]
        if not released and subject.trust is None:
            yield warning(
                "release",
                "a plain repository: no digests of its files to compare with",
                "`equipoise publish` and `promote` its models, and serve STORE/current",
            )
            return
        with tempfile.TemporaryDirectory() as scratch:
            verified_copy(subject.repository, Path(scratch) / "copy", subject.trust)
    except DeployError as error:
        yield failure("release", str(error), "do not serve it before it is restored")
        return
    signed = f"signed by the key of {subject.trust}" if subject.trust else "signatures were not checked (--trust)"
    yield ok("release", f"every file of {len(released)} models is as published; {signed}")
    yield from _log(subject.repository)


def policies(subject: Subject) -> Iterator[CheckResult]:
    """Each model loads, and has a policy of its own."""
    try:
        names = public_models(subject.repository)
    except DeployError as error:
        yield failure("policy", str(error), "give what is served with --repository")
        return
    for name in names:
        try:
            model = load_model(subject.repository / name / "1")
        except (ContractError, OSError) as error:
            yield failure("policy", f"{name} does not load: {error}", "publish it again")
            continue
        if model.policy is None:
            yield warning(
                "policy", f"{name}: {model.why_no_policy}; everything goes to review", "`equipoise calibrate` it"
            )
        elif model.in_force is None:
            yield failure("policy", f"{name}: its policy was made for another model", "calibrate this model")
        elif model.policy.guarantee is None:
            yield ok("policy", f"{name}: for this model; it accepts nothing")
        else:
            rule = model.policy.guarantee
            yield ok("policy", f"{name}: for this model, from {rule.cases} cases; error ≤ {rule.alpha:g}")


def cuda_graphs(subject: Subject) -> Iterator[CheckResult]:
    """No configuration replays CUDA graphs: through Triton they read the first request's inputs again."""
    found = []
    try:
        for model in models_in(subject.repository):
            folder = subject.repository / model
            for path in (folder / "config.pbtxt", *sorted((folder / "configs").glob("*.pbtxt"))):
                config = parse_configuration(path)
                stated = {name: value.string_value for name, value in config.parameters.items()}
                for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
                    stated |= dict(accelerator.parameters)
                names = [name for name in CUDA_GRAPHS if stated.get(name, "0").lower() not in ("0", "false")]
                if config.optimization.cuda.graphs:
                    names.append("optimization.cuda.graphs")
                found += [f"{path} sets {name}" for name in names]
    except DeployError as error:
        yield failure("CUDA graphs", str(error), "give what is served with --repository")
        return
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield failure(
            "CUDA graphs", f"{found[0]}{others}: answers would be those of another image", "remove it; export it again"
        )
    else:
        yield ok("CUDA graphs", "no configuration enables them")


def _log(repository: Path) -> Iterator[CheckResult]:
    """Of a store: the log is intact and has the promotion of each model in service."""
    store = Store(repository.absolute().parent)
    if repository.name != "current" or not store.log.exists():
        yield skipped("release log", "not a STORE/current: there is no log to compare with")
        return
    try:
        last = {
            str(entry.body["model"]): str(entry.body["release"])
            for entry in entries(store.log)
            if entry.kind is Kind.RELEASE and entry.body and entry.body["action"] in ("promote", "rollback", "install")
        }
        odd = [name for name, chosen in store.generation().models.items() if last.get(name) != chosen.release]
    except (AuditError, ReleaseError, KeyError) as error:
        yield failure("release log", f"{store.log}: {error}", "find out who changed it; restore it from a backup")
        return
    if odd:
        yield failure(
            "release log",
            f"{', '.join(odd)} in service is not the version that the log has as promoted",
            "find out who changed it; promote the right version",
        )
    else:
        yield ok("release log", f"{store.log} is intact and has every model in service")


def audit_log(subject: Subject) -> Iterator[CheckResult]:
    """It can be written, has room, and is intact."""
    path = subject.audit_log
    if path is None:
        yield skipped("audit log", "no file was given", "give it with --audit-log")
        return
    try:
        if not path.parent.is_dir():
            raise OSError(f"there is no folder {path.parent}")
        if path.exists():
            with path.open("ab"):
                pass  # opened as `append` does; nothing is written
        elif not os.access(path.parent, os.W_OK):
            raise OSError(f"{path.parent} cannot be written")
        room = os.statvfs(path.parent)
        free = room.f_bavail * room.f_frsize
        findings = list(verify(path)) if path.exists() else []
    except (OSError, AuditError) as error:
        yield failure(
            "audit log", f"{path}: {error}", "give the service's user the folder; without a log nothing is decided"
        )
        return
    if findings:
        yield failure(
            "audit log", f"{path} line {findings[0].line}: {findings[0].what}", "see `equipoise audit verify`"
        )
    elif free < 1 << 30:
        yield warning(
            "audit log",
            f"{path}: {free / (1 << 20):.0f} MiB are left on its disk",
            "make room: with a full disk nothing is decided",
        )
    else:
        yield ok(
            "audit log",
            f"{path} can be written, {free / (1 << 30):.1f} GiB are left, {'intact' if path.exists() else 'new'}",
        )


def _may_write(status: os.stat_result, uid: int, groups: set[int]) -> bool:
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IWUSR) or stat.S_ISDIR(status.st_mode)  # an owner can chmod
    return status.st_gid in groups and bool(status.st_mode & stat.S_IWGRP)


def _some(paths: list[Path]) -> str:
    return f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
