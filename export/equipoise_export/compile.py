"""A module and a contract's draft → a proven sampler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from equipoise_core.contract import Contract, Precision
from numpy.typing import NDArray
from torch import Tensor, nn

from .capture.active import (
    active_modules,
    how_to_make_random,
    override_p,
    refuse_batch_statistics,
    switched_off,
    unwrapped,
)
from .capture.from_onnx import capture_onnx
from .capture.from_torch import capture
from .capture.outputs import choose_answer
from .compiled import Compiled
from .errors import CaptureRefused, ExportRefused
from .graph.marker import matches
from .graph.storage import LARGEST_FILE, store
from .passes import run_passes
from .passes.compilation import Compilation
from .progress import LOGGER
from .proof.file_parity import compare_with_file
from .proof.parity import prove
from .proof.references import Network, OnnxNetwork, TorchNetwork


def compile_sampler(
    module: nn.Module,
    draft: Contract,
    example: Tensor,
    *,
    output: str | int | None = None,
    sites: str | None = None,
    p: float | None = None,
    min_depth: float | None = None,
    log_variance: str | int | None = None,
    deterministic: bool | None = False,
    fall_back: bool = False,
    largest_file: int = LARGEST_FILE,
) -> Compiled:
    """Captures, compiles and proves.

    Args:
        module: image `[N, C, *S]` → logits `[N, K]` or `[N, K, *S]`, alone or among other outputs; weights loaded.
        draft: the contract without sites.
        example: a normalised image `[N ≥ 2, C, *nominal]` to trace with.
        output: which of several outputs, by index, key or dotted path.
        sites: only modules whose name matches this pattern (`decoder.*`, commas between several) drop; those that
            match a pattern behind an exclamation mark (`!*.rel_pos.*`) don't.
        p: overrides the probability of dropping, in the module itself; where nothing drops yet, also p = 0.
        min_depth: only sites after this share (0 to 1) of the network's multiplications.
        log_variance: the output that holds log σ² of the logits, for a heteroscedastic network.
        deterministic: a network without anything random is wanted (it gets no `masks` input), and refused otherwise;
            None: it may be random or not.
        fall_back: where the network does not work at dynamic sizes, export it for the nominal one.
        largest_file: bytes of weights in the ONNX file; more of them go into a second file beside it.
    """
    compilation, network = compile_unproven(
        module, draft, example, output=output, sites=sites, p=p, min_depth=min_depth, log_variance=log_variance,
        deterministic=deterministic, fall_back=fall_back, largest_file=largest_file,
    )  # fmt: skip
    return _proven(compilation, network, example.numpy())


def _proven(compilation: Compilation, network: Network, example: NDArray[np.float32]) -> Compiled:
    """The proof; of a half-precision sampler after the one of the same graph in single precision.

    Half's tolerance is wide enough for a lost site or a wrong scale to hide in; single's is not.
    """
    if compilation.single is not None:
        model, weights = store(compilation.single.model, compilation.largest_file)
        prove(network, model, compilation.single.contract, example, weights=weights)
    model, weights = store(compilation.model, compilation.largest_file)
    halves = compilation.halves_by_name()
    proof = prove(network, model, compilation.contract, example, halves, weights)
    assert compilation.cost is not None
    return Compiled(model, compilation.contract, proof, compilation.cost, tuple(compilation.notes), halves, weights)


def compile_unproven(
    module: nn.Module,
    draft: Contract,
    example: Tensor,
    *,
    output: str | int | None = None,
    sites: str | None = None,
    p: float | None = None,
    min_depth: float | None = None,
    log_variance: str | int | None = None,
    deterministic: bool | None = False,
    fall_back: bool = False,
    largest_file: int = LARGEST_FILE,
) -> tuple[Compilation, TorchNetwork]:
    """All of `compile_sampler` but the proof, and the network that it is to be proven against."""
    module = unwrapped(module)
    LOGGER.info("%s: running the network", draft.name)
    refuse_batch_statistics(module)
    network = choose_answer(module, example, draft, output, log_variance)
    found = active_modules(network, example[:1])  # one image shows what there is to see
    active = _selected(found if found or p is None else switched_off(network), sites)
    if p is not None:
        override_p(network, active, p)
    compilation = _compile(network, draft, example, active, fall_back, largest_file)
    if min_depth is not None and compilation.contract.stochastic:
        active = _deep(compilation, network, active, min_depth)
        compilation = _compile(network, compilation.contract, example, active, fall_back, largest_file)
    _refuse_always_on(compilation, network, active)
    _refuse_randomness(compilation, deterministic)
    if active and not compilation.contract.stochastic and deterministic is False:
        names = ", ".join(path.removeprefix("equipoise_network.") for path in active[:4])
        raise CaptureRefused(
            f"none of its stochastic modules ({names}) changes the chosen output, so its variance would be zero",
            "the whole network",
            "Choose another output (--output), or check that their probability of dropping is not 0.",
        )
    if not compilation.contract.stochastic and deterministic is False:
        raise CaptureRefused(
            "nothing in it is random, so all samples would be equal", "the whole network", how_to_make_random(module)
        )
    return compilation, TorchNetwork(network, active, compilation.calls)


def compile_onnx(
    proto: onnx.ModelProto,
    draft: Contract,
    example: NDArray[np.float32],
    *,
    output: str | int | None = None,
    dropout_at: str | None = None,
    p: float | None = None,
    sites: str | None = None,
    deterministic: bool | None = False,
    largest_file: int = LARGEST_FILE,
) -> Compiled:
    """The same for an ONNX file: `compile_sampler` without torch in it. Arguments as for `capture_onnx`.

    Args:
        example: a normalised image `[N ≥ 1, C, *nominal]`.
    """
    compilation, network = compile_onnx_unproven(
        proto, draft, output=output, dropout_at=dropout_at, p=p, sites=sites, deterministic=deterministic,
        largest_file=largest_file,
    )  # fmt: skip
    filed = compare_with_file(proto, network, compilation.contract, example, output)
    compiled = _proven(compilation, network, example)
    return replace(compiled, proof=replace(compiled.proof, checks=(filed, *compiled.proof.checks)))


def compile_onnx_unproven(
    proto: onnx.ModelProto,
    draft: Contract,
    *,
    output: str | int | None = None,
    dropout_at: str | None = None,
    p: float | None = None,
    sites: str | None = None,
    deterministic: bool | None = False,
    largest_file: int = LARGEST_FILE,
) -> tuple[Compilation, OnnxNetwork]:
    """All of `compile_onnx` but the proof, and the network that it is to be proven against."""
    LOGGER.info("%s: reading the graph", draft.name)
    marked = capture_onnx(proto, draft, output=output, dropout_at=dropout_at, p=p, sites=sites)
    network = OnnxNetwork(marked)
    compilation = compile_graph(marked, draft, largest_file)
    _refuse_randomness(compilation, deterministic)
    if not compilation.contract.stochastic and deterministic is False:
        raise CaptureRefused(
            "it has no Dropout node, so all samples would be equal",
            "the whole network",
            "Insert sites with --dropout-at PATTERN --p 0.1, or export it as a single-pass model (--deterministic).",
        )
    return compilation, network


def _refuse_randomness(compilation: Compilation, deterministic: bool | None) -> None:
    if deterministic and compilation.contract.stochastic:
        names = ", ".join(site.name for site in compilation.contract.sites[:4])
        raise CaptureRefused(
            f"a single pass is wanted, but it draws at {len(compilation.contract.sites)} sites ({names})",
            "--deterministic",
            "Set their probability of dropping to 0, or leave --deterministic out.",
        )


def _compile(
    network: nn.Module, draft: Contract, example: Tensor, active: tuple[str, ...], fall_back: bool, largest_file: int
) -> Compilation:
    LOGGER.info("%s: tracing the network", draft.name)
    try:
        marked = capture(network, example, draft.spatial, draft.preprocessing.multiple, active)
        return compile_graph(marked, draft, largest_file)
    except ExportRefused as refusal:
        if not fall_back or draft.spatial == draft.nominal:
            raise
        fixed = replace(draft, spatial=draft.nominal, maximum=draft.nominal)
        compilation = compile_graph(capture(network, example, fixed.spatial, 1, active), fixed, largest_file)
        compilation.notes.append(f"serves images of size {draft.nominal} only: {refusal.reason}")
        return compilation


def compile_graph(marked: ir.Model, draft: Contract, largest_file: int = LARGEST_FILE) -> Compilation:
    """The marked graph of either front end → the sampler, not yet proven."""
    draft = replace(draft, sites=())
    if draft.precision is Precision.FP32:
        return run_passes(Compilation(marked, draft, largest_file=largest_file))
    single = replace(draft, precision=Precision.FP32)
    in_single = run_passes(Compilation(marked.clone(), single, largest_file=largest_file))
    compilation = run_passes(Compilation(marked, draft, largest_file=largest_file))
    compilation.single = in_single
    return compilation


def _selected(active: tuple[str, ...], patterns: str | None) -> tuple[str, ...]:
    """The active modules whose name matches; names without the answer's wrapper."""
    if patterns is None:
        return active
    names = {path: path.removeprefix("equipoise_network").removeprefix(".") for path in active}
    chosen = tuple(path for path, name in names.items() if matches(patterns, name))
    if not chosen:
        raise CaptureRefused(
            f"no stochastic module matches {patterns}",
            "--sites",
            f"There are: {', '.join(sorted(names.values())) or 'none'}.",
        )
    return chosen


def _refuse_always_on(compilation: Compilation, network: nn.Module, active: tuple[str, ...]) -> None:
    """Dropout that ignores its training flag acts in whatever was not chosen, too."""
    chosen = [network.get_submodule(path) for path in active]
    for site in compilation.contract.sites:
        if not any(_owner(network, site.name) is part for part in chosen):
            raise CaptureRefused(
                "it is random in evaluation mode as well, so it cannot be left out",
                site.name,
                "Make it depend on self.training, or choose it too (--sites).",
            )


def _deep(compilation: Compilation, network: nn.Module, active: tuple[str, ...], min_depth: float) -> tuple[str, ...]:
    """The active modules all of whose sites lie behind `min_depth` of the network."""
    deepest = max(compilation.depths.values())
    shallow = [_owner(network, site) for site, depth in compilation.depths.items() if depth < min_depth]
    chosen = tuple(path for path in active if not any(network.get_submodule(path) is part for part in shallow))
    if not chosen:
        raise CaptureRefused(
            f"no site lies behind {min_depth:.0%} of the network", "--min-depth", f"The last one lies at {deepest:.0%}."
        )
    return chosen


def _owner(network: nn.Module, site: str) -> nn.Module:
    """The module that a site's name leads to, of all names that a module may have."""
    path = site.split("#")[0].split(":")[0]
    return network.get_submodule("equipoise_network" if path == "forward" else f"equipoise_network.{path}")
