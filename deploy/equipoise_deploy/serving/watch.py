"""Whether a running server still serves: from its processes, from synthetic questions and from signs of life.

    look                                        every 0.25 s
    ├── its processes                           one has ended, or stands still
    └── the synthetic question of each model    every 2 to 3 s
        ├── answered as it should be            fine
        ├── answered with an error              three times in a row
        └── not answered                        and no sign of life of that model for 4 s

A busy server must not be taken for a dead one. A question that waits behind long volumes, or is refused because the
queue is full, says nothing by itself; it counts only where the model has meanwhile neither answered anything nor run a
sampler nor used the processor, nor waited for one that others had.
"""

from __future__ import annotations

import http.client
import re
import signal
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from equipoise_core.contract import Contract
from tritonclient.utils import InferenceServerException

from ..ports import LOOPBACK
from .guardian import AT_ONCE, BRIEFLY
from .processes import Process, glance
from .readiness import Prober
from .server import TritonServer

LOOK_EVERY = 0.25
ASK_EVERY = 2.0
_LEISURE = 20.0  # a question that takes long is asked less often, so that asking costs at most a twentieth of the time
_ASK_AT_LEAST_EVERY = 3.0
_ASK_AGAIN = 0.5  # after an error
_ERRORS = 3
_OVERDUE = 1.5  # seconds without an answer after which signs of life are looked for
QUIET = 4.0
"""Seconds without any sign of life after which a model that does not answer is taken for hung."""

_LONGEST = 900.0  # seconds that a model may go without answering, however busy it is
STOPPED = 1.0
"""Seconds; a debugger or a checkpoint may stop a process for a moment."""

_SIGN = 0.1  # seconds of processor time within `QUIET` that count as a sign of life
_STARVED = 1.0  # the same of wanting to compute: who hangs wants nothing, but for a thread that wakes now and then
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
    """

    reason: str
    hurry: signal.Signals | None


@dataclass(frozen=True)
class Account:
    """What a model and its samplers have done so far.

    Attributes:
        counted: requests and executions.
        computed, waited: seconds of processor time, and of waiting for a processor.
    """

    counted: float
    computed: float
    waited: float

    def shows_life_since(self, before: Account) -> bool:
        computed = self.computed - before.computed
        starved = computed + self.waited - before.waited >= _STARVED
        return self.counted > before.counted or computed >= _SIGN or starved


@dataclass
class Asked:
    """What is known of one model's synthetic questions. Times in seconds of the monotonic clock.

    Attributes:
        answered: when it last answered as it should.
        since: when the open question was put; None: there is none.
        errors: wrong answers in a row; `wrong` is the last of them.
        life: when it last gave a sign of life, with the account it was seen by; None until the next question.
    """

    answered: float
    due: float
    since: float | None = None
    seconds: float = 0.0
    errors: int = 0
    wrong: str = ""
    refused: bool = False
    life: tuple[float, Account] | None = None

    def amiss(self, now: float, quiet: float = QUIET) -> str:
        """What speaks against the model; empty while it answers, or is seen to work within `quiet` seconds."""
        if self.errors:
            return self.wrong
        return "neither answers nor works" if self.life is not None and now - self.life[0] >= quiet else ""


@dataclass
class Watch:
    """Watches one server from its first answers on.

    Args:
        quiet: seconds instead of `QUIET`, for hardware whose work leaves no trace in processor time.
        clock: of the monotonic kind.
    """

    server: TritonServer
    quiet: float = QUIET
    clock: Callable[[], float] = time.monotonic
    models: dict[str, Asked] = field(init=False)

    def __post_init__(self) -> None:
        now = self.clock()
        self._prober = Prober(self.server.grpc_url, self.server.models)
        self._processes = self.server.processes()
        self._standing: dict[Process, float] = {}  # process → since when it is stopped
        self._counted: tuple[float, Mapping[str, float]] = (-QUIET, {})  # when, and what
        self.models = {model: Asked(now, now + ASK_EVERY) for model in self.server.models}

    def close(self) -> None:
        self._prober.close()

    def look(self) -> Trouble | None:
        """One look; None: as far as can be seen, it serves."""
        return self._ended() or self._look_at_processes() or self._look_at_answers()

    def _ended(self) -> Trouble | None:
        code = self.server.exit_code()
        return None if code is None else Trouble(f"Triton ended by itself with exit code {code}", None)

    def _look_at_processes(self) -> Trouble | None:
        now = self.clock()
        for process in self._processes:
            seen = glance(process)
            if seen is None:
                return Trouble(f"{process} has died", BRIEFLY)
            if not seen.stopped:
                self._standing.pop(process, None)
            elif now - self._standing.setdefault(process, now) >= STOPPED:
                return Trouble(f"{process} is stopped", BRIEFLY if process.model else AT_ONCE)
        return None

    def _look_at_answers(self) -> Trouble | None:
        for model, error in self._prober.answers():
            self._heard(self.models[model], error)
        for model, asked in self.models.items():
            if trouble := self._look_at_model(model, asked):
                return trouble
        return None

    def _heard(self, asked: Asked, error: Exception | None) -> None:
        now = self.clock()
        asked.seconds = now - (asked.since or now)
        asked.since, asked.due = None, now + _ASK_AGAIN
        asked.refused = isinstance(error, InferenceServerException) and _FULL in str(error).lower()
        if error is None:
            asked.answered, asked.errors, asked.life = now, 0, None
            asked.due = now + min(_ASK_AT_LEAST_EVERY, max(ASK_EVERY, _LEISURE * asked.seconds))
        elif not asked.refused:
            asked.errors, asked.wrong = asked.errors + 1, str(error)

    def _look_at_model(self, model: str, asked: Asked) -> Trouble | None:
        now = self.clock()
        if asked.errors >= _ERRORS:
            return Trouble(f"{model} failed on {_ERRORS} synthetic questions in a row: {asked.wrong}", BRIEFLY)
        if asked.since is None and now >= asked.due:
            asked.since = now
            if asked.life is None:  # what follows the question is compared with this
                asked.life = (now, self._account(self._prober.contracts[model], now))
            self._prober.ask(model)
        if not asked.refused and (asked.since is None or now - asked.since < _OVERDUE):
            return None
        account = self._account(self._prober.contracts[model], now)
        if asked.life is None or account.shows_life_since(asked.life[1]):
            asked.life = (now, account)
        if now - asked.life[0] >= self.quiet:
            return Trouble(f"{model} has neither answered nor worked for {self.quiet:g} s", BRIEFLY)
        if now - asked.answered >= _LONGEST:
            return Trouble(f"{model} has not answered a synthetic question for {_LONGEST:g} s", BRIEFLY)
        return None

    def _account(self, contract: Contract, now: float) -> Account:
        """Of a model and its samplers so far."""
        if now - self._counted[0] >= 2 * LOOK_EVERY:
            self._counted = now, _counted(self.server.metrics_url)
        names = {contract.name, *(sampler.name for sampler in contract.samplers)}
        names |= {contract.screen.name} if contract.screen else set()
        stubs = {process.model for process in self._processes}
        # A sampler without a process of its own runs inside Triton.
        ours = [process for process in self._processes if process.model in (names if names <= stubs else {"", *names})]
        seen = [found for found in map(glance, ours) if found]
        return Account(
            sum(self._counted[1].get(name, 0.0) for name in names),
            sum(each.seconds for each in seen),
            sum(each.waited for each in seen),
        )


def _counted(metrics_url: str) -> Mapping[str, float]:
    """Model → requests and executions so far; empty where the metrics don't answer within a second."""
    address = urllib.parse.urlsplit(metrics_url)
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=1.0)
    try:
        connection.request("GET", address.path)
        text = connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    found: dict[str, float] = {}
    for model, value in _COUNTERS.findall(text):
        found[model] = found.get(model, 0.0) + float(value)
    return found
