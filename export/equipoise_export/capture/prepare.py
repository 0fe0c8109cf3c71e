"""Prepares a torch module for capture, once: its answer, its active modules, its probabilities of dropping."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise_core.contract import Contract
from torch import Tensor, nn

from ..errors import CaptureRefused
from ..graph.marker import WRAPPED, matches
from ..options import Options
from .active import active_modules, override_p, refuse_batch_statistics, switched_off, unwrapped
from .answer import AnswerOnly
from .outputs import choose_answer


@dataclass(frozen=True)
class Prepared:
    """A network that can be captured and sampled.

    Attributes:
        network: image `[N, C, *S]` → one tensor of logits.
        original: image → the same output as the network gives it: logits or probabilities.
        active: the modules that are in training mode while it is sampled.
        example: a normalised image `[N ≥ 2, C, *nominal]` to trace with.
        notes: what the user should know.
    """

    network: nn.Module
    original: nn.Module
    active: tuple[str, ...]
    example: Tensor
    notes: tuple[str, ...] = ()


def prepare(module: nn.Module, draft: Contract, example: Tensor, options: Options) -> Prepared:
    """Finds the chosen output and the modules that are to drop; `options.p` is set in the module itself.

    Raises:
        ExportRefused: no output fits, no module matches `options.sites`, or an image's answer depends on its
            batch-mates.
    """
    module = unwrapped(module)
    refuse_batch_statistics(module)
    seen = active_modules(module, example[:1], options.sites is not None)  # one image shows what there is to see
    found = seen.names
    network = choose_answer(module, found, example, draft, options)
    if not found and options.p is not None:
        found = switched_off(module)
    active = _selected(found, options.sites)
    if options.p is not None:
        override_p(network, active, options.p)
    original = network.as_it_is() if isinstance(network, AnswerOnly) else network
    return Prepared(network, original, active, example, (*seen.notes, *network.notes))


def _selected(found: tuple[str, ...], patterns: str | None) -> tuple[str, ...]:
    """The modules whose name matches, as the wrapper around the network calls them."""
    chosen = [name for name in found if patterns is None or matches(patterns, name)]
    if patterns is not None and not chosen:
        raise CaptureRefused(
            f"no stochastic module matches {patterns}", "--sites", f"There are: {', '.join(found) or 'none'}."
        )
    return tuple(f"{WRAPPED}.{name}" if name else WRAPPED for name in chosen)
