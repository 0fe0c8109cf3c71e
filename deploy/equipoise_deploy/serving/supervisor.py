"""Keeps one Triton serving: starts and proves it, watches it, restarts it, takes a new repository into service."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model

from ..errors import DeployError, NotReadyError
from ..ports import LOOPBACK, USUAL_PORTS, Ports
from ..releases.loading import verified_copy
from ..repository import public_models
from .guardian import BRIEFLY
from .health import HealthServer, ModelHealth, Snapshot, State
from .readiness import Probe, check_readiness
from .restarting import RestartBudget
from .server import TritonServer
from .settings import NONE, Settings
from .staging import link_pinned, pinned
from .watch import LOOK_EVERY, QUIET, Trouble, Watch


@dataclass(frozen=True)
class Plan:
    """What `equipoise serve` is asked to do.

    Attributes:
        repository: folder of published models, or a link to one; its links are resolved when it is taken into service.
        address: where gRPC, metrics and health listen.
        drain: seconds between saying "no more" on the health port and stopping, so that a proxy notices.
        restarts: of a Triton that does not serve, within ten minutes.
        quiet: see `watch.QUIET`.
        trust: public key that every model must be signed with.
    """

    repository: Path
    ports: Ports = USUAL_PORTS
    settings: Mapping[str, Settings] = field(default_factory=lambda: NONE)
    address: str = LOOPBACK
    drain: float = 2.0
    restarts: int = 5
    quiet: float = QUIET
    trust: Path | None = None


class Supervisor:
    """One Triton and what is known of it.

    Args:
        tell: called with one line whenever something happens that an operator should know; nothing of a case is in it.
    """

    def __init__(
        self, plan: Plan, health: HealthServer, on_log: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        self.plan, self._health, self._on_log, self._tell = plan, health, on_log, tell
        self._budget = RestartBudget(plan.restarts)
        self._ports = plan.ports
        self._models: Mapping[str, Path] = {}
        self._server: TritonServer | None = None
        self._watch: Watch | None = None
        self._generation, self._fell_back = 0, ""

    @property
    def server(self) -> TritonServer:
        assert self._server is not None, "nothing was started"
        return self._server

    def start(self) -> tuple[Probe, ...]:
        """What the repository holds now, served and proved. Raises DeployError."""
        self._models = pinned(self.plan.repository)
        probes = self._begin()
        self._generation = 1
        self._say_serving()
        return probes

    def look(self) -> Trouble | None:
        """Looks once, and says on the health port what it saw."""
        assert self._watch is not None
        trouble = self._watch.look()
        if trouble is None:
            self._say_serving()
        return trouble

    def restart(self, trouble: Trouble) -> None:
        """Ends what does not serve and starts it again, as often as the budget allows. Raises GaveUp."""
        self._say(State.RESTARTING, trouble.reason)
        self._tell(f"{trouble.reason}: Triton is restarted")
        self._end(trouble)
        self._come_back(trouble.reason)

    def reload(self) -> None:
        """Takes what the repository holds now into service; where that cannot serve, what was served before stays."""
        try:
            fresh = pinned(self.plan.repository)
            self._examine(fresh)
        except (DeployError, ContractError, OSError, ValueError) as error:
            self._refuse_reload(error)
            self._say_serving()
            return
        before = self._models
        self._tell(f"reload: draining, then serving {len(fresh)} models anew from {self.plan.repository}")
        self.drain("reload")
        self._end()
        self._models, self._fell_back = fresh, ""
        try:
            self._begin()
            self._generation += 1
        except DeployError as error:
            self._models = before
            self._refuse_reload(error)
            self._begin_or_come_back()
        else:
            self._tell(f"reloaded: generation {self._generation} is served")
            self._say_serving()

    def _examine(self, models: Mapping[str, Path]) -> None:
        """Raises where these cannot be served as far as reading tells, before what serves is ended for them.

        What was served before need not be there any more: a plain repository may have been changed in place.
        """
        with tempfile.TemporaryDirectory(prefix="equipoise-") as scratch:
            linked = link_pinned(models, Path(scratch) / "pinned")
            found = verified_copy(linked, Path(scratch) / "verified", self.plan.trust)
            for name in public_models(found):
                load_model(found / name / "1")

    def drain(self, reason: str) -> None:
        """Says that no new requests should come, and gives a proxy the time to notice."""
        self._say(State.DRAINING, reason)
        time.sleep(self.plan.drain)

    def stop(self, reason: str) -> None:
        """Answers what was accepted, and ends."""
        self._say(State.DRAINING, reason)
        self._end()

    def _begin(self) -> tuple[Probe, ...]:
        """Starts and proves; afterwards it is watched."""
        self._server = TritonServer(
            self.plan.repository,
            ports=self._ports,
            on_log=self._on_log,
            settings=self.plan.settings,
            address=self.plan.address,
            pinned=self._models,
            trust=self.plan.trust,
        )
        try:
            self._server.start()
            probes = check_readiness(self._server.grpc_url, self._server.models)
            self._watch = Watch(self._server, self.plan.quiet)
        except DeployError:
            self._server.stop(BRIEFLY)  # in good order it would take half a minute where a process of a model is dead
            raise
        except Exception as error:  # a repository can be damaged in unforeseen ways; what was served before must stay
            self._server.stop(BRIEFLY)
            raise NotReadyError(f"it cannot be proved: {type(error).__name__}: {error}") from error
        self._ports = self._server.ports  # whoever asks knows these: a restart keeps them
        return probes

    def _begin_or_come_back(self) -> None:
        try:
            self._begin()
        except DeployError as error:
            self._come_back(_first_line(error))
        else:
            self._say_serving()

    def _come_back(self, reason: str) -> None:
        while True:
            pause = self._budget.take(reason)
            if pause:
                self._tell(f"restart {self._budget} in {pause:g} s")
                time.sleep(pause)
            begin = time.monotonic()
            try:
                self._begin()
            except DeployError as error:
                reason = f"the restart failed: {_first_line(error)}"
                self._tell(reason)
                continue
            self._tell(f"serving again after {time.monotonic() - begin:.1f} s (restart {self._budget})")
            self._say_serving()
            return

    def _end(self, trouble: Trouble | None = None) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._server is not None:
            self._server.stop(trouble.hurry if trouble else None)

    def _refuse_reload(self, error: Exception) -> None:
        self._fell_back = _first_line(error)
        self._tell(f"THE RELOAD WAS REFUSED, the models from before it are served: {error}")

    def _say(self, state: State, reason: str) -> None:
        told = self._health.snapshot
        self._health.snapshot = replace(
            told, state=state, reason=reason, restarts=self._budget.total, at=time.monotonic()
        )

    def _say_serving(self) -> None:
        assert self._watch is not None
        now = time.monotonic()
        models = {
            name: ModelHealth(not (amiss := asked.amiss(now, self.plan.quiet)), round(now - asked.answered, 2), amiss)
            for name, asked in self._watch.models.items()
        }
        self._health.snapshot = Snapshot(
            State.SERVING, "", models, self._generation, self._budget.total, self._fell_back, now
        )


def watch_until(supervisor: Supervisor, interrupted: Callable[[], bool]) -> Trouble | None:
    """Blocks until something is wrong with the server; None: until `interrupted`."""
    while not interrupted():
        if trouble := supervisor.look():
            return trouble
        time.sleep(LOOK_EVERY)
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
