"""Whether a running server still serves: from its processes, from health probes and from the progress of its models.

    check                                   every 0.25 s
    ├── its processes                       one has ended, or is stopped
    └── the health probe of each model      every 2 to 3 s
        ├── a correct answer                healthy
        ├── an error                        three times in a row
        └── no answer                       and no progress of that model for 4 s

A busy server must not be taken for a dead one. A probe that waits behind long volumes, or is refused because the queue
is full, says nothing by itself. It counts only where the model has meanwhile made no progress: it has neither answered
anything nor called or run a sampler nor used the processor, nor waited for a processor that others used. A sampler of
the native backend runs inside Triton, as those of all other models do: what Triton computes counts for a model only
while it waits for its sampler.
"""

from __future__ import annotations

import re
import signal
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from equipoise_core.contract import Contract
from tritonclient.utils import InferenceServerException

from ..ports import fetch
from .guardian import AT_ONCE, BRIEFLY
from .processes import Process, glance
from .readiness import Prober
from .server import TritonServer

CHECK_EVERY = 0.25
PROBE_EVERY = 2.0
_SHARE = 20.0  # a slow probe is sent less often, so that probes cost at most a twentieth of the time
_PROBE_AT_LEAST_EVERY = 3.0
_PROBE_AGAIN = 0.5  # after an error
_ERRORS = 3
_OVERDUE = 1.5  # seconds without an answer after which progress is looked for
HUNG_AFTER = 4.0
"""Seconds without progress after which a model that does not answer counts as hung."""

_LONGEST = 900.0  # seconds that a model may go without answering, however busy it is
STOPPED = 1.0
"""Seconds; a debugger or a checkpoint may stop a process for a moment."""

_COMPUTED = 0.1  # seconds of processor time within `HUNG_AFTER` that count as progress
_STARVED = 1.0  # the same of waiting for a processor: a hung model does not want one, except for a thread now and then
_FULL = "exceeds maximum queue size"  # Triton's words
_COUNTERS = re.compile(
    r'^nv_inference_(?:exec_count|request_success|request_failure)\{[^}]*\bmodel="([^"]*)"[^}]*\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True)
class Trouble:
    """Why a server has to be restarted.

    Attributes:
        reason: one line, fit for logs.
        hurry: how it is to be stopped.
        model: the model whose process or answer it is; empty: Triton's own.
    """

    reason: str
    hurry: signal.Signals | None
    model: str = ""


@dataclass(frozen=True)
class Activity:
    """What a model and its samplers have done so far.

    Attributes:
        counted: requests and executions.
        computed, waited: seconds of processor time, and of waiting for a processor.
        calls: of its samplers that it waits for now.
    """

    counted: float
    computed: float
    waited: float
    calls: int = 0

    def progressed_since(self, before: Activity) -> bool:
        computed = self.computed - before.computed
        starved = computed + self.waited - before.waited >= _STARVED
        return self.counted > before.counted or self.calls != before.calls or computed >= _COMPUTED or starved


@dataclass
class ProbeState:
    """What is known of one model's health probes. Times in seconds of the monotonic clock.

    Attributes:
        answered: when the last correct answer came.
        due: when the next probe is sent.
        since: when the open probe was sent; None: none is open.
        seconds: that the last answer took.
        errors: wrong answers in a row; `wrong` is the last of them.
        refused: the last probe was refused because the queue was full.
        progress: when progress was last seen, with the activity at that moment; None until the next probe.
    """

    answered: float
    due: float
    since: float | None = None
    seconds: float = 0.0
    errors: int = 0
    wrong: str = ""
    refused: bool = False
    progress: tuple[float, Activity] | None = None

    def problem(self, now: float, hung_after: float = HUNG_AFTER) -> str:
        """What speaks against the model; empty while it answers, or has made progress within `hung_after` seconds."""
        if self.errors:
            return self.wrong
        stuck = self.progress is not None and now - self.progress[0] >= hung_after
        return "neither answers nor makes progress" if stuck else ""


@dataclass
class ServerMonitor:
    """Checks one server from its first answers on.

    Args:
        hung_after: seconds instead of `HUNG_AFTER`, for hardware whose work leaves no trace in processor time.
        clock: of the monotonic kind.
    """

    server: TritonServer
    hung_after: float = HUNG_AFTER
    clock: Callable[[], float] = time.monotonic
    models: dict[str, ProbeState] = field(init=False)

    def __post_init__(self) -> None:
        now = self.clock()
        self._prober = Prober(self.server.grpc_url, self.server.models)
        self._processes = self.server.processes()
        self._stopped_since: dict[Process, float] = {}
        self._counted: tuple[float, Mapping[str, float]] = (-HUNG_AFTER, {})  # when, and what
        self.models = {model: ProbeState(now, now + PROBE_EVERY) for model in self.server.models}

    def close(self) -> None:
        self._prober.close()

    def check(self) -> Trouble | None:
        """Everything once; None: as far as can be seen, it serves."""
        return self._check_exit() or self._check_processes() or self._check_probes()

    def _check_exit(self) -> Trouble | None:
        code = self.server.exit_code()
        return None if code is None else Trouble(f"Triton ended by itself with exit code {code}", None)

    def _check_processes(self) -> Trouble | None:
        now = self.clock()
        for process in self._processes:
            seen = glance(process)
            if seen is None:
                return Trouble(f"{process} has died", BRIEFLY, process.model)
            if not seen.stopped:
                self._stopped_since.pop(process, None)
            elif now - self._stopped_since.setdefault(process, now) >= STOPPED:
                return Trouble(f"{process} is stopped", BRIEFLY if process.model else AT_ONCE, process.model)
        return None

    def _check_probes(self) -> Trouble | None:
        for model, error in self._prober.answers():
            self._note_answer(self.models[model], error)
        for model, state in self.models.items():
            if trouble := self._check_model(model, state):
                return trouble
        return None

    def _note_answer(self, state: ProbeState, error: Exception | None) -> None:
        now = self.clock()
        state.seconds = now - (state.since or now)
        state.since, state.due = None, now + _PROBE_AGAIN
        state.refused = isinstance(error, InferenceServerException) and _FULL in str(error).lower()
        if error is None:
            state.answered, state.errors, state.progress = now, 0, None
            state.due = now + min(_PROBE_AT_LEAST_EVERY, max(PROBE_EVERY, _SHARE * state.seconds))
        elif not state.refused:
            state.errors, state.wrong = state.errors + 1, str(error)

    def _check_model(self, model: str, state: ProbeState) -> Trouble | None:
        now = self.clock()
        if state.errors >= _ERRORS:
            return Trouble(f"{model} failed on {_ERRORS} health probes in a row: {state.wrong}", BRIEFLY, model)
        if state.since is None and now >= state.due:
            state.since = now
            if state.progress is None:  # progress after the probe is measured against this
                state.progress = (now, self._activity(self._prober.contracts[model], now))
            self._prober.send(model)
        if not state.refused and (state.since is None or now - state.since < _OVERDUE):
            return None
        activity = self._activity(self._prober.contracts[model], now)
        if state.progress is None or activity.progressed_since(state.progress[1]):
            state.progress = (now, activity)
        if now - state.progress[0] >= self.hung_after:
            return Trouble(f"{model} has neither answered nor made progress for {self.hung_after:g} s", BRIEFLY, model)
        if now - state.answered >= _LONGEST:
            return Trouble(f"{model} has not answered a health probe for {_LONGEST:g} s", BRIEFLY, model)
        return None

    def _activity(self, contract: Contract, now: float) -> Activity:
        """Of a model and its samplers so far."""
        if now - self._counted[0] >= 2 * CHECK_EVERY:
            self._counted = now, _counted(self.server.metrics_url)
        names = {contract.name, *(sampler.name for sampler in contract.files)}
        stubs = {process.model for process in self._processes}
        calls = self.server.sampler_calls(contract.name)
        # A sampler without a process of its own runs inside Triton.
        counting = {"", *names} if calls and not names <= stubs else names
        ours = [process for process in self._processes if process.model in counting]
        seen = [found for found in map(glance, ours) if found]
        return Activity(
            sum(self._counted[1].get(name, 0.0) for name in names),
            sum(each.seconds for each in seen),
            sum(each.waited for each in seen),
            calls,
        )


def _counted(metrics_url: str) -> Mapping[str, float]:
    """Model → requests and executions so far; empty where the metrics don't answer within a second."""
    address = urllib.parse.urlsplit(metrics_url)
    text = (fetch(address.netloc, address.path, 1.0) or b"").decode(errors="replace")
    found: dict[str, float] = {}
    for model, value in _COUNTERS.findall(text):
        found[model] = found.get(model, 0.0) + float(value)
    return found
