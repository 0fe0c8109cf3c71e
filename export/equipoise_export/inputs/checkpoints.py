"""Weights from disk into a module: safetensors, state dicts and checkpoints of torch.save."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError

_USUAL = frozenset(
    {"state_dict", "model_state_dict", "network_weights", "model_state", "params", "weights"}
    | {"module", "_orig_mod", "model", "network", "net", "_model"}
)
"""Under which keys training keeps the network's own weights, and what wrappers (DataParallel, torch.compile, Lightning)
put before every name, also one within another. An average of weights or a teacher has another name."""
_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|average|averaged|shadow|teacher)(_|$)")
_BESIDE = re.compile(r"(\w+_)?(criterion|loss|loss_fn|metrics?)\.|(train|val|valid|test)_\w+\.")
"""Names of what training keeps beside the network: the loss's own weights, the state of metrics."""
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of averaged weights: evaluation uses none
_WITHIN = "/"  # between the keys of nested dictionaries; names of weights have dots


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Puts weights (safetensors, or a state dict or checkpoint of torch.save) into the module; all must fit.

    Args:
        path: the file; of one that holds the network more than once `FILE:NAME`, such as `last.pt:ema`.

    Returns:
        notes: which other weights of the network lie there.

    Raises:
        SpecError: naming what is missing, left over or of another shape.
    """
    path, wanted = file_of(path)
    weights, averages = _read(path)
    own = module.state_dict()
    prefix, notes = _chosen(weights, own, path, wanted)
    candidate = {name: weights[prefix + name] for name in own if prefix + name in weights}
    extra = _left(weights, own, prefix)
    missing = sorted(name for name in set(own) - set(candidate) if not name.endswith(_COUNTERS))
    wrong = [
        f"{name} {tuple(candidate[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in candidate and candidate[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        found = [
            f"{label}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
            for label, names in (("missing", missing), ("not in the network", extra), ("of another shape", wrong))
            if names
        ]
        raise SpecError(f"{path} does not fit the network ({'; '.join(found)}). Use the arguments it was trained with")
    not_finite = [name for name, value in candidate.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        raise SpecError(f"{path} holds NaN or infinity in {', '.join(not_finite[:4])}. Use another checkpoint")
    module.load_state_dict(candidate, strict=False)
    named = {name.split(_WITHIN)[0] for name in weights for _, rest in _splits(name) if rest in own}
    unnamed = [key for key in averages if key not in named]
    if unnamed and not wanted:
        notes.append(
            f"{path} also holds {', '.join(unnamed)}: weights without names of the network, which are not used"
        )
    return notes


def file_of(path: Path) -> tuple[Path, str]:
    """`last.pt:ema` → the file, and which of its networks; "" where it is not said."""
    name, colon, wanted = path.name.rpartition(":")
    return (path.with_name(name), wanted) if colon and name and not path.is_file() else (path, "")


def _chosen(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, wanted: str) -> tuple[str, list[str]]:
    """What stands before the network's own names in the file; and a note, where they stand behind something else too.

    Raises SpecError where several fit and none is `wanted`, nor under a usual name.
    """
    needed = [name for name in own if not name.endswith(_COUNTERS)]
    known = set(needed)
    fits = Counter(prefix for name in weights for prefix, rest in _splits(name) if rest in known)
    whole = sorted(prefix for prefix, count in fits.items() if count == len(needed))
    if wanted:
        named = [prefix for prefix in whole if _spelled(prefix) == wanted]
        if not named:
            raise SpecError(
                f"{path} holds no whole network under {wanted!r}; there is {', '.join(map(_spelled, whole)) or 'none'}"
            )
        return named[0], []
    usual = [prefix for prefix in whole if set(re.split(r"[./]", prefix)[:-1]) <= _USUAL]
    several = usual or whole
    if not several:
        return max(sorted(fits), key=lambda prefix: fits[prefix], default=""), []
    chosen, *others = several
    if not all(_same(weights, needed, chosen, other) for other in others):
        raise SpecError(
            f"{path} holds the network more than once, under {', '.join(map(_spelled, several))}, with other values; "
            f"say which is meant: --weights {path}:{_spelled(several[-1])}"
        )
    used = {chosen + name for name in needed}
    rest = Counter(prefix for name in weights if name not in used for prefix, rest in _splits(name) if rest in known)
    other = [
        prefix
        for prefix, count in sorted(rest.items())
        if 2 * count >= len(needed) and not _same(weights, needed, chosen, prefix)
    ]
    if not other:
        return chosen, []
    return chosen, [
        f"{path} holds other weights of the network too, under {', '.join(map(_spelled, other))} (an average, a "
        f"teacher?); those {'under ' + _spelled(chosen) if chosen else 'without a prefix'} are used; "
        f"the others: --weights {path}:{_spelled(other[0])}"
    ]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b` → ("", "a.b"), ("a.", "b"): what may stand before a network's own name."""
    yield "", name
    for end in (match.end() for match in re.finditer(r"[./]", name)):
        yield name[:end], name[end:]


def _same(weights: Mapping[str, Tensor], needed: list[str], one: str, other: str) -> bool:
    """Whether what is there of both is equal."""
    pairs = [(weights[one + name], weights[other + name]) for name in needed if other + name in weights]
    return all(mine.equal(theirs) for mine, theirs in pairs)


def _spelled(prefix: str) -> str:
    return prefix.replace(_WITHIN, ".").strip(".")


def _left(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> list[str]:
    """What is left over beside the network's own names, in the same dictionary and under the same prefix.

    Without a prefix losses and metrics may be left over.
    """
    names = (name.removeprefix(prefix) for name in weights if name.startswith(prefix))
    left = [name for name in names if name not in own and _WITHIN not in name and not name.endswith(_COUNTERS)]
    within = prefix.rpartition(_WITHIN)[2]
    return sorted(within + name for name in left if within or not _BESIDE.match(name))


def _read(path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """Tensors by name, those of nested dictionaries behind their keys; and keys that sound like averages of weights."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), []
        with torch.serialization.safe_globals([(_Inert, name) for name in _foreign(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SpecError(
            f"{path} cannot be read as safetensors or as weights of torch.save: {type(error).__name__}: {error}. "
            "Pickled modules are not loaded (they can run any code): save module.state_dict()"
        ) from error
    if isinstance(content, _Inert):
        raise SpecError(
            f"{path} holds a pickled object, not weights; its code is not run here: save module.state_dict()"
        )
    weights = dict(_tensors(content))
    if not weights:
        there = content if isinstance(content, Mapping) else {}
        objects = [str(key) for key, value in there.items() if isinstance(value, _Inert)]
        found = f"; there is {', '.join(map(str, list(there)[:6]))}" if there else f"; it is a {type(content).__name__}"
        if objects:
            found += f" ({', '.join(objects[:3])}: pickled objects, whose code is not run: save their state_dict())"
        raise SpecError(f"{path} holds no state dict (expected name → tensor, also under a key){found}")
    keys = content.items() if isinstance(content, Mapping) else ()
    return weights, [str(key) for key, value in keys if _AVERAGE.search(str(key)) and _holds_tensors(value)]


def _holds_tensors(content: Any) -> bool:
    within = content.values() if isinstance(content, Mapping) else content if isinstance(content, (list, tuple)) else ()
    return any(isinstance(each, Tensor) or _holds_tensors(each) for each in within)


def _tensors(content: Any, before: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor) and before:
        yield before.removesuffix(_WITHIN), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{before}{key}{_WITHIN}")


class _Inert:
    """Stands for any object of foreign code in a checkpoint (hyper-parameters, scores): nothing of it is run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _foreign(path: Path) -> list[str]:
    """Names of what a checkpoint refers to and PyTorch does not load by itself; none where it cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of before PyTorch 1.6
        return []
