"""A run directory that Triton reads instead of the repository itself.

It mirrors the models with links, file by file, so that nothing is ever written into the repository (Python would leave
its `__pycache__` there), and holds the configurations as this machine wants them.
"""

from __future__ import annotations

import contextlib
import os
import py_compile
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from equipoise_core.canonical import canonical_json
from equipoise_core.case import Model
from equipoise_core.policy import PolicyError, load_policy
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ..errors import RepositoryError
from ..gpu_memory import IMAGES_PARAMETER, gpu_limits
from ..repository import (
    carried_contract,
    configuration_of,
    is_public,
    model_folders,
    parse_configuration,
    public_models,
    samplers_of,
)
from .computing import computed_by
from .device import EMBEDDED_CUDA
from .settings import NONE, PROBE_SAMPLES, Settings, is_stand_in, on_cpu

# Triton 2.51 loses wake-ups on a queue with priorities: a free instance can wait for another one to finish, or for
# 500 ms. 41 requests of 30 ms took 10 times as long as without priorities with one instance, 1.2 to 2.5 times with two,
# 1.1 to 1.3 times with four, no longer with eight.
_FEWEST_INSTANCES = 4
# Each is a process; more of them would wait for the sampler, not for a core. A GPU gets all of them: requests share a
# run where they meet at the sampler. Of 16 callers 2.0 met with four aggregators, 4.0 with eight, 6.0 with sixteen.
_MOST_INSTANCES = 16
# Threads of one run wait for each other, and more so where others want the cores: on two cores two samplers with a
# thread each answered 1.6 to 2.0 times as many requests as one with two, and 1.1 to 1.4 times as many as two with two.
# Each takes a run's memory; a run of the stand-in that is alone gets all cores.
_MOST_SAMPLERS = 4
# Threads of the native backend spin while they wait, and no option of it forbids that: the second thread of a run cost
# 1.5 to 2.5 times the processor time of the first alone. So as many samplers as requests can come at a time.
_MOST_NATIVE_SAMPLERS = _MOST_INSTANCES

CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores this process may use, by its affinity and its control group's quota (version 2), at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), quota(CGROUPS, own_group())))


def own_group() -> Path:
    """Control group of this process; in a container its own is the root."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return Path(line.removeprefix("0::/"))
    return Path()


def quota(root: Path, group: Path) -> int:
    """Cores that a control group and those above it, below `root`, leave; a million where nothing limits them."""
    quotas = [1_000_000]
    for each in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"; version 1 has no such file
            quota, period = (root / each / "cpu.max").read_text().split()
            quotas.append(int(quota) // int(period))
    return min(quotas)


def aggregator_instances(cores: int) -> int:
    """Aggregators per model on the CPU: one per core, so that one's arithmetic overlaps with another's sampling."""
    return min(max(_FEWEST_INSTANCES, cores), _MOST_INSTANCES)


def sampler_instances(cores: int, members: int, native: bool) -> int:
    """Runs at a time of each sampler on the CPU, of the `members` that a request runs at the same time.

    Args:
        native: by Triton's own backend, and not by our stand-in.
    """
    return max(1, min(cores, _MOST_NATIVE_SAMPLERS if native else _MOST_SAMPLERS) // members)


def stub_processes(repository: Path, configuration: str, cores: int) -> int:
    """Python processes of a repository's models, as they are served; samplers of the native backend have none."""
    public = public_models(repository)
    stand_ins = (
        is_stand_in(parse_configuration(configuration_of(model, configuration)))
        for model in model_folders(repository)
        if model.name not in public
    )
    aggregators = (published_settings(repository, name, configuration, cores).aggregators or 0 for name in public)
    return sum(aggregators) + sum(stand_ins)


def stage_repository(
    repository: Path,
    into: Path,
    configuration: str,
    cores: int,
    settings: Mapping[str, Settings] = NONE,
    *,
    on_trial: bool = False,
) -> tuple[str, ...]:
    """Mirrors every model of `repository` into the directory `into`; returns the public models' names, sorted.

    A model is a folder with a `config.pbtxt`; a public one's configuration carries its contract.

    Args:
        settings: by public model's name. Raises RepositoryError where there is no such model.
        on_trial: nothing will run from `into`, so no code is compiled.
    """
    public = public_models(repository)
    if unknown := sorted(set(settings) - set(public)):
        raise RepositoryError(f"settings for {', '.join(unknown)}, but {repository} serves {', '.join(public)}")
    own = {
        name: published_settings(repository, name, configuration, cores).overlaid(settings.get(name, Settings()))
        for name in public
    }
    owners = {sampler: name for name in public for sampler in samplers_of(repository / name)}
    limits = {
        name: gpu_limits(repository, name, each.gpu_memory * 10**6, each.chunk, each.samplers or 1)
        for name, each in own.items()
        if each.gpu_memory is not None and not on_cpu(_sampler(repository, name, configuration))
    }
    compiled: dict[Path, Path] | None = None if on_trial else {}
    for model in model_folders(repository):
        _mirror(model, into / model.name, compiled)
        chosen = configuration_of(model, configuration)
        config = parse_configuration(chosen)
        if model.name in own:
            sampler = _sampler(repository, model.name, configuration)
            own[model.name].configure_aggregator(config, _shares(sampler, own[model.name]))
            config.parameters[IMAGES_PARAMETER].string_value = str(sampler.max_batch_size)
            if model.name in limits:
                limits[model.name].configure_aggregator(config)
            config.parameters["computed_by"].string_value = canonical_json(computed_by(sampler))
            if not on_cpu(sampler):
                chunk, members = _chunk(repository / model.name, own[model.name]), len(carried_contract(model).samplers)
                config.parameters[PROBE_SAMPLES].string_value = str(-(-max(2, members) // chunk) * chunk)
        elif model.name in owners:
            owner = owners[model.name]
            members = len(carried_contract(repository / owner).samplers)
            own[owner].configure_sampler(config, max(1, cores // members))
            _warm_up_with(config, -(-_chunk(repository / owner, own[owner]) // members))
            if owner in limits:
                limits[owner].configure_sampler(config)
        else:
            continue
        staged = into / chosen.relative_to(repository)
        staged.unlink()
        staged.write_text(text_format.MessageToString(config), encoding="utf-8")
    return public


def _sampler(repository: Path, model: str, configuration: str) -> ModelConfig:
    """The configuration of a public model's sampler; all of an ensemble are alike."""
    path = configuration_of(repository / samplers_of(repository / model)[0], configuration)
    config = parse_configuration(path)
    if configuration == EMBEDDED_CUDA and (on_cpu(config) or not is_stand_in(config)):
        raise RepositoryError(
            f"{path} is no configuration for the embedded server on a GPU (configs/{EMBEDDED_CUDA}.pbtxt is missing): "
            "the model was published by an earlier version; publish it again, or serve with --device cpu"
        )
    return config


def _shares(sampler: ModelConfig, settings: Settings) -> int:
    """Requests of a sampler to send at the same time, so that one caller's images use all cores.

    The stand-in gives them to a single one; on a GPU one run is to be as large as can be.
    """
    return settings.samplers or 1 if on_cpu(sampler) and not is_stand_in(sampler) else 1


def _warm_up_with(sampler: ModelConfig, chunk: int) -> None:
    """The T that requests will have: a GPU plans for one shape."""
    for warmup in sampler.model_warmup:
        if "masks" in warmup.inputs:
            warmup.inputs["masks"].dims[0] = chunk


def _chunk(public: Path, settings: Settings) -> int:
    """Samples of one sampler request of a public model, as its aggregator takes them from policy and settings."""
    try:
        policy = load_policy(public / "1" / "policy.json")
    except PolicyError:
        policy = None
    return Model(carried_contract(public), policy, "", "", settings.chunk).chunk


def pinned(repository: Path) -> dict[str, Path]:
    """Every entry's name → where its links lead: what is served now, even if a link is switched later.

    Raises RepositoryError where nothing is servable.
    """
    root = repository.resolve()
    unreadable = []
    for model in model_folders(root):
        try:
            if is_public(model):
                break
        except RepositoryError as error:  # what is wrong with one, does not concern the others
            unreadable.append(str(error))
    else:
        none = f"{repository} holds no public model (none whose configuration carries a contract)"
        raise RepositoryError("; ".join([*unreadable, none]))
    return {entry.name: entry.resolve() for entry in root.iterdir() if not entry.name.startswith(".")}


def link_pinned(entries: Mapping[str, Path], into: Path) -> Path:
    """A repository of links, as `pinned` found them."""
    into.mkdir()
    for name, entry in entries.items():
        (into / name).symlink_to(entry)
    return into


def published_settings(repository: Path, model: str, configuration: str, cores: int) -> Settings:
    """How `serve` runs a public model where nothing else is asked for; None where a number is T or left to Triton."""
    aggregator = parse_configuration(configuration_of(repository / model, configuration))
    names = [sampler.name for sampler in carried_contract(repository / model).samplers]
    if not names:
        raise RepositoryError(f"{repository / model}'s contract names no sampler; export the model again")
    members = len(names)
    sampler = _sampler(repository, model, configuration)
    stated = Settings.stated(aggregator, sampler)
    if not on_cpu(sampler):
        return replace(stated, aggregators=aggregator_instances(cores) if is_stand_in(sampler) else _MOST_INSTANCES)
    instances = sampler_instances(cores, members, not is_stand_in(sampler))
    threads = stated.threads or max(1, cores // (instances * members))
    return replace(stated, aggregators=aggregator_instances(cores), samplers=instances, threads=threads)


def _mirror(source: Path, target: Path, compiled: dict[Path, Path] | None, above: tuple[Path, ...] = ()) -> None:
    """Real directories, linked files; links inside the repository are followed.

    Every stub would compile the code anew, a dozen of them at a time: here it is done once.

    Args:
        compiled: Python file → its bytecode, of those that were compiled before; None: nothing is compiled.
        above: the real folders that this one lies in.

    Raises RepositoryError for a dangling link, a link to a folder above, and anything else that is not a file.
    """
    target.mkdir()
    real = source.resolve()
    if real in above:
        raise RepositoryError(f"{source} links to {real}, a folder above itself; remove the link")
    for entry in source.iterdir():
        if entry.name == "__pycache__":
            continue
        staged = target / entry.name
        if entry.is_dir():
            _mirror(entry, staged, compiled, (*above, real))
            continue
        if not entry.is_file():
            raise RepositoryError(f"{entry} is not a file (a dangling link, or a device); restore or remove it")
        file = entry.resolve()
        staged.symlink_to(file)
        if compiled is not None and file.suffix == ".py":
            bytecode = target / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc"
            bytecode.parent.mkdir(exist_ok=True)
            if file in compiled:
                shutil.copyfile(compiled[file], bytecode)
            elif py_compile.compile(str(file), cfile=str(bytecode), quiet=2):  # what does not compile, Triton reports
                compiled[file] = bytecode
