"""What the aggregator itself costs per request, by part: core-milliseconds, this tree against another commit.

    python -m tests.benchmarks.bench_aggregator [pneumonia nuclei hippocampus] [--against HEAD^] [--cases 6] [--json F]

A process for each tree loads its own `equipoise_core`, model and policy, runs the published samplers once on real test
images and keeps what they gave. Then both take turns at the same requests with the samplers' outputs played back:
processor time of one thread, from the image to the tensors that the client asks for by default. Masks are drawn, but
drawing them is counted apart. The figure of a part leaves out the parts inside it; medians over rounds. The sum of the
parts exceeds the whole a little, since taking the times takes time: the whole comes from processes that do not.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]

MODELS = ("pneumonia", "nuclei", "hippocampus")

MAPS = ("mean", "variance", "aleatoric", "epistemic", "labels", "volume", "volume_total")
VERDICT = ("case_score", "samples_used", "route", "reason", "record")
"""What `equipoise_client` asks for unless told otherwise."""

PARTS: dict[str, tuple[str, ...]] = {
    "validate": ("validation.validate",),
    "input digest": ("record.input_digest",),
    "normalise": ("preprocessing.Preprocessing.normalise", "preprocessing.Preprocessing.pad"),
    "input statistics": ("statistics.input_statistics",),
    "masks": ("masks.mask_layout", "masks.draw_masks"),
    "moments": ("moments.moments_of_outputs", "moments.Moments.__add__", "moments.Moments.finite"),
    "maps": tuple(
        f"uncertainty.Uncertainty.{name}"
        for name in ("mean", "variance", "total", "aleatoric", "epistemic", "uncertainty", "stated", "own", "labels")
    ),
    "scores": ("scores.case_scores",),
    "prediction statistics": ("statistics.prediction_statistics",),
    "decision": (
        "decision.decide",
        "decision.settled",
        "strangeness.Strangeness.distance",
        "ood_distance.OodDistance.distance",
    ),
    "volumes": ("assessment.Assessment.volumes",),
    "watching": ("assessment.Assessment.audited", "assessment.Assessment.ranks"),
    "record": ("assessment.Assessment.record",),
    "outputs": ("outputs.OUTPUTS",),
    "sampler": (),
}
"""Part → functions, properties and tables of `equipoise_core` that make it up; a name that a tree lacks is left out."""

APART = ("masks", "sampler")
"""Parts that are no arithmetic of the aggregator."""


class Clock:
    """Processor time of this thread by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = ["rest"]
        self._since = time.thread_time()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._count()
            self._inside.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._count()
                self._inside.pop()

        return run

    def taken(self) -> dict[str, float]:
        """Seconds by part since the last time that it was asked."""
        self._count()
        seconds, self.seconds = self.seconds, defaultdict(float)
        return dict(seconds)

    def _count(self) -> None:
        now = time.thread_time()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now


def instrument(clock: Clock, parts: Sequence[str]) -> None:
    """Puts the clock around all that `PARTS` names, in every module that imported it."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith("equipoise_core.")}
    for part in parts:
        for name in PARTS[part]:
            module, *path, last = name.split(".")
            owner: Any = modules.get(f"equipoise_core.{module}")
            for step in path:
                owner = getattr(owner, step, None)
            found = vars(owner).get(last) if owner else None
            if isinstance(found, cached_property):
                found.func = clock.timed(part, found.func)
            elif isinstance(found, property) and found.fget:
                setattr(owner, last, property(clock.timed(part, found.fget)))
            elif isinstance(found, dict):
                found.update({key: clock.timed(part, function) for key, function in found.items()})
            elif path and found:
                setattr(owner, last, clock.timed(part, found))
            elif found:
                timed = clock.timed(part, found)
                for each in modules.values():
                    for key in [key for key, value in vars(each).items() if value is found]:
                        setattr(each, key, timed)


class Recorded:
    """A sampler that keeps its answers, and gives those of a case again in the order in which they were asked for."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._answers: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        self._case, self._next = 0, 0

    def begin(self, case: int) -> None:
        self._case, self._next = case, 0

    def __call__(self, image: Any, masks: Any) -> dict[str, Any]:
        answers = self._answers[self._case]
        if self._next == len(answers):
            feeds = {"image": image} if masks is None else {"image": image, "masks": masks}
            answers.append(dict(zip(self._names, self._session.run(self._names, feeds), strict=True)))
        self._next += 1
        return answers[self._next - 1]


def work(tree: Path, parts: Sequence[str], requests: Path) -> None:
    """One process: for each line that names a model, one line with the milliseconds of a request by part."""
    sys.path.insert(0, str(tree / "model_repository" / "hippocampus" / "1"))
    from equipoise_core import outputs, sampling
    from equipoise_core.case import Case
    from equipoise_core.loading import load_model

    clock = Clock()
    instrument(clock, parts)
    Recorded.__call__ = clock.timed("sampler", Recorded.__call__)  # type: ignore[method-assign]
    ready = {}
    for name, cases in pickle.loads(requests.read_bytes()).items():
        model = load_model(tree / "model_repository" / name / "1")
        files = [tree / "model_repository" / each.name / "1" / "model.onnx" for each in model.contract.samplers]
        wanted = (*(MAPS if model.contract.task.value == "segmentation" else MAPS[:5]), *VERDICT)
        images = [Case(image, spacing=mm) for image, mm in cases]
        ready[name] = model, [Recorded(file) for file in files], images, wanted
    for line in sys.stdin:
        model, samplers, cases, wanted = ready[line.strip()]
        samples = 0
        clock.taken()
        for number, case in enumerate(cases):
            for sampler in samplers:
                sampler.begin(number)
            (answer,) = sampling.assess_all(model, [case], samplers)
            for output in wanted:
                outputs.OUTPUTS[output](answer)
            samples += answer.moments.samples + 0 * len(answer.ranks) + 0 * answer.audited  # as its metrics do
        found = {part: 1e3 * seconds / len(cases) for part, seconds in clock.taken().items()}
        print(json.dumps({**found, "samples": samples / len(cases)}), flush=True)


class Worker:
    """A process of `work`; its first answers ran the samplers and count for nothing."""

    def __init__(self, tree: Path, parts: Sequence[str], requests: Path) -> None:
        command = [sys.executable, __file__, "--work", str(tree), str(requests), *parts]
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **alone}
        )

    def ask(self, name: str) -> dict[str, float]:
        assert self._process.stdin and self._process.stdout
        print(name, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a process of the benchmark ended early")
        return dict(json.loads(answer))

    def close(self) -> None:
        self._process.communicate()


def requests_of(names: Sequence[str], count: int) -> dict[str, list[Any]]:
    """Per model `(image, spacing)` of test cases."""
    import numpy as np
    from equipoise_lab.reference.data import load, reference_split

    found = {}
    for name in names:
        data = load(name)
        images = data.select(reference_split(name, data.ids).test[:count]).images
        images = tuple(np.ascontiguousarray(image) for image in images)  # as the adapter hands them on
        found[name] = [(image, (1.0, 1.0, 1.0) if image.ndim == 4 else None) for image in images]
    return found


def tree_of(commit: str, folder: Path) -> Path:
    """The commit's core, models and policies."""
    command = ["git", "archive", commit, "model_repository"]
    archive = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def measure(names: Sequence[str], against: str, cases: int, rounds: int) -> dict[str, Any]:
    """Per model and tree: milliseconds of the whole and by part, samples drawn; medians over rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        requests = Path(scratch) / "requests"
        requests.write_bytes(pickle.dumps(requests_of(names, cases)))
        trees = {"before": tree_of(against, Path(scratch)), "now": ROOT}
        workers = {
            (when, how): Worker(tree, parts, requests)
            for when, tree in trees.items()
            for how, parts in (("parts", tuple(PARTS)), ("whole", APART))
        }
        report: dict[str, Any] = {}
        for name in names:
            for worker in workers.values():
                worker.ask(name)
            answers = [{key: worker.ask(name) for key, worker in workers.items()} for _ in range(rounds)]
            report[name] = {"ratio": median(a["before", "whole"]["rest"] / a["now", "whole"]["rest"] for a in answers)}
            for when in trees:
                report[name][when] = {
                    "whole": median(answer[when, "whole"]["rest"] for answer in answers),
                    "samples": answers[0][when, "whole"]["samples"],
                    "parts": {
                        part: median(answer[when, "parts"].get(part, 0.0) for answer in answers)
                        for part in (*PARTS, "rest")
                    },
                }
        for worker in workers.values():
            worker.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--against", default="HEAD^", help="the commit to compare with")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        tree, requests, *parts = options.work
        return work(Path(tree), parts, Path(requests))
    report = measure(options.names, options.against, options.cases, options.rounds)
    for name, found in report.items():
        before, now = found["before"], found["now"]
        print(f"\n{name}, {now['samples']:g} samples a request: core-ms before, now")
        for part, milliseconds in before["parts"].items():
            apart = "  (apart)" if part in APART else ""
            print(f"  {part:24s} {milliseconds:7.3f} {now['parts'][part]:7.3f}{apart}")
        print(
            f"  {'whole, but for those':24s} {before['whole']:7.3f} {now['whole']:7.3f}   {found['ratio']:.2f} × less"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
