"""A server that has died or hangs is noticed, restarted and said; a busy one is left alone; poison does not loop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from equipoise_client import EquipoiseError, InvalidInput, ModelDied, Retry, ServerUnavailable, UncertaintyClient
from equipoise_client.backoff import Backoff
from equipoise_client.transport import Tries
from equipoise_core.contract import Contract, Sampler
from equipoise_deploy.errors import GaveUp, RepositoryError, StartError
from equipoise_deploy.promotion.promotion import PromotionRequest, promote
from equipoise_deploy.releases.loading import verified_copy
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.store import Store
from equipoise_deploy.repository import parse_configuration
from equipoise_deploy.serving.engine import Engine
from equipoise_deploy.serving.health import STALE, HealthServer, ModelHealth, Snapshot, State
from equipoise_deploy.serving.monitor import CHECK_EVERY, STOPPED, Activity, ProbeState, ServerMonitor, Trouble
from equipoise_deploy.serving.processes import Glance, Process, glance, server_processes
from equipoise_deploy.serving.restarting import RestartBudget
from equipoise_deploy.serving.settings import Settings
from equipoise_deploy.serving.staging import link_pinned, stage_repository
from equipoise_deploy.serving.supervisor import Plan as SupervisorPlan
from equipoise_deploy.serving.supervisor import Supervisor
from equipoise_export.publish.repository import publish_pair
from equipoise_load.arrivals import Arrivals
from equipoise_load.engine import Plan, run
from equipoise_load.mix import Wish, build_mix
from equipoise_load.tally import Tally
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ...support.asking import metric, poll
from ...support.ports import closed_port
from ...support.processes import Serving, alive, serving
from ...support.releases import give_policy, proven
from ...support.repositories import hold, with_policy

IMAGE = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
LARGE = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
REFERENCE = Path(__file__).parents[3] / "model_repository"
DETECTED = 10.0  # seconds within which a fault has to be noticed
PATIENCE = 90.0

AFTER = """

class Spoilt(TritonPythonModel):
    def execute(self, requests):
        {what}
        return super().execute(requests)

TritonPythonModel = Spoilt
"""
HANGING = "import pathlib, time\nwhile pathlib.Path({gate!r}).exists(): time.sleep(0.2)"


def spoil(model: Path, what: str) -> None:
    """Makes a model run a few lines before every execution; a sampler has a process of its own then."""
    hold(model, AFTER.format(what=what.strip().replace("\n", "\n        ")))


@pytest.fixture
def copy(repository, tmp_path) -> Path:
    """A repository that a test may spoil."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


@contextmanager
def supervised(models: Path, tmp_path: Path, *options: str) -> Iterator[Serving]:
    with serving(models, tmp_path / "run", os.environ, ("--drain-seconds=0", *options)) as server:
        yield server


def answer(server: Serving) -> np.ndarray:
    with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE) as client:
        return client.predict("tinyseg", IMAGE, outputs=("mean",)).mean


def accepted(server: Serving) -> float:
    """Requests that wait or are being answered."""
    names = "nv_inference_pending_request_count", "equipoise_in_flight"
    return sum(metric(server.urls["metrics"], name, 'model="tinyseg"') for name in names)


def stopped(server: Serving) -> str:
    """Ends it in order; what it said of itself."""
    server.process.send_signal(signal.SIGTERM)
    _, said = server.process.communicate(timeout=PATIENCE)
    assert server.process.returncode == 0, said
    assert not server.remains()
    return said


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim", "word"),
    [
        (signal.SIGKILL, "tinyseg", "has died"),
        (signal.SIGKILL, "tinyseg_sampler", "has died|ended by itself"),
        (signal.SIGKILL, "", "has died|ended by itself"),  # its process may be seen first, or its exit code
        (signal.SIGSTOP, "tinyseg_sampler", "is stopped"),
        (signal.SIGSTOP, "", "is stopped"),
    ],
)
def test_dead_or_stopped_processes_are_restarted(repository, tmp_path, number, victim, word):
    """Health says so within 10 s; then the same ports answer the same; of the old server nothing is left."""
    with supervised(repository, tmp_path) as server:
        before, old = answer(server), set(server.family)
        os.kill(server.pid_of(victim), number)
        begin = time.monotonic()

        def seen() -> bool:
            status, document = server.health()
            return status == 503 or document.get("restarts", 0) >= 1  # a look every now and then may miss the 503

        poll(seen, "the fault is noticed", DETECTED)
        noticed = time.monotonic() - begin
        poll(lambda: (now := server.health())[0] == 200 and now[1]["restarts"], "it serves again", PATIENCE)
        assert server.health()[1]["restarts"] == 1
        np.testing.assert_array_equal(answer(server), before)
        guardian_and_server = {each for each in old if each.pid != server.process.pid}
        poll(lambda: not alive(guardian_and_server), "the old server is gone", PATIENCE)
        said = stopped(server)
    assert re.search(word, said) and "serving again" in said, said
    print(f"noticed after {noticed:.2f} s")


def hang_noticed(server: Serving) -> bool:
    """Not only unhealthy, which it is as soon as an answer is late: then it may still come."""
    said = server.health()[1]
    return said.get("state") == "restarting" or said.get("restarts", 0) > 0


@pytest.mark.triton
@pytest.mark.slow
def test_a_model_that_hangs_is_restarted(copy, tmp_path):
    """Nothing died, Triton says it is ready, the queue takes requests: only the health probe shows it."""
    gate = tmp_path / "closed"
    spoil(copy / "tinyseg_sampler", HANGING.format(gate=str(gate)))
    with supervised(copy, tmp_path) as server:
        before = answer(server)
        gate.touch()
        poll(lambda: hang_noticed(server), "the hang is noticed", PATIENCE)  # how soon: the test below
        gate.unlink()
        poll(lambda: server.health()[0] == 200, "it serves again", PATIENCE)
        np.testing.assert_array_equal(answer(server), before)
        assert "neither answered nor made progress" in stopped(server)


@pytest.mark.triton
@pytest.mark.slow
def test_a_model_that_hangs_is_noticed_while_another_one_is_busy(copy, tmp_path, tiny_classifier):
    """Wherever samplers run: those of the native backend share Triton's process with those of all other models."""
    publish_pair(tiny_classifier, copy)
    gate, over = tmp_path / "closed", threading.Event()
    spoil(copy / "tinyseg", HANGING.format(gate=str(gate)))

    def load(url: str) -> None:
        patient = Retry(attempts=20, first=0.5, longest=2.0)
        with UncertaintyClient(url, timeout=PATIENCE, retry=patient) as client:
            while not over.is_set():
                client.predict("tinycls", IMAGE[:, :4, :4], outputs=())

    with supervised(copy, tmp_path) as server, ThreadPoolExecutor(4) as pool:
        try:
            before = answer(server)
            loads = [pool.submit(load, server.urls["grpc"]) for _ in range(4)]
            gate.touch()
            poll(lambda: hang_noticed(server), "the hang is noticed", PATIENCE)
            gate.unlink()
            poll(lambda: server.health()[0] == 200, "it serves again", PATIENCE)
            np.testing.assert_array_equal(answer(server), before)
        finally:
            gate.unlink(missing_ok=True)
            over.set()
        for each in loads:
            each.result(PATIENCE)
        assert "tinyseg has neither answered nor made progress" in stopped(server)


class StandInProber:
    """Sends probes that one model answers, or nobody."""

    def __init__(self, contract: Contract) -> None:
        self.contracts = {contract.name: contract}
        self.answering, self.open = True, 0

    def send(self, model: str) -> None:
        self.open += 1

    def answers(self) -> Iterator[tuple[str, None]]:
        while self.answering and self.open:
            self.open -= 1
            yield next(iter(self.contracts)), None


@pytest.fixture
def monitored(monkeypatch, tiny_segmentation):
    """A monitor of one model, what is sent to it, its clock, and how to let that go on until there is trouble."""
    contract = replace(tiny_segmentation.contract, samplers=(Sampler("tinyseg_sampler", "00" * 32),))
    now = [0.0]
    prober = StandInProber(contract)
    monkeypatch.setattr("equipoise_deploy.serving.monitor.Prober", lambda *_: prober)

    def until(monitor: ServerMonitor, ends: float) -> Trouble | None:
        while now[0] < ends:
            if trouble := monitor.check():
                return trouble
            now[0] += CHECK_EVERY
        return None

    with closed_port() as port:  # no metrics: nobody can tell progress from them
        server = SimpleNamespace(
            grpc_url="",
            metrics_url=f"http://127.0.0.1:{port}/metrics",
            models=(contract.name,),
            processes=lambda: (),
            exit_code=lambda: None,
            sampler_calls=lambda model: 0,
        )
        yield SimpleNamespace(server=server, prober=prober, now=now, until=until, model=contract.name)


@pytest.mark.parametrize("late", [0.0, 0.7, 1.9, 2.3, 2.9])
def test_a_hang_is_noticed_within_ten_seconds(monitored, late):
    """On a machine that does not stand still itself: whenever it begins, between two probes or during one."""
    now = monitored.now
    monitor = ServerMonitor(monitored.server, clock=lambda: now[0])
    assert monitored.until(monitor, 60.0 + late) is None
    monitored.prober.answering = False
    trouble = monitored.until(monitor, now[0] + DETECTED)
    assert trouble is not None and "neither answered nor made progress" in trouble.reason
    assert monitor.models[monitored.model].problem(now[0]), "the health port does not say so"


@pytest.mark.parametrize(
    ("calls", "computes", "hangs"),
    [
        (lambda now: 0, "", True),  # what Triton computes is for other models
        (lambda now: 2, "", False),
        (lambda now: 2, "other", True),
        (lambda now: int(now) % 2, "other", False),  # it calls its sampler again and again
        (lambda now: 0, "tinyseg", False),
    ],
)
def test_triton_computes_for_a_model_only_while_that_calls_its_sampler(monkeypatch, monitored, calls, computes, hangs):
    """With the native backend all samplers run in Triton's process."""
    now, prober = monitored.now, monitored.prober
    processes = tuple(Process(SimpleNamespace(pid=1), name) for name in ("", "tinyseg", "other"))
    monitored.server.processes = lambda: processes
    monitored.server.sampler_calls = lambda model: calls(now[0])
    monkeypatch.setattr(
        "equipoise_deploy.serving.monitor.glance",
        lambda process: Glance(False, now[0] if process.model == computes else 1.0, 0.0),
    )
    monitor = ServerMonitor(monitored.server, clock=lambda: now[0])
    assert monitored.until(monitor, 10.0) is None
    prober.answering = False
    assert (monitored.until(monitor, 60.0) is not None) == hangs


def test_a_model_that_waits_for_a_processor_is_not_hung():
    """On a machine with ten times as much to do as it can, a model may not get .1 s of 4; one that hangs wants none."""
    before = Activity(5.0, 1.0, 30.0)
    assert Activity(5.0, 1.05, 33.5).progressed_since(before)
    assert not Activity(5.0, 1.05, 30.3).progressed_since(before)
    assert Activity(6.0, 1.0, 30.0).progressed_since(before) and Activity(5.0, 1.1, 30.0).progressed_since(before)


@pytest.mark.slow
def test_waiting_for_a_processor_is_seen():
    """The kernel's own figures, of two processes that share one core for a while, and of one that sleeps."""
    core = min(os.sched_getaffinity(0))
    code = f"import os, time; os.sched_setaffinity(0, [{core}])\nwhile True: {{}}"
    with ExitStack() as opened:
        pids = []
        for what in ("pass", "pass", "time.sleep(0.2)"):
            child = opened.enter_context(subprocess.Popen([sys.executable, "-c", code.format(what)]))
            opened.callback(child.kill)
            pids.append(child.pid)
        children = {each.pid: each for each in server_processes(os.getpid())}

        def waited() -> list[float]:
            return [seen.waited if (seen := glance(children[pid])) else 0.0 for pid in pids]

        before = waited()
        poll(lambda: min(np.subtract(waited()[:2], before[:2])) > 1.0, "both have waited for each other", PATIENCE)
        *busy, idle = np.subtract(waited(), before)
        assert idle < 0.5 * min(busy)


@pytest.mark.triton
@pytest.mark.slow
def test_a_busy_model_is_left_alone(copy, tmp_path):
    """Every execution computes for 6 s, longer than a hang may last: it works, so it is healthy."""
    spoil(copy / "tinyseg_sampler", "import time\nends = time.monotonic() + 6.0\nwhile time.monotonic() < ends: pass")
    with supervised(copy, tmp_path) as server:
        ends = time.monotonic() + 20.0
        seen: list[tuple[int, str]] = []
        with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE) as client:
            asking = threading.Thread(target=lambda: client.predict("tinyseg", IMAGE, outputs=()))
            asking.start()

            def watched() -> bool:
                status, document = server.health()
                if status:  # 0: the machine stands still, and nobody answered
                    seen.append((status, document["reason"]))
                return time.monotonic() > ends

            poll(watched, "twenty seconds pass", PATIENCE)
            asking.join(PATIENCE)
        assert {status for status, _ in seen} == {200}, {each for each in seen if each[0] != 200}
        assert server.health()[1]["restarts"] == 0


@pytest.mark.triton
@pytest.mark.slow
def test_a_saturated_server_stays_healthy(repository, tmp_path):
    """Twelve seconds of more than it can answer, refusals included: health says 200 each time, nothing is restarted."""
    with supervised(repository, tmp_path) as server:
        url = server.urls["grpc"]
        with UncertaintyClient(url) as client:
            payloads = build_mix(client, Wish({"tinyseg": 1.0}, (), (1000,), 0.0, (), 60.0))
        plan = Plan(url, Arrivals.CLOSED, 1.0, 400, 0.5, 12.0, 60.0, Retry(attempts=1), 4)
        tallies: list[Tally] = []
        loading = threading.Thread(target=lambda: tallies.append(run(plan, payloads)))
        loading.start()
        seen: list[tuple[int, str]] = []

        def over() -> bool:
            status, document = server.health()
            if status:
                seen.append((status, document["reason"]))
            return not loading.is_alive()

        poll(over, "the load ends", PATIENCE)
        assert set(tallies[0].codes) == {"OK", "UNAVAILABLE"}, tallies[0].codes
        assert len(seen) > 20 and {status for status, _ in seen} == {200}, {each for each in seen if each[0] != 200}
        assert server.health()[1]["restarts"] == 0


@pytest.mark.triton
@pytest.mark.slow
def test_what_cannot_be_kept_is_given_up(copy, tmp_path):
    """A model that dies on whatever it is asked: so many restarts as are allowed, then exit code 3 and the reason."""
    poison = tmp_path / "poison"
    spoil(copy / "tinyseg_sampler", f"import os, pathlib\nif pathlib.Path({str(poison)!r}).exists(): os._exit(1)")
    with supervised(copy, tmp_path, "--restarts=2") as server:
        poison.touch()
        _, said = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 3, said
        assert "no further restart" in said and "restart 2 of 2" in said, said
        poll(lambda: not server.remains(), "nothing is left", PATIENCE)


@pytest.mark.triton
@pytest.mark.slow
def test_poison_does_not_loop(copy, tmp_path):
    """An image that kills the sampler is sent twice and then given back as an error; others are answered afterwards."""
    deaths = tmp_path / "deaths"
    spoil(
        copy / "tinyseg_sampler",
        f"import os, pathlib\nimages = [pb_utils.get_input_tensor_by_name(r, 'image').as_numpy() for r in requests]\n"
        f"if any(image.shape[-1] == 13 for image in images):\n"
        f"    with pathlib.Path({str(deaths)!r}).open('a') as file: file.write('x')\n"
        f"    os._exit(1)",
    )
    with supervised(copy, tmp_path) as server:
        before, parts = answer(server), Counter(each.model for each in server.processes())
        patient = Retry(attempts=20, first=0.5, longest=2.0)  # as long as a restart takes, and longer
        with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE, retry=patient) as client:
            with pytest.raises(ModelDied):
                client.predict("tinyseg", np.zeros((1, 13, 13), np.float32))
            assert 1 <= len(deaths.read_text()) <= 2
            # In this order: until a death is noticed health says 200, and a process is missing.
            whole = lambda: Counter(each.model for each in server.processes() if glance(each)) == parts  # noqa: E731
            poll(lambda: whole() and server.health()[0] == 200, "it serves again", PATIENCE)
            np.testing.assert_array_equal(client.predict("tinyseg", IMAGE, outputs=("mean",)).mean, before)
        assert 1 <= len(deaths.read_text()) <= 2
        assert 1 <= server.health()[1]["restarts"] <= 2


BAD = {
    "it fails on every request": "does not answer a synthetic image",
    "its sampler does not load": "model.onnx",
    "a process of it dies while it starts": "",
    "its name": "cannot be served by Triton",
    "its contract is unreadable": "carries no readable contract",
    "/config.pbtxt is truncated": "is not a Triton model configuration",
    "_sampler/config.pbtxt is truncated": "is not a Triton model configuration",
    "_first_pass/config.pbtxt is truncated": "is not a Triton model configuration",
    "/config.pbtxt dangles": "cannot be read",
    "/1/policy.json dangles": "a dangling link",
    "_sampler/1/model.py dangles": "a dangling link",
    "_sampler is missing": "_sampler is missing",
    "_first_pass is missing": "_first_pass is missing",
    " dangles": "cannot be read",
}
STARTED = [*list(BAD)[:5], "_sampler/config.pbtxt is truncated"]
READ = list(BAD)[3:]


def worsen(models: Path, how: str, name: str = "tinycls") -> str:
    """Makes a model one that cannot serve; its name."""
    bad = models / name
    if how == "it fails on every request":
        spoil(bad, 'raise RuntimeError("spoilt")')
    elif how == "its sampler does not load":
        (models / "tinycls_sampler" / "1" / "model.onnx").write_bytes(b"not a model")
    elif how == "a process of it dies while it starts":
        hold(bad, "\nos.abort()\n")
    elif how[0] in "/_ ":
        damaged = models / f"{name}{how}".split()[0]
        content = damaged.read_text()[:99] if how.endswith("truncated") else ""
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink(missing_ok=True)
        if content:
            damaged.write_text(content)
        elif how.endswith("dangles"):
            damaged.symlink_to("nowhere")
    else:
        config = text_format.Parse((bad / "config.pbtxt").read_text(), ModelConfig())
        if how == "its name":
            config.name = "tiny cls"
            bad = bad.rename(models / config.name)
        else:
            config.parameters["contract"].string_value = "{}"
        (bad / "config.pbtxt").write_text(text_format.MessageToString(config))
    return bad.name


class StandInServer:
    """Serves what it can stage, in the way of `TritonServer`; which of its models fail, and how often, a test says."""

    made: ClassVar[list[StandInServer]] = []
    failing: ClassVar[dict[str, int]] = {}

    def __init__(self, repository: Path, engine: Engine, **options: Any) -> None:
        self.ports, self.options, self.running, self.grpc_url = options["ports"], options, False, ""

    def start(self) -> None:
        StandInServer.made.append(self)
        with tempfile.TemporaryDirectory() as folder:
            source = link_pinned(self.options["pinned"], Path(folder) / "pinned")
            source = verified_copy(source, Path(folder) / "verified", None, self.options["left_out"])
            (Path(folder) / "staged").mkdir()
            self.models = stage_repository(
                source, Path(folder) / "staged", "embedded", 1, self.options["settings"], on_trial=True
            )
        if failed := {name: "it failed" for name in self.models if self.failing.get(name)}:
            StandInServer.failing = {name: times - 1 for name, times in self.failing.items()}
            raise StartError("it failed", failed)
        self.running = True

    def stop(self, hurry: object = None) -> None:
        self.running = False


@pytest.fixture
def supervisor(copy, monkeypatch) -> Iterator[Supervisor]:
    """Of two models, and without a Triton."""
    for part in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass"):
        shutil.copytree(REFERENCE / part, copy / part)
    module = "equipoise_deploy.serving.supervisor."
    monkeypatch.setattr(module + "TritonServer", StandInServer)
    monkeypatch.setattr(module + "check_readiness", lambda *_: ())
    monkeypatch.setattr(module + "ServerMonitor", lambda *_: SimpleNamespace(models={}, close=lambda: None))
    monkeypatch.setattr(StandInServer, "made", [])
    monkeypatch.setattr(StandInServer, "failing", {})
    engine = Engine(Path("tritonserver"), (), None, "embedded")
    plan = SupervisorPlan(copy, drain=0.0, engine=engine)
    with HealthServer(0) as health:
        yield Supervisor(plan, health, lambda line: None, lambda line: None)


@pytest.mark.parametrize("how", READ)
def test_damage_to_one_model_is_seen_before_the_start(supervisor, copy, how):
    """It alone is left out, with all that belongs to it, and named; another one may be reloaded."""
    bad = worsen(copy, how, "pneumonia")
    supervisor.plan = replace(supervisor.plan, settings={bad: Settings(aggregators=1)})
    supervisor.start()
    assert list(supervisor.left_out) == [bad] and BAD[how] in supervisor.left_out[bad]
    with_policy(copy / "tinyseg")
    supervisor.reload()
    assert [server.models for server in StandInServer.made] == [("tinyseg",)] * 2
    assert StandInServer.made[1].running and list(supervisor.left_out) == [bad]


@pytest.mark.slow
@pytest.mark.parametrize("how", READ)
def test_a_reload_of_damaged_models_is_refused_before_the_running_server_is_stopped(supervisor, copy, how):
    """Of a name that Triton cannot take as well."""
    supervisor.start()
    worsen(copy, how, "pneumonia")
    supervisor.reload()
    (server,) = StandInServer.made
    assert server.running and server.models == ("pneumonia", "tinyseg") and not supervisor.left_out


@pytest.mark.parametrize(("failures", "left_out"), [(1, []), (2, ["pneumonia"])])
def test_a_model_that_failed_once_is_tried_once_more(supervisor, failures, left_out):
    StandInServer.failing = {"pneumonia": failures}
    supervisor.start()
    assert list(supervisor.left_out) == left_out and len(StandInServer.made) == failures + 1


@pytest.mark.parametrize("contract", [True, False])
def test_a_model_whose_name_begins_like_a_bad_one_is_served(supervisor, copy, contract):
    """Nothing says any more what belongs to the bad one: only what is nobody else's."""
    config = parse_configuration(copy / "pneumonia" / "config.pbtxt")
    config.name = "pneumonia_late"
    stated = json.loads(config.parameters["contract"].string_value)
    for sampler in (*stated["samplers"], stated["first_pass"]):
        sampler["name"] = sampler["name"].replace("pneumonia", "pneumonia_late")
    config.parameters["contract"].string_value = json.dumps(stated)
    for part in ("", "_sampler", "_first_pass"):
        shutil.copytree(copy / f"pneumonia{part}", copy / f"pneumonia_late{part}")
    (copy / "pneumonia_late" / "config.pbtxt").write_text(text_format.MessageToString(config))
    config.parameters["contract"].string_value = "{}"
    (copy / "pneumonia" / "config.pbtxt").write_text(text_format.MessageToString(config) if contract else "garbage")
    supervisor.start()
    assert list(supervisor.left_out) == ["pneumonia"]
    (server,) = StandInServer.made
    late = {"pneumonia_late", "pneumonia_late_sampler", "pneumonia_late_first_pass"}
    assert server.models == ("pneumonia_late", "tinyseg")
    assert set(server.options["pinned"]) == {*late, "tinyseg", "tinyseg_sampler"}


def test_where_all_models_are_bad_nothing_starts(supervisor, copy):
    worsen(copy, "_sampler is missing", "pneumonia")
    (copy / "tinyseg" / "config.pbtxt").write_text("garbage")
    with pytest.raises(RepositoryError, match=r"not a Triton model configuration.*pneumonia_sampler is missing"):
        supervisor.start()
    assert not StandInServer.made


def test_a_model_of_a_store_is_left_out_as_well(supervisor, copy, tmp_path, tiny_classifier):
    """Though the generation states it: nobody took it away behind the operator's back."""
    store, pairs = Store(tmp_path / "store"), tmp_path / "pairs"
    publish_pair(proven(tiny_classifier), pairs)
    for models, name in ((pairs, "tinycls"), (copy, "pneumonia")):
        give_policy(models / name)
        make_release(models, name, store)
        promote(store, name, PromotionRequest(accept_changes="a test"))
    supervisor.plan = replace(supervisor.plan, repository=store.current)
    StandInServer.failing = {"pneumonia": 2}
    supervisor.start()
    assert list(supervisor.left_out) == ["pneumonia"] and StandInServer.made[-1].models == ("tinycls",)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("how", STARTED)
def test_one_bad_model_does_not_take_the_others_down(copy, tmp_path, tiny_classifier, how):
    """It is named with the reason and not served at all, so never accepted; a restart does not change that."""
    publish_pair(tiny_classifier, copy)
    bad = worsen(copy, how)
    with supervised(copy, tmp_path) as server:
        before = answer(server)
        status, told = server.health()
        assert status == 200 and list(told["models"]) == ["tinyseg"]
        assert list(told["left_out"]) == [bad] and BAD[how] in told["left_out"][bad]
        assert f"{bad} is not served" in told["reason"]
        with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE) as client, pytest.raises(EquipoiseError):
            client.predict("tinycls", np.zeros((1, 4, 4), np.float32))
        os.kill(server.pid_of(""), signal.SIGKILL)
        poll(lambda: server.health()[1].get("restarts") == 1 and server.health()[0] == 200, "it is restarted", PATIENCE)
        np.testing.assert_array_equal(answer(server), before)
        assert list(server.health()[1]["left_out"]) == [bad]
        assert f"NOT READY, AND NOT SERVED: {bad}: " in stopped(server)


@pytest.mark.triton
@pytest.mark.slow
def test_a_bad_model_may_stay_bad_at_a_reload_and_comes_back_when_it_is_repaired(copy, tmp_path, tiny_classifier):
    """A reload for another model's sake is not refused for it; one that makes a good model bad is."""
    publish_pair(tiny_classifier, copy)
    file = copy / "tinycls_sampler" / "1" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(b"not a model")
    with supervised(copy, tmp_path) as server:
        for content, generation, left_out in ((b"not it", 2, ["tinycls"]), (good, 3, [])):
            file.write_bytes(content)
            server.process.send_signal(signal.SIGHUP)
            poll(lambda: server.health()[1].get("generation") == generation, "it is reloaded", PATIENCE)  # noqa: B023
            poll(lambda: server.health()[0] == 200, "it serves", PATIENCE)
            assert list(server.health()[1]["left_out"]) == left_out
        file.write_bytes(b"broken again")
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: server.health()[1].get("fell_back"), "the reload is refused", PATIENCE)
        stopped(server)


@pytest.mark.triton
@pytest.mark.slow
def test_a_model_that_keeps_dying_is_left_out_when_restarts_are_used_up(copy, tmp_path, tiny_classifier):
    """Whatever kills it, the others are served on."""
    publish_pair(tiny_classifier, copy)
    poison = tmp_path / "poison"
    spoil(copy / "tinycls_sampler", f"import os, pathlib\nif pathlib.Path({str(poison)!r}).exists(): os._exit(1)")
    with supervised(copy, tmp_path, "--restarts=1") as server:
        assert not server.health()[1]["left_out"]
        poison.touch()
        poll(lambda: list(server.health()[1].get("left_out", ())) == ["tinycls"], "it is left out", PATIENCE)
        poll(lambda: server.health()[0] == 200, "the other is served", PATIENCE)
        answer(server)
        stopped(server)


@pytest.fixture
def versions(copy, tmp_path, tiny_segmentation) -> Path:
    """A link to a repository, and beside it a second version (the same model under a policy) to set it to."""
    newer = Path(shutil.copytree(copy, tmp_path / "newer"))
    with_policy(newer / "tinyseg")
    link = tmp_path / "current"
    link.symlink_to(copy)
    return link


def switch(link: Path, to: Path) -> None:
    """In one step, as `promote` does it."""
    fresh = link.with_name("next")
    fresh.symlink_to(to)
    fresh.replace(link)


def policy(server: Serving) -> str | None:
    with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE) as client:
        digest: str | None = client.predict("tinyseg", IMAGE, outputs=()).record["policy_digest"]
        return digest


@pytest.mark.triton
@pytest.mark.slow
def test_a_reload_takes_the_new_version_and_loses_nothing(versions, tmp_path):
    """Until SIGHUP a switched link changes nothing, restarts included; what was accepted before it is answered."""
    with supervised(versions, tmp_path) as server:
        assert policy(server) is None
        switch(versions, tmp_path / "newer")
        os.kill(server.pid_of(""), signal.SIGKILL)
        poll(lambda: server.health()[1].get("restarts") == 1 and server.health()[0] == 200, "it is restarted", PATIENCE)
        assert policy(server) is None, "a restart took a version into service that nobody asked for"
        outcomes: list[object] = []
        begun = threading.Barrier(12)

        def ask() -> None:
            with UncertaintyClient(server.urls["grpc"], timeout=PATIENCE, retry=Retry(attempts=1)) as client:
                client.contract("tinyseg")
                begun.wait(PATIENCE)
                try:
                    outcomes.append(client.predict("tinyseg", LARGE, samples=1000, outputs=()).samples_used)
                except EquipoiseError as refused:
                    outcomes.append(refused)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        poll(lambda: len(outcomes) + accepted(server) >= 12, "all requests are accepted")
        assert len(outcomes) < 9, "nearly nothing was left to answer: this would prove nothing"
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: server.health()[0] == 503, "it says that it drains", DETECTED)
        poll(lambda: server.health()[0] == 200, "the new version is served", PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
        assert outcomes == [1000] * 12
        assert server.health()[1]["generation"] == 2 and not server.health()[1]["fell_back"]
        assert policy(server) is not None
        stopped(server)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["the model is damaged", "its contract is another's", "there is nothing"])
def test_a_version_that_cannot_serve_is_not_taken(versions, tmp_path, broken):
    """Back to what was served before, loudly."""
    newer = tmp_path / "newer"
    if broken == "there is nothing":
        shutil.rmtree(newer)
    elif broken == "its contract is another's":
        path = newer / "tinyseg" / "config.pbtxt"
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.parameters["contract"].string_value = '{"name": "somebody else\'s"}'
        path.write_text(text_format.MessageToString(config))
    else:
        (newer / "tinyseg_sampler" / "1" / "model.onnx").write_bytes(b"not a model")
    with supervised(versions, tmp_path) as server:
        before = answer(server)
        switch(versions, newer)
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: server.health()[1].get("fell_back"), "the reload is refused", PATIENCE)
        poll(lambda: server.health()[0] == 200, "it serves", PATIENCE)
        assert server.health()[1]["generation"] == 1
        np.testing.assert_array_equal(answer(server), before)
        assert "THE RELOAD WAS REFUSED" in stopped(server)


@pytest.mark.triton
@pytest.mark.slow
def test_what_is_damaged_in_place_does_not_end_what_serves(copy, tmp_path):
    """There is no version before to go back to: the running one is the only one, and is left alone."""
    with supervised(copy, tmp_path) as server:
        before, triton = answer(server), server.pid_of("")
        (copy / "tinyseg_sampler" / "1" / "model.onnx").write_bytes(b"half a mod")
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: server.health()[1].get("fell_back"), "the reload is refused", PATIENCE)
        assert "model.onnx" in server.health()[1]["fell_back"]
        assert server.pid_of("") == triton and server.health()[0] == 200
        np.testing.assert_array_equal(answer(server), before)
        assert "THE RELOAD WAS REFUSED" in stopped(server)


@pytest.mark.triton
@pytest.mark.slow
def test_a_stop_is_said_before_it_happens(repository, tmp_path):
    """For as long as a proxy needs to notice, health says 503 while requests are still answered."""
    with serving(repository, tmp_path / "run", os.environ, ("--drain-seconds=20",)) as server:
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: server.health()[1].get("state") == "draining", "it says that it stops", DETECTED)
        assert server.health()[0] == 503
        assert answer(server).shape
        server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0
        assert not server.remains()


def test_health_is_the_latest_snapshot_and_an_old_one_is_unhealthy():
    """One hung model makes itself and the whole unhealthy, not the other model."""
    models = {"a": ModelHealth(True, 0.1), "b": ModelHealth(False, 9.0, "neither answers nor makes progress")}
    seen = Snapshot(State.SERVING, models=models, at=100.0)
    assert seen.status(now=101.0) == (False, "b: neither answers nor makes progress")
    assert seen.status("a", now=101.0) == (True, "")
    assert not seen.status("a", now=100.0 + STALE + 0.1)[0]
    assert Snapshot(State.RESTARTING, "it died", models).status("a") == (False, "restarting: it died")


def test_after_a_stall_the_health_port_waits_for_a_new_snapshot(monkeypatch):
    """The whole machine stood still, and the caller wakes as soon as the supervisor. A dead supervisor is unhealthy."""
    with HealthServer(0) as health:
        old = time.monotonic() - 2 * STALE
        health.snapshot = Snapshot(State.SERVING, at=old)
        waking = threading.Timer(0.1, lambda: setattr(health, "snapshot", Snapshot(State.SERVING)))
        with monkeypatch.context() as long:  # this test may stand still as well
            long.setattr("equipoise_deploy.serving.health.SNAPSHOT_WAIT", 30.0)
            waking.start()
            assert health.current_snapshot().status()[0]
            waking.join()
        health.snapshot = Snapshot(State.SERVING, at=old)
        assert "has not checked" in health.current_snapshot().status()[1]


def test_the_first_restart_is_at_once_and_the_budget_ends():
    """Then they wait twice as long each time, up to a ceiling; old ones are forgotten."""
    now = [0.0]
    budget = RestartBudget(most=5, within=600.0, backoff=Backoff(1.0, longest=3.0), clock=lambda: now[0])
    assert [budget.take("it died") for _ in range(5)] == [0.0, 1.0, 2.0, 3.0, 3.0]
    with pytest.raises(GaveUp, match="5 times within 600 s"):
        budget.take("it died")
    now[0] = 700.0
    assert budget.take("it died") == 0.0


def test_one_error_is_enough_to_be_unhealthy():
    """And a model is left alone while it makes progress."""
    state = ProbeState(answered=0.0, due=2.0)
    assert not state.problem(100.0)
    assert state.problem(100.0) == ""
    state.progress = (90.0, Activity(5.0, 5.0, 0.0))
    assert state.problem(91.0) == "" and state.problem(95.0)
    assert state.problem(95.0, hung_after=10.0) == "" and state.problem(100.0, hung_after=10.0)
    state.errors, state.wrong = 1, "INTERNAL"
    assert state.problem(91.0) == "INTERNAL"


def test_a_request_whose_model_died_is_sent_once_more_and_no_more():
    """Whatever the number of tries; one that only was not let in is sent as often as the caller allows."""
    tries = Tries(iter([0.1] * 9))
    assert tries.pause(ModelDied(), 60.0) == 0.1
    assert tries.pause(ServerUnavailable(), 60.0) == 0.1
    assert tries.pause(ModelDied(), 60.0) is None
    assert Tries(iter([0.1])).pause(InvalidInput(), 60.0) is None


def test_the_one_more_time_after_a_death_comes_when_the_server_has_noticed():
    """Sent at once, it would meet the same dying server and be lost; a short deadline halves the wait instead."""
    noticed = STOPPED + 2 * CHECK_EVERY + 0.5  # at the latest; the reverse proxy asks every half second
    assert Retry().recovery > noticed
    for error, left, wait in [
        (ModelDied(), 60.0, 3.1),
        (ModelDied(), 2.0, 1.1),
        (ModelDied(), -1.0, 0.1),
        (ServerUnavailable(), 60.0, 0.1),
    ]:
        assert Tries(iter([0.1]), recovery=3.0).pause(error, left) == pytest.approx(wait)
    with pytest.raises(InvalidInput, match="recovery"):
        Retry(recovery=-1.0)


def test_a_request_that_was_lost_under_way_counts_as_one_whose_model_died():
    """A request that ends the whole server leaves nobody to report it."""
    lost = ServerUnavailable()
    lost.lost = True
    tries = Tries(iter([0.1] * 9))
    assert [tries.pause(each, 60.0) for each in (lost, ServerUnavailable(), lost)] == [0.1, 0.1, None]
    assert Tries(iter([0.1] * 9), suspect=lost).pause(ModelDied(), 60.0) is None
