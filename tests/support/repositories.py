"""Small changes to published pairs, as a test needs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from equipoise_core.contract import Contract, Task, load_contract
from equipoise_core.policy import Guarantee, Policy
from equipoise_core.scores import default_score
from equipoise_core.stages import Stage
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

# For `hold`: held before each execution until a file appears, so that a test does not depend on anybody's speed. Of
# requests with an id the files have it in their names; `open` alone is for all.
GATED = """
import pathlib, time

GATE = pathlib.Path({gate!r})

def _hold(execute):
    def held(self, requests):
        names = [request.request_id() for request in requests]
        (GATE / f"started-{{''.join(names) or time.monotonic_ns()}}").touch()
        while not any((GATE / name).exists() for name in ("open", *(f"open-{{name}}" for name in names))):
            time.sleep(0.005)
        return execute(self, requests)
    return held

TritonPythonModel.execute = _hold(TritonPythonModel.execute)
"""

# For `hold`: held for seconds before each execution, so that its speed is the model's own and not the machine's.
SLOW = """
import time

def _hold(execute):
    def held(self, requests):
        time.sleep({seconds})
        return execute(self, requests)
    return held

TritonPythonModel.execute = _hold(TritonPythonModel.execute)
"""


def hold(model: Path, how: str) -> None:
    """Holds a model up; a sampler becomes the stand-in first, whichever backend the others run on."""
    if (model / "configs").exists():
        (model / "configs" / "embedded.pbtxt").replace(model / "config.pbtxt")
        shutil.rmtree(model / "configs")
    with (model / "1" / "model.py").open("a", encoding="utf-8") as code:
        code.write(how)


def gated(model: Path, gate: Path) -> None:
    """Holds a model up with the gate, which is open: see `closed`."""
    gate.mkdir(exist_ok=True)
    (gate / "open").touch()
    hold(model, GATED.format(gate=str(gate)))


@contextmanager
def closed(gate: Path) -> Iterator[None]:
    """Inside, the gate is closed until the test opens it; afterwards it is open, so that any server can end."""
    (gate / "open").unlink()
    try:
        yield
    finally:
        (gate / "open").touch()


def configure(public: Path, chunk: int | None = None) -> Path:
    """Names the configuration after its folder and asks for one instance, and for samples in chunks of `chunk`.

    Without the contract in it `equipoise serve` leaves the count alone: a dozen models at once would take a minute.
    """
    path = public / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    config.name = public.name
    config.instance_group[0].count = 1
    config.parameters.pop("contract", None)
    if chunk is not None:
        config.parameters["chunk"].string_value = str(chunk)
    path.unlink()  # it may be a link
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return public


def copy_of(public: Path, name: str, into: Path | None = None) -> Path:
    """The public model again under another name; it asks the same sampler, and is the same model to the core."""
    return Path(shutil.copytree(public, (into or public.parent) / name))


ANYTHING = Guarantee(0.1, 0.1, "none", 1, 1, 0, "a test's: accepts every score")


def accepting_policy(contract: Contract) -> Policy:
    """Accepts whatever nothing speaks against: the score that it looks at cannot exceed its threshold."""
    score = "sample_disagreement" if contract.task is Task.SEGMENTATION else "lack_of_confidence"
    return Policy(contract.model_digest, "00" * 32, (Stage(contract.samples, score, 1.5),), ANYTHING)


def with_policy(public: Path) -> Path:
    """Lays a policy beside the contract that accepts whatever nothing speaks against."""
    policy = accepting_policy(load_contract(public / "1" / "contract.json"))
    (public / "1" / "policy.json").write_text(policy.dumps(), encoding="utf-8")
    return public


def accepting_copies(folder: Path, samples: int) -> Path:
    """The reference pairs as shipped, but for a policy of so few samples that accepts what nothing speaks against."""
    for pair in (Path(__file__).parents[2] / "model_repository").glob("*/config.pbtxt"):
        copy = Path(shutil.copytree(pair.parent, folder / pair.parent.name))
        if (copy / "1" / "contract.json").exists():
            contract = load_contract(copy / "1" / "contract.json")
            policy = replace(accepting_policy(contract), stages=(Stage(samples, default_score(contract), 1e6),))
            (copy / "1" / "policy.json").write_text(policy.dumps(), encoding="utf-8")
    return folder
