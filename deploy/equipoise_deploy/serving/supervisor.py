"""Keeps one Triton serving: starts, proves, monitors and restarts it, and takes a new repository into service."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from equipoise_core.contract import ContractError
from equipoise_core.loading import load_model

from ..errors import DeployError, GaveUp, NotReadyError, RepositoryError
from ..ports import LOOPBACK, USUAL_PORTS, Ports
from ..releases.loading import verified_copy
from ..repository import public_models
from .closing import AcceptSwitch, obeys
from .engine import Engine, find_engine
from .guardian import BRIEFLY
from .health import HealthServer, ModelHealth, Snapshot, State
from .monitor import HUNG_AFTER, ServerMonitor, Trouble
from .readiness import Probe, check_readiness
from .restarting import RestartBudget
from .server import TritonServer
from .settings import NONE, Settings
from .staging import link_pinned, pinned
from .survey import Survey, one_line, survey


@dataclass(frozen=True)
class Plan:
    """What `equipoise serve` is asked to do.

    Attributes:
        repository: folder of published models, or a link to one; its links are resolved when it is taken into service.
        address: where gRPC, metrics and health listen.
        drain: seconds between 503 on the health port and the stop, so that a proxy notices.
        restarts: of a Triton that does not serve, within ten minutes.
        hung_after: see `monitor.HUNG_AFTER`.
        trust: public key that every model must be signed with.
        engine: the Triton to start; None: as `TritonServer` chooses.
        close_on_alarm: audit log whose alarms close accept.
    """

    repository: Path
    ports: Ports = USUAL_PORTS
    settings: Mapping[str, Settings] = field(default_factory=lambda: NONE)
    address: str = LOOPBACK
    drain: float = 2.0
    restarts: int = 5
    hung_after: float = HUNG_AFTER
    trust: Path | None = None
    engine: Engine | None = None
    close_on_alarm: Path | None = None


_DEAF = "it was published before --close-on-alarm was known, and would go on accepting; export or publish it again"


class Supervisor:
    """One Triton and what is known of it.

    A model that cannot serve is left out, and the others are served: Triton does not know it then, so that it answers
    nothing. It is tried again at the next reload.

    Args:
        report: called with one line whenever something happens that an operator should know; never with case data.
        switch: closes accept after an alarm.

    Attributes:
        left_out: public models that are not served, and why.
    """

    def __init__(
        self,
        plan: Plan,
        health: HealthServer,
        on_log: Callable[[str], None],
        report: Callable[[str], None],
        switch: AcceptSwitch | None = None,
    ) -> None:
        self.plan, self._health, self._on_log, self._report, self._switch = plan, health, on_log, report, switch
        self._budget = RestartBudget(plan.restarts)
        self._ports = plan.ports
        self._engine = plan.engine or find_engine(os.environ)
        self._models: Mapping[str, Path] = {}
        self._found = Survey({}, {})
        self._server: TritonServer | None = None
        self._monitor: ServerMonitor | None = None
        self._generation, self._fell_back = 0, ""
        self.left_out: dict[str, str] = {}

    @property
    def server(self) -> TritonServer:
        assert self._server is not None, "nothing was started"
        return self._server

    def start(self) -> tuple[Probe, ...]:
        """What the repository holds now, served and proved. Raises DeployError."""
        self._models = pinned(self.plan.repository)
        probes = self._start_server()
        self._generation = 1
        self._publish_health()
        return probes

    def check(self) -> Trouble | None:
        """Checks once, and shows the result on the health port."""
        assert self._monitor is not None
        trouble = self._monitor.check()
        if trouble is None:
            self._publish_health()
        return trouble

    def restart(self, trouble: Trouble) -> None:
        """Stops a server that does not serve and starts it again, within the budget. Raises GaveUp."""
        self._set_state(State.RESTARTING, trouble.reason)
        self._report(f"{trouble.reason}: restarting Triton")
        self._stop_server(trouble)
        try:
            self._recover(trouble.reason)
        except GaveUp:
            culprits = self._culprits({trouble.model: trouble.reason})
            if not culprits:
                raise
            self._leave_out(culprits)
            self._budget = RestartBudget(self.plan.restarts, total=self._budget.total)
            self._recover(trouble.reason)

    def reload(self) -> None:
        """Serves what the repository holds now; where that fails, the models from before stay in service."""
        try:
            fresh = pinned(self.plan.repository)
            known = {name for name in self.left_out if fresh.get(name) == self._models.get(name)}
            still_bad = self._examine(fresh, known)
        except (DeployError, ContractError, OSError, ValueError) as error:
            self._refuse_reload(error)
            self._publish_health()
            return
        before, left_out = self._models, self.left_out
        self._report(f"reload: draining, then serving {len(fresh)} models from {self.plan.repository}")
        self.drain("reload")
        self._stop_server()
        self._models, self._fell_back, self.left_out = fresh, "", still_bad
        try:
            self._start_server(may_fail=known)
            self._generation += 1
        except DeployError as error:
            self._models, self.left_out = before, left_out
            self._refuse_reload(error)
            self._start_or_recover()
        else:
            self._report(f"reloaded: serving generation {self._generation}")
            self._publish_health()

    def _examine(self, models: Mapping[str, Path], may_fail: Collection[str]) -> dict[str, str]:
        """Raises where reading shows that these cannot be served, before the running server is stopped for them.

        Returns those that may fail and would, with the reason. What was served before need not be there any more: a
        plain repository may have been changed in place.
        """
        found = survey(models, self._engine.configuration)
        bad = dict(found.wrong)
        if fresh := [f"{name}: {why}" for name, why in bad.items() if name not in may_fail]:
            raise RepositoryError("; ".join(fresh))
        with tempfile.TemporaryDirectory(prefix="equipoise-") as scratch:
            linked = link_pinned(_without(models, found, bad), Path(scratch) / "pinned")
            verified = verified_copy(linked, Path(scratch) / "verified", self.plan.trust, bad)
            for name in public_models(verified):
                try:
                    load_model(verified / name / "1")
                except (ContractError, OSError, ValueError) as error:
                    if name not in may_fail:
                        raise
                    bad[name] = one_line(error)
        return bad

    def drain(self, reason: str) -> None:
        """Answers 503 on the health port, and gives a proxy the time to notice."""
        self._set_state(State.DRAINING, reason)
        time.sleep(self.plan.drain)

    def stop(self, reason: str) -> None:
        """Answers the accepted requests, then ends."""
        self._set_state(State.DRAINING, reason)
        self._stop_server()

    def _start_server(self, may_fail: Collection[str] | None = None) -> tuple[Probe, ...]:
        """Starts Triton, proves it and begins to monitor it; models that fail are left out where others do not.

        Args:
            may_fail: the only models that may be left out; None: any, and what failed under Triton is tried once more
                first, since a busy machine can be the reason.
        """
        tried: set[str] = set()
        while True:
            try:
                self._refuse_unreadable()
                return self._try_server()
            except DeployError as error:
                culprits = self._culprits(error.models, may_fail)
                if not culprits:
                    raise
                if may_fail is None and (fresh := set(culprits) - tried - set(self._found.wrong)):
                    tried |= fresh
                    self._report(f"{one_line(error)}: trying {', '.join(sorted(fresh))} once more")
                else:
                    self._leave_out(culprits)

    def _refuse_unreadable(self) -> None:
        """Raises RepositoryError for models that reading shows Triton cannot serve."""
        self._found = survey(self._models, self._engine.configuration)
        if self._switch is not None:
            deaf = {name: _DEAF for name in self._found.parts if not obeys(self._models[name])}
            self._found = replace(self._found, wrong={**deaf, **self._found.wrong})
        if wrong := {name: why for name, why in self._found.wrong.items() if name not in self.left_out}:
            raise RepositoryError("; ".join(wrong.values()), wrong)

    def _served(self) -> list[str]:
        """Public models that are not left out."""
        return sorted(set(self._found.parts) - set(self.left_out))

    def _culprits(self, models: Mapping[str, str], may_fail: Collection[str] | None = None) -> dict[str, str]:
        """The public models that these are or belong to, and why; none where they may not, or none would be left."""
        served = self._served()
        culprits = {}
        for name in served:
            parts = self._found.folders_of([name]) & set(models)
            if parts:
                culprits[name] = "; ".join(models[part].splitlines()[0] for part in sorted(parts))
        allowed = may_fail is None or set(culprits) <= set(may_fail)
        return culprits if allowed and len(culprits) < len(served) else {}

    def _leave_out(self, culprits: Mapping[str, str]) -> None:
        self.left_out |= culprits
        for name, why in culprits.items():
            self._report(f"NOT READY, AND NOT SERVED: {name}: {why}")

    def _try_server(self) -> tuple[Probe, ...]:
        self._server = TritonServer(
            self.plan.repository,
            self._engine,
            ports=self._ports,
            on_log=self._on_log,
            settings={name: each for name, each in self.plan.settings.items() if name not in self.left_out},
            address=self.plan.address,
            pinned=_without(self._models, self._found, self.left_out),
            left_out=frozenset(self.left_out),
            trust=self.plan.trust,
            closed=self._switch.folder if self._switch else None,
        )
        try:
            self._server.start()
            probes = check_readiness(self._server.grpc_url, self._server.models)
            self._monitor = ServerMonitor(self._server, self.plan.hung_after)
        except DeployError:
            self._server.stop(BRIEFLY)  # an orderly stop takes half a minute where a process of a model is dead
            raise
        except Exception as error:  # unforeseen damage to a repository: the models from before must stay in service
            self._server.stop(BRIEFLY)
            raise NotReadyError(f"the server failed its first check: {type(error).__name__}: {error}") from error
        self._ports = self._server.ports  # clients know these: a restart keeps them
        return probes

    def _start_or_recover(self) -> None:
        try:
            self._start_server(may_fail=())
        except DeployError as error:
            self._recover(one_line(error))
        else:
            self._publish_health()

    def _recover(self, reason: str) -> None:
        """Starts the server again. All models served before; one is left out only from the second attempt on."""
        may_fail: Collection[str] | None = ()
        while True:
            pause = self._budget.take(reason)
            if pause:
                self._report(f"restart {self._budget} in {pause:g} s")
                time.sleep(pause)
            begin = time.monotonic()
            try:
                self._start_server(may_fail)
            except DeployError as error:
                reason, may_fail = f"the restart failed: {one_line(error)}", None
                self._report(reason)
                continue
            self._report(f"serving again after {time.monotonic() - begin:.1f} s (restart {self._budget})")
            self._publish_health()
            return

    def _stop_server(self, trouble: Trouble | None = None) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._server is not None:
            self._server.stop(trouble.hurry if trouble else None)

    def _refuse_reload(self, error: Exception) -> None:
        self._fell_back = one_line(error)
        self._report(f"THE RELOAD WAS REFUSED, the models from before it stay in service: {error}")

    def _set_state(self, state: State, reason: str) -> None:
        self._health.snapshot = replace(
            self._health.snapshot, state=state, reason=reason, restarts=self._budget.total, at=time.monotonic()
        )

    def _publish_health(self) -> None:
        assert self._monitor is not None
        now = time.monotonic()
        models = {
            name: ModelHealth(
                not (problem := state.problem(now, self.plan.hung_after)), round(now - state.answered, 2), problem
            )
            for name, state in self._monitor.models.items()
        }
        self._health.snapshot = Snapshot(
            State.SERVING, "", models, self._generation, self._budget.total, self._fell_back, dict(self.left_out), now,
            dict(self._switch.closed) if self._switch else {},
        )  # fmt: skip


def _without(models: Mapping[str, Path], found: Survey, left_out: Collection[str]) -> dict[str, Path]:
    """All folders but those of the models that are left out; what another model needs as well stays."""
    gone = found.folders_of(set(found.parts) & set(left_out)) - found.folders_of(set(found.parts) - set(left_out))
    return {name: path for name, path in models.items() if name not in gone}
