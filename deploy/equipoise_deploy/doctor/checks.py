"""The examination as a list."""

from __future__ import annotations

from .machine import clock, driver, memory, shared_memory
from .models import audit_log, cuda_graphs, permissions, policies, release
from .network import certificate, ports
from .results import Check
from .running import counters, inference
from .software import packages, telemetry, triton_version

MACHINE_CHECKS: tuple[tuple[str, Check], ...] = (
    ("driver", driver),
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
