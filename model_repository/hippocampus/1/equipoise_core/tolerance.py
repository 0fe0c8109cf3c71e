"""Within which two computations of one network agree: the one place for what an export proves, a replay allows and a
serving machine has to show (`equipoise doctor --prove`).

Absolute for probabilities and for means of moments over samples, relative where a number is larger than 1 (volumes),
and of a regression relative to the largest number that it answers to the images of the proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .contract import Precision

SAME = 1e-5
"""On the same device with the same libraries."""

TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 5e-3}
"""On any two devices, the CPU, CUDA and TensorRT alike, by the precision that they compute in.

TensorFloat-32 is no third precision but a fault: it keeps 10 bits of the mantissa, which moves means by some 1e-3, so
fp32 is promised with it switched off (`use_tf32` 0, NVIDIA_TF32_OVERRIDE=0).

Half rounds each weight and each activation once, by up to u = 2⁻¹¹ of itself; L layers deep the logits are off by about
ε = u·√(2L) of themselves, and p = σ(z) by p·(1 − p)·|z|·ε ≤ 0.224·ε. At L = 50 that is 1.1e-3 (one standard deviation),
and 5e-3 the largest of a million voxels (5 of them). A network that loses more cancels: its logits are small
differences of large numbers, and half is not for it.
"""

DROWNED = 0.1
"""The mean difference is at most this share of the standard deviation over samples, else the variance would be one of
rounding; but never less than single precision's tolerance is asked for."""

ROUNDED = 1e-5
"""Single precision differs by less in the mean of probabilities; what differs by more computes in fewer bits, even
where its largest difference happens to stay within the tolerance."""

_LESS = {("precision_mode", "FP16"), ("precision_mode", "BF16"), ("precision_mode", "INT8")} | {
    (f"trt_{kind}_enable", yes) for kind in ("fp16", "bf16", "int8") for yes in ("1", "true", "True")
}
"""Options by which TensorRT computes a single-precision file in less: Triton's name for them, and ONNX Runtime's."""


def precision_of(file: Precision, provider_options: Mapping[str, Any]) -> Precision:
    """What a sampler is computed in: in its file's precision, or in less where the execution provider is told so."""
    told = any((name, str(value)) in _LESS for name, value in provider_options.items())
    return Precision.FP16 if told else file


def tolerance_between(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Within which two computations of one case agree, by the `computed_by` of their records."""
    kinds = ("onnxruntime", "provider", "provider_options", "device", "precision")
    known = one.get("device") is not None and one.get("onnxruntime") is not None
    if known and all(one.get(name) == other.get(name) for name in kinds):
        return SAME
    return max(_by_precision(each.get("precision")) for each in (one, other))


def _by_precision(stated: Any) -> float:
    try:
        return TOLERANCES[Precision(stated)]
    except ValueError:  # of a record that does not say
        return max(TOLERANCES.values())
