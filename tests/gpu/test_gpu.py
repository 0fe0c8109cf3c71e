"""`make gpu` runs, whatever the device: a step that fails stops no other, and what was not measured is not claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from equipoise_core.contract import Precision
from equipoise_deploy.serving.device import EMBEDDED_CUDA

from ..support import steps as support
from ..support.steps import Step, Wrong, failed, run_step
from . import run
from .page import write_page
from .run import SCRIPT, STEPS, measure
from .target import CPU, CUDA, phrases_in, placement, provider_options

ROOT = Path(__file__).parents[2]


def right(target, note):
    note("figure", 1.0)
    return "fine"


def wrong(target, note):
    note("figure", 2.0)
    raise Wrong("the answer differs")


def broken(target, note):
    raise ValueError("unforeseen")


def killed(target, note):
    note("figure", 3.0)
    os.kill(os.getpid(), 9)


def hung(target, note):
    time.sleep(600)


def _step(name, seconds=480.0, must=True):
    return Step(f"tests.gpu.test_gpu:{name}", seconds, must)


def test_no_step_stops_another():
    """Each has its verdict and the figures that it had; only what must be right fails the run."""
    steps = {name: _step(name) for name in ("wrong", "broken", "killed", "right")}
    steps["optional"] = _step("broken", must=False)
    found = measure(True, 480.0, list(steps), steps)
    verdicts = {name: (entry["ok"], entry["figures"].get("figure")) for name, entry in found.items()}
    assert verdicts == {
        "wrong": (False, 2.0), "broken": (False, None), "killed": (False, 3.0), "right": (True, 1.0),
        "optional": (False, None),
    }  # fmt: skip
    assert found["wrong"]["words"] == "the answer differs"
    assert found["broken"]["words"] == "ValueError: unforeseen"
    assert found["killed"]["words"].startswith("ended with exit code -9")
    assert failed(found) == ["wrong", "broken", "killed"]


def test_time_is_kept(monkeypatch):
    """A step is stopped when its time is over; past the whole run's none is begun, and the result says so."""
    monkeypatch.setattr(support, "LEAST", 0.5)
    found = run_step(SCRIPT, _step("hung"), 1.0, ["--small"])
    assert found["ok"] is False and found["words"] == "stopped after 1 s"
    late = measure(True, 0.1, ["right"], {"right": _step("right")})["right"]
    assert late["ok"] is None and "not run" in late["words"]
    assert failed({"late": late}) == ["late"]


def test_the_search_finds_what_it_is_for():
    """ONNX Runtime's own lines, among others."""
    log = ["I1130 model loaded", "[W:onnxruntime] OP Conv(c1) running in Fallback mode. No valid engine found", "x"]
    assert phrases_in(log) == [log[1]]
    assert phrases_in(["[W] No execution plans support the graph"]) and not phrases_in(["fine"])


def test_a_profile_tells_where_nodes_ran(tmp_path):
    """Copies between devices, and what was left to the CPU with its bytes; each node counts once."""

    def node(name, operator, provider, size):
        args = {"op_name": operator, "provider": provider, "output_size": str(size)}
        return {"cat": "Node", "name": name, "args": args}

    events = [
        node("c", "Conv", CUDA, 4096), node("c", "Conv", CUDA, 4096), node("s", "Shape", CPU, 32),
        node("m", "MemcpyToHost", CUDA, 8), {"cat": "Session", "name": "load", "args": {}},
    ]  # fmt: skip
    (tmp_path / "trace.json").write_text(json.dumps(events))
    assert placement(tmp_path / "trace.json") == {
        "nodes": {CUDA: 2, CPU: 1}, "copies": 1, "cpu_operators": {"Shape": 1}, "cpu_bytes": 32,
    }  # fmt: skip


def test_a_session_in_this_process_has_the_options_of_service():
    """Those of the published configuration; half precision without the one that takes its tensor cores."""
    single, half = provider_options(Precision.FP32), provider_options(Precision.FP16)
    assert single["use_tf32"] == "0" and half == {name: each for name, each in single.items() if name != "use_tf32"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_claims_no_gpu_where_there_was_none(tmp_path, device):
    """Marked wherever a figure stands."""
    step = {"must": True, "ok": None, "seconds": 0.0, "words": "not run <b>", "figures": {}}
    rows = {"1: N=1 T=20 8×8": {"first ms": 2.0, "then ms": 1.0}}
    document = {
        "date": "2026-11-30", "commit": "abc", "small": False, "seconds": 1.0, "machine": {"device": device},
        "steps": {"smoke": step, "rebuilds": {**step, "ok": True, "figures": {"nuclei": rows}}},
    }  # fmt: skip
    write_page(document, tmp_path / "gpu.html")
    page = (tmp_path / "gpu.html").read_text()
    assert ("No GPU figure is on this page" in page) == (device == "cpu")
    assert page.count("(device: cpu)") == (2 if device == "cpu" else 0)
    assert "not run &lt;b&gt;" in page and "<svg" in page
    assert "<script" not in page and "src=" not in page


def test_steps_fit_into_a_run():
    """Each alone, at least; correctness first, so that speed cannot take its time."""
    assert all(step.seconds <= run.TOTAL for step in STEPS.values())
    order = list(STEPS)
    assert max(map(order.index, ("smoke", "parity", "distribution"))) < order.index("throughput")


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.torch
@pytest.mark.timeout(2500)
def test_the_whole_script_on_this_machines_processor(tmp_path):
    """At small sizes: every step comes to a result, and says that it is no GPU's."""
    environment = {**os.environ, "EQUIPOISE_DEVICE": "cpu"}
    environment.pop("EQUIPOISE_TRITON_CONFIG", None)
    command = [sys.executable, "-m", "tests.gpu.run", "--small", "--into", str(tmp_path)]
    command += ["--seconds", "2400"]  # three minutes on an idle machine, and each step has a share of them
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["machine"]["device"] == "cpu" and document["small"]
    assert {name: entry["ok"] for name, entry in document["steps"].items()} == dict.fromkeys(STEPS, True), (
        done.stdout + done.stderr
    )
    figures = {name: entry["figures"] for name, entry in document["steps"].items()}
    assert {"pneumonia, fp32", "pneumonia, fp16", "nuclei, fp32", "nuclei, fp16"} <= set(figures["parity"])
    assert {"equipoise", "in process", "loop", "batch", "copies"} <= set(figures["throughput"]["pneumonia"])
    assert {"sampler", "tritonserver"} == set(figures["recovery"])
    assert "No GPU figure is on this page" in (tmp_path / "gpu.html").read_text()
    assert EMBEDDED_CUDA not in done.stdout
