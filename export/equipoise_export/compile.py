"""A network and a contract's draft → a proven sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import torch
from equipoise_core.contract import Contract, Precision
from numpy.typing import NDArray
from torch import Tensor, nn

from .capture.active import how_to_make_random, only_noise, unwrapped
from .capture.from_onnx import capture_onnx, readable
from .capture.from_torch import capture
from .capture.prepare import Prepared, prepare
from .compiled import Captured, Compiled
from .errors import CaptureRefused, ExportError, ExportRefused, SpecError
from .graph.marker import WRAPPED, drop_markers, own_path
from .graph.randomness import sampling
from .graph.storage import store
from .graph.undrop import undrop
from .inputs.bound import bound
from .options import DEFAULTS, LARGEST_FILE, Options, Sizes
from .passes import run_passes
from .passes.compilation import Compilation
from .passes.simplify import simplify
from .progress import phase
from .proof.parity import Check, prove
from .proof.references import Network, OnnxNetwork, TorchNetwork
from .proof.slices import SliceBySlice
from .proof.undropped import compare_with_file, compare_with_module, looks_classified
from .volume import notes_on_slices, slices_of

_Made = TypeVar("_Made")


def compile_sampler(
    module: nn.Module | onnx.ModelProto,
    draft: Contract,
    example: Tensor,
    options: Options = DEFAULTS,
    dropout: bool = True,
) -> Compiled:
    """Captures, compiles and proves.

    Args:
        module: image `[N, C, *S]` → logits `[N, K]` or `[N, K, *S]`, alone or among other outputs; weights loaded. Or
            an ONNX graph of that kind, which is exported for the nominal size. With `draft.slices` it takes one slice,
            and its neighbours as further channels.
        draft: the contract without sites.
        example: a normalised image `[N ≥ 2, C, *nominal]` to trace with.
        dropout: whether it acts; without it the network is as in evaluation mode.

    Raises:
        ExportError: naming reason, site and remedy.
    """

    module, draft = of_image(module, draft, example, options)

    def compiled(draft: Contract, options: Options) -> Compiled:
        return _compiled(module, draft, example, options, dropout)

    found, note = _at_its_sizes(compiled, module, draft, example, options)
    return replace(found, notes=(*found.notes, *note, *notes_on_slices(draft)))


def of_image(
    module: nn.Module | onnx.ModelProto, draft: Contract, example: Tensor, options: Options
) -> tuple[nn.Module | onnx.ModelProto, Contract]:
    """The network as a function of the image alone, and the contract that says what else it is given."""
    module = readable(module) if isinstance(module, onnx.ModelProto) else unwrapped(module)
    module, constants = bound(module, options.bind, slices_of(draft, example))
    return module, replace(draft, constants=constants)


def _compiled(
    module: nn.Module | onnx.ModelProto, draft: Contract, example: Tensor, options: Options, dropout: bool
) -> Compiled:
    return _checked(module, *_captured(module, draft, example, options, dropout), example, options)


def _checked(
    module: nn.Module | onnx.ModelProto,
    compilation: Compilation,
    network: TorchNetwork | OnnxNetwork,
    example: Tensor,
    options: Options,
) -> Compiled:
    """Proven, and before any pass: what was read is what was handed in."""
    contract, images = compilation.contract.of_network, slices_of(compilation.contract, example).numpy()
    check: Check | None
    if isinstance(network, OnnxNetwork):
        assert isinstance(module, onnx.ModelProto)
        with phase("comparing with the file"):
            check = compare_with_file(module, network, contract, images, options.output, options.answers)
    else:
        with phase("comparing with evaluation"):
            check = compare_with_module(network, contract, images, options.answers)
    compiled = _proven(compilation, network, example.numpy())
    if contract.targets:
        answer = network.undropped if isinstance(network, OnnxNetwork) else network.evaluated
        doubt = looks_classified(answer, contract, images)
        silent = "it states no variance (--answers): aleatoric is 0, its standard deviation that of the samples alone"
        said = (doubt, None if contract.states_variance else silent)
        compiled = replace(compiled, notes=(*compiled.notes, *filter(None, said)))
    checks = (check, *compiled.proof.checks) if check is not None else compiled.proof.checks
    return replace(compiled, proof=replace(compiled.proof, checks=checks))


def compile_first_pass(
    module: nn.Module | onnx.ModelProto, sampler: Compiled, example: Tensor, options: Options = DEFAULTS
) -> Compiled:
    """The same network without dropout: one pass, which may decide before any sample is drawn.

    Where dropout is a matter of layers that do nothing else, it is the graph that was captured for the sampler, without
    its markers; else the network is traced again. It is proven in either case.

    Args:
        module, example, options: those that `sampler` was compiled from.

    Raises:
        ExportError: as `compile_sampler`; also where it is random in evaluation mode.
    """
    contract, captured = replace(sampler.contract, sites=()), sampler.captured
    if (
        captured is not None
        and contract.slices is None
        and _same(module, captured.network.module.get_submodule(WRAPPED))
    ):
        with contextlib.suppress(ExportError):  # its evaluation is another one after all: it is traced
            simplify(Compilation(graph := captured.graph.clone(), contract))
            if undrop(graph):
                compilation = compile_graph(graph, contract, options.largest_file)
                return _checked(module, compilation, captured.network, example, options)
    sizes = Sizes.FIXED if contract.one_size else Sizes.DYNAMIC
    plain = replace(
        options, deterministic=True, sizes=sizes, sites=None, p=None, min_depth=None, dropout_at=None,
    )  # fmt: skip
    return compile_sampler(module, contract, example, plain, dropout=False)


def _same(one: nn.Module | onnx.ModelProto, other: nn.Module) -> bool:
    """Whether two modules are one network with the same weights."""
    if type(one) is not type(other) or not isinstance(one, nn.Module):
        return False
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(value, its[name]) for name, value in mine.items())


def compile_unproven(
    module: nn.Module | onnx.ModelProto,
    draft: Contract,
    example: Tensor,
    options: Options = DEFAULTS,
    dropout: bool = True,
) -> tuple[Compilation, TorchNetwork | OnnxNetwork]:
    """All of `compile_sampler` but the proof, and the network that it is to be proven against."""

    module, draft = of_image(module, draft, example, options)

    def captured(draft: Contract, options: Options) -> tuple[Compilation, TorchNetwork | OnnxNetwork]:
        return _captured(module, draft, example, options, dropout)

    found, note = _at_its_sizes(captured, module, draft, example, options)
    found[0].notes += (*note, *notes_on_slices(draft))
    return found


def _at_its_sizes(
    attempt: Callable[[Contract, Options], _Made],
    module: nn.Module | onnx.ModelProto,
    draft: Contract,
    example: Tensor,
    options: Options,
) -> tuple[_Made, tuple[str, ...]]:
    """What `attempt` makes, for all sizes where that works; and a note where it does not.

    Case 1: several sizes, in multiples of what the contract says.
    Case 2: in multiples of 8, 16 or 32.
    Case 3: the nominal size. What fails there as well is not about sizes.
    """
    if isinstance(module, onnx.ModelProto) or options.sizes is not Sizes.AUTO or draft.one_size:
        return attempt(draft, options), ()
    try:
        with phase("for several sizes"):
            return attempt(draft, replace(options, sizes=Sizes.DYNAMIC)), ()
    except Exception as error:  # noqa: BLE001  # whatever it is, one size may work
        reason = error.reason if isinstance(error, ExportRefused) else "its graph does not run at other sizes"
    with phase("for one size"):
        fixed = attempt(draft, replace(options, sizes=Sizes.FIXED))
    stated, nominal = draft.preprocessing.multiple, draft.of_network.nominal
    for multiple in (8, 16, 32):
        fits = multiple > stated and not multiple % stated and not any(size % multiple for size in nominal)
        larger = tuple(size + multiple for size in nominal)
        if not fits or not _runs_at(module, slices_of(draft, example), larger):
            continue
        with contextlib.suppress(Exception), phase(f"for multiples of {multiple}"):
            coarser = replace(draft, preprocessing=replace(draft.preprocessing, multiple=multiple))
            made = attempt(coarser, replace(options, sizes=Sizes.DYNAMIC))
            return made, (f"serves sizes in multiples of {multiple} (--multiple): {reason}",)
    return fixed, (f"serves images of size {nominal} only: {reason}",)


def _runs_at(module: nn.Module, example: Tensor, size: tuple[int, ...]) -> bool:
    """Whether a network takes images of another size at all."""
    with contextlib.suppress(Exception), sampling(module, ()), torch.no_grad():
        module(example.new_zeros((1, example.shape[1], *size)))
        return True
    return False


def _captured(
    module: nn.Module | onnx.ModelProto, draft: Contract, example: Tensor, options: Options, dropout: bool
) -> tuple[Compilation, TorchNetwork | OnnxNetwork]:
    if isinstance(module, onnx.ModelProto):
        return _from_onnx(module, _fixed(draft), options, dropout)
    return _from_torch(module, _fixed(draft) if options.sizes is Sizes.FIXED else draft, example, options, dropout)


def _from_torch(
    module: nn.Module, draft: Contract, example: Tensor, options: Options, dropout: bool
) -> tuple[Compilation, TorchNetwork]:
    if options.dropout_at is not None:
        raise SpecError("--dropout-at is for ONNX files: put nn.Dropout into the torch module")
    with phase("running the network"):
        prepared = prepare(module, draft.of_network, slices_of(draft, example), options)
    if not dropout:
        prepared = replace(prepared, active=())
    compilation = _traced(prepared, draft, options)
    if options.min_depth is not None and compilation.contract.stochastic:
        prepared = replace(prepared, active=_deep(compilation, prepared, options.min_depth))
        compilation = _traced(prepared, compilation.contract, options)
    compilation.notes += prepared.notes
    _refuse_always_on(compilation, prepared)
    _refuse_randomness(compilation, options)
    if prepared.active and not compilation.contract.stochastic and options.deterministic is False:
        names = ", ".join(own_path(path) for path in prepared.active[:4])
        raise CaptureRefused(
            f"none of its stochastic modules ({names}) changes the chosen output, so its variance would be zero",
            "the whole network",
            "Choose another output (--output), or check that their probability of dropping is not 0.",
        )
    if not compilation.contract.stochastic and options.deterministic is False:
        raise CaptureRefused(
            "nothing in it is random, so all samples would be equal",
            "the whole network",
            how_to_make_random(prepared.network.get_submodule(WRAPPED)),
        )
    return compilation, TorchNetwork(prepared.network, prepared.active, compilation.calls, prepared.original)


def _from_onnx(
    proto: onnx.ModelProto, draft: Contract, options: Options, dropout: bool
) -> tuple[Compilation, OnnxNetwork]:
    if options.min_depth is not None or options.log_variance is not None:
        raise SpecError("--min-depth and --log-variance are for torch modules: an ONNX file has --sites, --dropout-at")
    with phase("reading the graph"):
        marked = capture_onnx(proto, draft.of_network, options)
        if not dropout:
            drop_markers(marked)
        network = OnnxNetwork(marked)
    compilation = compile_graph(marked, draft, options.largest_file)
    _refuse_randomness(compilation, options)
    if not compilation.contract.stochastic and options.deterministic is False:
        raise CaptureRefused(
            "it has no Dropout node, so all samples would be equal",
            "the whole network",
            "Insert sites with --dropout-at PATTERN --p 0.1, or export it as a single-pass model (--deterministic).",
        )
    return compilation, network


def _proven(compilation: Compilation, network: Network, example: NDArray[np.float32]) -> Compiled:
    """The proof; of a half-precision sampler after the one of the same graph in single precision.

    Half's tolerance is wide enough for a lost site or a wrong scale to hide in; single's is not.
    """
    if compilation.contract.slices is not None:
        network = SliceBySlice(network)
    if compilation.single is not None:
        model, weights = store(compilation.single.model, compilation.largest_file)
        prove(network, model, compilation.single.contract, example, weights=weights)
    model, weights = store(compilation.model, compilation.largest_file)
    halves = compilation.halves_by_name()
    proof = prove(network, model, compilation.contract, example, halves, weights)
    assert compilation.cost is not None
    return Compiled(
        model, compilation.contract, proof, compilation.cost, tuple(compilation.notes), halves, weights,
        _captured_once(compilation, network),
    )  # fmt: skip


def _captured_once(compilation: Compilation, network: Network) -> Captured | None:
    if compilation.captured is None or not isinstance(network, TorchNetwork):
        return None
    return Captured(compilation.captured, TorchNetwork(network.module, (), (), network.original))


def _fixed(draft: Contract) -> Contract:
    """The same for images, or slices, of the nominal size only."""
    if draft.one_size:
        return draft
    first = 0 if draft.slices is None else 1
    size = draft.nominal[first:]
    return replace(draft, spatial=(*draft.spatial[:first], *size), maximum=(*draft.maximum[:first], *size))


def _traced(prepared: Prepared, draft: Contract, options: Options) -> Compilation:
    multiple = 1 if draft.one_size else draft.preprocessing.multiple
    with phase("tracing the network"):
        marked = capture(prepared, draft.of_network.spatial, multiple)
    captured = (
        marked.clone() if prepared.active and only_noise(prepared.network, prepared.active, prepared.example) else None
    )
    compilation = compile_graph(marked, draft, options.largest_file)
    compilation.captured = captured
    return compilation


def compile_graph(marked: ir.Model, draft: Contract, largest_file: int = LARGEST_FILE) -> Compilation:
    """The marked graph of either front end → the sampler, not yet proven."""
    draft, single = replace(draft, sites=()), None
    if draft.precision is not Precision.FP32:
        single = compile_graph(marked.clone(), replace(draft, precision=Precision.FP32), largest_file)
    volume = None if draft.slices is None else draft
    compilation = Compilation(marked, draft.of_network, volume=volume, single=single, largest_file=largest_file)
    with phase("compiling"):
        return run_passes(compilation)


def _refuse_randomness(compilation: Compilation, options: Options) -> None:
    if options.deterministic and compilation.contract.stochastic:
        names = ", ".join(site.name for site in compilation.contract.sites[:4])
        raise CaptureRefused(
            f"a single pass is wanted, but it draws at {len(compilation.contract.sites)} sites ({names})",
            "--deterministic",
            "Set their probability of dropping to 0, or leave --deterministic out.",
        )


def _refuse_always_on(compilation: Compilation, prepared: Prepared) -> None:
    """Dropout that ignores its training flag acts in whatever was not chosen, too."""
    chosen = [prepared.network.get_submodule(path) for path in prepared.active]
    for site in compilation.contract.sites:
        if not any(_owner(prepared.network, site.name) is part for part in chosen):
            raise CaptureRefused(
                "it is random in evaluation mode as well, so it cannot be left out",
                site.name,
                "Make it depend on self.training, or choose it too (--sites).",
            )


def _deep(compilation: Compilation, prepared: Prepared, min_depth: float) -> tuple[str, ...]:
    """The active modules all of whose sites lie behind `min_depth` of the network."""
    network = prepared.network
    deepest = max(compilation.depths.values())
    shallow = [_owner(network, site) for site, depth in compilation.depths.items() if depth < min_depth]
    chosen = tuple(path for path in prepared.active if not any(network.get_submodule(path) is part for part in shallow))
    if not chosen:
        raise CaptureRefused(
            f"no site lies behind {min_depth:.0%} of the network", "--min-depth", f"The last one lies at {deepest:.0%}."
        )
    return chosen


def _owner(network: nn.Module, site: str) -> nn.Module:
    """The module that a site's name leads to, of all names that a module may have."""
    path = site.split("#")[0].split(":")[0]
    return network.get_submodule(WRAPPED if path == "forward" else f"{WRAPPED}.{path}")
