"""Triton adapter of the public model: requests → cases → `equipoise_core` → responses. No arithmetic here."""

import gc
import json
import math
import os
import struct
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
# The Python backend appends this directory to sys.path: an installed equipoise_core would win over the validated one.
sys.path.insert(0, str(HERE))

import numpy as np
import triton_python_backend_utils as pb_utils
from equipoise_core.budget import MOST_AT_ONCE
from equipoise_core.case import Case
from equipoise_core.decision import Route
from equipoise_core.errors import Cancelled, InvalidRequest, SamplerFailure
from equipoise_core.loading import load_model
from equipoise_core.moments import sampler_outputs
from equipoise_core.outputs import OF_SAMPLES, OUTPUTS
from equipoise_core.sampling import assess_all, probe_first_pass
from equipoise_core.validation import validate_answer

# `equipoise serve` creates this file once all that was accepted before its stop has begun: the rest is refused at once.
STOPPING = Path(os.environ["EQUIPOISE_STOPPING"]) if "EQUIPOISE_STOPPING" in os.environ else None

# Folder with a file for each model that may accept nothing, after an alarm; `@everything` closes all of them.
CLOSED = Path(os.environ["EQUIPOISE_CLOSED"]) if os.environ.get("EQUIPOISE_CLOSED") else None

# Upper bounds of histogram buckets; ranks: without drift each tenth holds as many cases.
SCORES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, math.inf)
TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, math.inf)

# Each number is a round trip to the server, 0.1 ms and a wake-up: they are added up for so many seconds.
REPORT_SECONDS = 0.5

# Request id of the supervisor's health probes, which are no cases: they would show in route shares and drift.
PROBE = "equipoise-probe"


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        chunk, instances = parameters.get("chunk"), parameters.get("instances")
        computed_by = json.loads(parameters.get("computed_by", "{}"))
        most = int(parameters.get("images", MOST_AT_ONCE))
        self.model = load_model(HERE, int(chunk) if chunk else None, computed_by, most)
        self.in_flight = InFlight(self.model.contract.name)
        self.metrics = Metrics(self.model)
        members = len(self.model.contract.samplers)
        self.each = AtOnce(members) if members > 1 else map
        self.instances = SamplerInstances(int(instances or 1), members)
        gc.freeze()  # what is there now stays: no collection has to walk it again in the middle of a request

    def execute(self, requests):
        self.in_flight.add(requests=len(requests))
        self.metrics.add("in_flight", len(requests))
        try:
            if STOPPING is not None and STOPPING.exists():
                why = "the server is stopping: ask again later"
                return [self._refuse(pb_utils.TritonError.UNAVAILABLE, why, "Stopping") for _ in requests]
            return [self._respond(request) for request in requests]
        finally:
            self.in_flight.add(requests=-len(requests))
            self.metrics.add("in_flight", -len(requests))

    def is_ready(self):
        """For Triton's own ready flags, from 26.04 on; before an inference it does not ask. Not ready is a model that
        refuses since the server stops, and one whose samplers are gone."""
        if STOPPING is not None and STOPPING.exists():
            return False
        return all(pb_utils.is_model_ready(file.name) for file in self.model.contract.files)

    def finalize(self):
        self.metrics.close()

    def _respond(self, request):
        try:
            contract = self.model.contract
            samplers = [self._sampler(each.name, contract, request) for each in contract.samplers]
            first, first_pass = contract.first_pass, None
            if first is not None:
                first_pass = self._sampler(first.name, contract.of_first_pass, request)
            cases = cases_of(request)
            wanted = set(request.requested_output_names())
            validate_answer(contract, cases, wanted)
            # Only where the caller names T, so that nothing that can be accepted goes uncounted, whoever uses the id.
            probe = request.request_id() == PROBE and all(case.samples is not None for case in cases)
            if probe:
                probe_first_pass(self.model, cases[0], samplers, first_pass)
            model = replace(self.model, closed=closed) if (closed := why_closed(contract.name)) else self.model
            assessments = assess_all(model, cases, samplers, self.each, first_pass, bool(wanted & OF_SAMPLES))
            tensors = [
                pb_utils.Tensor(name, _rows_of([OUTPUTS[name](assessment) for assessment in assessments]))
                for name in OUTPUTS
                if name in wanted
            ]
            for assessment in () if probe else assessments:
                self.metrics.count(assessment)
            return pb_utils.InferenceResponse(tensors)
        except InvalidRequest as error:
            return self._refuse(pb_utils.TritonError.INVALID_ARG, error, "InvalidRequest")
        except Cancelled as error:
            return self._refuse(pb_utils.TritonError.CANCELLED, error, "Cancelled")
        except SamplerFailure as error:
            return self._refuse(pb_utils.TritonError.UNAVAILABLE, error, "SamplerFailure")
        except Exception as error:  # whatever it is, the server lives on and the client learns that there is no route
            what = type(error).__name__
            pb_utils.Logger.log_error(f"{self.model.contract.name}: {what} while assessing a case")
            return self._refuse(pb_utils.TritonError.INTERNAL, f"{what} while assessing the case", "Internal")

    def _sampler(self, name, contract, request):
        return self.instances.over(BlsSampler(name, contract, request, self.in_flight))

    def _refuse(self, code, why, kind):
        self.metrics.add(kind, 1)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(why), code))


def why_closed(name):
    """Why the model may accept nothing at present; empty: it may. What cannot be read closes."""
    if CLOSED is None:
        return ""
    try:
        if not CLOSED.is_dir():
            return "what may be accepted cannot be read"
        for file in (CLOSED / "@everything", CLOSED / name):
            if file.exists():
                return file.read_text(encoding="utf-8") or "after an alarm"
    except (OSError, ValueError) as error:
        return f"what may be accepted cannot be read ({type(error).__name__})"
    return ""


def _rows_of(arrays):
    """`[N, …]`; of one array no copy."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def cases_of(request):
    """One Case per image of the request; optional inputs have one row per image, the parameter `group` is for all."""
    tensor = pb_utils.get_input_tensor_by_name(request, "image")
    if tensor is None:  # Triton only counts the inputs of a model that has optional ones
        raise InvalidRequest("the request has no input `image`; send it as FP32 [N, C, ...]")
    images = tensor.as_numpy()
    samples, seeds, spacings = (_rows(request, name, len(images)) for name in ("samples", "seed", "spacing"))
    group = json.loads(request.parameters() or "{}").get("group")
    if group is not None and not isinstance(group, str):
        raise InvalidRequest(
            "the parameter `group` is no text; name the group that the images are of, such as a scanner"
        )
    if len(images) == 0:
        raise InvalidRequest("the request has no image: N is 0; send at least one")
    return [
        Case(
            np.ascontiguousarray(image, dtype=np.float32),
            None if samples is None else int(samples[i, 0]),
            None if seeds is None else int(seeds[i, 0]),
            None if spacings is None else tuple(float(mm) for mm in spacings[i]),
            group,
        )
        for i, image in enumerate(images)
    ]


def _rows(request, name, count):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    rows = tensor.as_numpy()
    if rows.shape[0] != count:
        raise InvalidRequest(f"{name} has {rows.shape[0]} rows for {count} images; send one row per image")
    return rows


class BlsSampler:
    """`RunSampler` over Triton's business logic scripting, within the request's own timeout."""

    def __init__(self, name, contract, request, in_flight):
        self.name = name
        self.request = request
        self.in_flight = in_flight
        self.begun = False
        self.outputs = sampler_outputs(contract)
        self.ends = time.monotonic() + request.timeout() / 1e6 if request.timeout() else None
        self.pace = 0.0  # seconds per sample of one image, of the slowest call so far

    def __call__(self, image, masks):
        # Not before the first call: the question takes 0.4 ms, and Triton hands out no request cancelled in its queue.
        if self.begun and self.request.is_cancelled():
            raise Cancelled("the client cancelled the request")
        self.begun = True
        left = 0 if self.ends is None else int((self.ends - time.monotonic()) * 1e6)
        if self.ends is not None and left <= 0:
            raise SamplerFailure("the request's timeout passed before all samples were drawn")
        drawn = len(image) * (1 if masks is None else masks.shape[1])
        if self.ends is not None and self.pace * drawn * 1e6 > left:
            raise SamplerFailure("the request's timeout is near: there is no time for more samples")
        begun = time.monotonic()
        inputs = [pb_utils.Tensor("image", image)]
        if masks is not None:
            inputs.append(pb_utils.Tensor("masks", masks))
        call = pb_utils.InferenceRequest(
            model_name=self.name,
            inputs=inputs,
            requested_output_names=list(self.outputs),
            timeout=left,
            trace=self.request.trace(),
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        self.in_flight.add(calls=1)
        try:
            response = call.exec()
        finally:
            self.in_flight.add(calls=-1)
        if response.has_error():
            raise SamplerFailure(f"the sampler failed: {response.error().message()}")
        self.pace = max(self.pace, (time.monotonic() - begun) / drawn)
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in self.outputs}


class AtOnce:
    """`map` for the members of an ensemble: a call of a sampler waits with the interpreter released."""

    def __init__(self, members):
        self.pool = ThreadPoolExecutor(members)

    def __call__(self, call, draws):
        futures = [self.pool.submit(call, draw) for draw in draws]
        wait(futures)  # also where one failed: no call may outlive its request
        return [future.result() for future in futures]


class SamplerInstances:
    """Splits what is sampled together over the instances of a sampler, each of which uses some of the cores."""

    def __init__(self, count, members):
        self.count = count
        self.at_once = AtOnce(count * members) if count > 1 else None

    def over(self, sampler):
        """The sampler itself where there is nothing to share out."""

        def run(image, masks):
            parts = min(self.count, len(image))
            if parts == 1:
                return sampler(image, masks)
            shared = [None] * parts if masks is None else np.array_split(masks, parts)
            draws = zip(np.array_split(image, parts), shared, strict=True)
            outputs = self.at_once(lambda draw: sampler(*draw), draws)
            return {name: np.concatenate([each[name] for each in outputs]) for name in sampler.outputs}

        return run


class InFlight:
    """How many requests this process is answering and how many sampler calls it waits for, in a file beside `STOPPING`
    that `equipoise serve` reads: it must be true at once, and a metric takes two round trips a request for that."""

    def __init__(self, model):
        self.requests = self.calls = 0
        self.lock = threading.Lock()  # calls come from several threads
        self.file = None
        if STOPPING is not None:
            path = STOPPING.with_name(f"in_flight-{os.getpid()}-{model}")
            self.file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            self.add()

    def add(self, requests=0, calls=0):
        with self.lock:
            self.requests += requests
            self.calls += calls
            if self.file is not None:
                os.pwrite(self.file, struct.pack("<II", self.requests, self.calls), 0)


class Metrics:
    """Counters and histograms on Triton's own metrics endpoint; they carry the model's name and nothing of a case.

    A thread of their own reports what was added up within `REPORT_SECONDS` seconds: no answer waits for that, and it
    costs no more under load. Triton's own histograms take one number at a time; here each bucket is a counter, which
    Prometheus reads in the same way.
    """

    def __init__(self, model):
        self.label = {"model": model.contract.name}
        self.families = []  # must outlive their metrics
        self.sums, self.bounds = {}, {}
        self._add_family("equipoise_in_flight", "Requests being answered", {"in_flight": {}}, "GAUGE")
        self._add_family("equipoise_samples_total", "Samples drawn", {"samples": {}})
        self._add_family("equipoise_audits_total", "Accepted cases to audit", {"audits": {}})
        routes = {route: {"route": route.value} for route in Route}
        self._add_family("equipoise_routes_total", "Decisions by route", routes)
        kinds = ("InvalidRequest", "Cancelled", "SamplerFailure", "Stopping", "Internal")
        self._add_family("equipoise_failures_total", "Cases with no decision", {kind: {"kind": kind} for kind in kinds})
        self._add_histogram("equipoise_case_score", "Case score", {"score": {}}, SCORES)
        monitoring = model.in_force.monitoring if model.in_force else None
        self._add_histogram(
            "equipoise_calibration_rank",
            "Where numbers lie among those of the calibration cases: below 0 to above 1",
            {name: {"number": name} for name in (monitoring.quantiles if monitoring else ())},
            TENTHS,
        )
        self.lock = threading.Lock()
        self.added, self.observed = defaultdict(float), []
        self.waiting, self.closing = threading.Event(), threading.Event()
        self.reporter = threading.Thread(target=self._report, daemon=True)
        self.reporter.start()

    def _add_family(self, name, description, labels, kind="COUNTER"):
        """`labels`: of each of its sums, by the sum's key."""
        family = pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))
        self.families.append(family)
        self.sums |= {key: family.Metric(labels={**self.label, **own}) for key, own in labels.items()}

    def _add_histogram(self, name, description, labels, bounds):
        """Its sums' keys are those of `labels`, each with the bounds of its buckets, and with None for all together."""
        self.bounds |= dict.fromkeys(labels, bounds)
        buckets = {
            (key, bound): {**own, "le": "+Inf" if bound == math.inf else f"{bound:g}"}
            for key, own in labels.items()
            for bound in bounds
        }
        self._add_family(f"{name}_bucket", f"{description}; cases up to `le`", buckets)
        self._add_family(f"{name}_count", f"{description}; cases", {(key, None): own for key, own in labels.items()})

    def count(self, assessment):
        self.add(assessment.decision.route, 1)
        self.add("samples", assessment.samples + (assessment.sampled.samples if assessment.sampled else 0))
        self.add("audits", int(assessment.audited))
        seen = [*assessment.ranks.items(), ("score", assessment.case_score)]
        with self.lock:
            self.observed += [(name, number) for name, number in seen if math.isfinite(number)]

    def add(self, name, amount):
        with self.lock:
            self.added[name] += amount
        if not self.waiting.is_set():
            self.waiting.set()

    def close(self):
        self.closing.set()
        self.waiting.set()
        self.reporter.join()

    def _report(self):
        while not self.closing.is_set():
            self.waiting.wait()
            self.closing.wait(REPORT_SECONDS)
            self.waiting.clear()
            with self.lock:
                added, observed = self.added, self.observed
                self.added, self.observed = defaultdict(float), []
            for name, number in observed:
                for bound in (None, *(bound for bound in self.bounds[name] if number <= bound)):
                    added[name, bound] += 1
            try:
                for name, amount in added.items():
                    if amount:
                        self.sums[name].increment(amount)
            except Exception as error:  # these numbers are lost, later ones are reported
                pb_utils.Logger.log_error(f"{type(error).__name__} while reporting metrics")
