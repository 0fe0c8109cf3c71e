"""The examination as a list."""

from __future__ import annotations

from .gpu import device_files, driver, gpu_memory
from .machine import clock, cores, memory, shared_memory
from .models import audit_log, cuda_graphs, permissions, policies, release
from .network import certificate, ports
from .proof import proof
from .results import Check
from .running import counters, inference
from .software import packages, telemetry, triton_version

MACHINE_CHECKS: tuple[tuple[str, Check], ...] = (
    ("driver", driver),
    ("device files", device_files),
    ("GPU memory", gpu_memory),
    ("cores", cores),
    ("memory", memory),
    ("shared memory", shared_memory),
    ("clock", clock),
    ("ports", ports),
    ("certificate", certificate),
    ("Triton", triton_version),
    ("packages", packages),
    ("telemetry", telemetry),
    ("permissions", permissions),
    ("release", release),
    ("policy", policies),
    ("CUDA graphs", cuda_graphs),
    ("audit log", audit_log),
)
"""Before going live, and afterwards as well."""

SERVER_CHECKS: tuple[tuple[str, Check], ...] = (("inference", inference), ("counters", counters))
"""Of a server that runs."""

PROOF_CHECKS: tuple[tuple[str, Check], ...] = (("proof", proof),)
"""Of a server that runs, where it was asked for: they keep its device busy for a while."""
