"""How one machine runs a model: what `equipoise tune` measures and `equipoise serve --settings` applies.

Settings change how fast and how many, and nothing else: no number of an answer depends on them. They are a machine's,
so they lie in a file of the machine's and never in the model repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from equipoise_client.wire import RETRY_AFTER_PARAMETER
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from ..errors import RepositoryError

FORMAT = "equipoise-settings/1"

_THREADS = "intra_op_thread_count"  # the native ONNX Runtime backend's own name for it; the stand-in reads the same
_CHUNK = "chunk"
_SAMPLER_INSTANCES = "instances"  # how many sampler requests of one request to send at the same time
_RUNS, _ALONE = "runs", "alone"  # of the stand-in: its parts within one process, and the threads of a run that is alone


PROBE_SAMPLES = "probe_samples"
"""Parameter of a public model on a GPU: the T that health probes name."""


@dataclass(frozen=True)
class Settings:
    """One model's settings; None keeps the default of its configuration, or of `equipoise serve`.

    Attributes:
        aggregators: processes of the public model: requests that are worked on at a time.
        samplers: instances of each of its samplers: requests that each of them runs at a time.
        threads: of ONNX Runtime in each of them. A request that the stand-in runs alone gets all cores.
        delay: µs that a sampler waits for batch-mates.
        chunk: samples of an image per sampler request.
        queue: requests that wait, per priority; more are refused at once (UNAVAILABLE).
        retry_after: ms after which a client that was refused should ask again; clients read it in the configuration.
        gpu_memory: MB (10⁶ bytes) of a GPU that its samplers and first pass may take, all together.
    """

    aggregators: int | None = None
    samplers: int | None = None
    threads: int | None = None
    delay: int | None = None
    chunk: int | None = None
    queue: int | None = None
    retry_after: int | None = None
    gpu_memory: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "delay" else 1
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name} is {value!r}; expected a whole number, at least {least}, or nothing")

    @property
    def given(self) -> dict[str, int]:
        """Those that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def overlaid(self, by: Settings) -> Settings:
        """These settings, overridden by those that `by` has."""
        return replace(self, **by.given)

    def configure_aggregator(self, config: ModelConfig, shares: int) -> None:
        """Changes the public model's configuration in place.

        Args:
            shares: parts of what is sampled together that are sent to a sampler at the same time.
        """
        for group in config.instance_group:
            group.count = self.aggregators or group.count
        if self.chunk is not None:
            config.parameters[_CHUNK].string_value = str(self.chunk)
        config.parameters[_SAMPLER_INSTANCES].string_value = str(shares)
        if self.retry_after is not None:
            config.parameters[RETRY_AFTER_PARAMETER].string_value = str(self.retry_after)
        if self.queue is not None:
            batching = config.dynamic_batching
            for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
                policy.max_queue_size = self.queue

    def configure_sampler(self, config: ModelConfig, alone: int) -> None:
        """Changes a sampler's configuration in place.

        On the CPU a larger batch gains nothing, and the stand-in makes none: unless there is a delay, each request is a
        run of its own, so that what a run takes is what the public model made its request for, however many meet.

        Args:
            alone: threads of a run that has the sampler's cores to itself, where the backend gives them run by run.
        """
        if is_stand_in(config):
            config.parameters[_RUNS].string_value = str(self.samplers or 1)
            config.parameters[_ALONE].string_value = str(alone)
        else:
            for group in config.instance_group:
                group.count = self.samplers or group.count
        if self.threads is not None:
            config.parameters[_THREADS].string_value = str(self.threads)
        if self.delay is not None:
            config.dynamic_batching.max_queue_delay_microseconds = self.delay
        if (on_cpu(config) or is_stand_in(config)) and not self.delay:
            config.ClearField("dynamic_batching")

    @classmethod
    def stated(cls, aggregator: ModelConfig, sampler: ModelConfig) -> Settings:
        """The settings in two configurations; `threads` and `chunk` only where they are there."""
        threads, chunk = (
            config.parameters[name].string_value if name in config.parameters else ""
            for config, name in ((sampler, _THREADS), (aggregator, _CHUNK))
        )
        batching = sampler.dynamic_batching if sampler.HasField("dynamic_batching") else None
        return cls(
            aggregators=aggregator.instance_group[0].count,
            samplers=sampler.instance_group[0].count,
            threads=int(threads or 0) or None,
            delay=batching.max_queue_delay_microseconds if batching else None,
            chunk=int(chunk or 0) or None,
        )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given.items()) or "as published"


def on_cpu(config: ModelConfig) -> bool:
    """Whether a sampler runs on the CPU."""
    return any(group.kind == ModelInstanceGroup.KIND_CPU for group in config.instance_group)


def is_stand_in(config: ModelConfig) -> bool:
    """Whether a sampler is run by our stand-in, not by Triton's native backend."""
    return bool(config.backend == "python")


NONE: Mapping[str, Settings] = MappingProxyType({})


def settings_document(settings: Mapping[str, Settings], figures: Mapping[str, Any]) -> dict[str, Any]:
    """What `load_settings` reads, with the figures that speak for it."""
    chosen = {name: each.given for name, each in settings.items()}
    return {"format": FORMAT, "models": chosen, "figures": dict(figures)}


def load_settings(path: Path) -> tuple[Mapping[str, Settings], Mapping[str, Any]]:
    """By public model's name its settings, and the figures that speak for them.

    Raises RepositoryError that says what is wrong with the file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT}")
        found = {str(name): Settings(**values) for name, values in document["models"].items()}
        figures = dict(document.get("figures", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        known = ", ".join(field.name for field in fields(Settings))
        raise RepositoryError(
            f"{path} has no valid settings ({error}); `equipoise tune` writes such a file, whose models take {known}"
        ) from error
    return MappingProxyType(found), MappingProxyType(figures)
