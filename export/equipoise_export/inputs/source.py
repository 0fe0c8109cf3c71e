"""Everything that can be exported, brought to one form: modules in memory, factories, MONAI bundles, ONNX files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from equipoise_core.canonical import digest_of_file
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..draft import Description
from ..errors import SpecError
from .checkpoints import file_of, load_weights
from .factory import load_module
from .monai_bundle import read_bundle

Exportable = nn.Module | onnx.ModelProto


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        members: each makes one network anew: one, or those of a deep ensemble.
        stated: what a bundle says about itself.
        transform: a bundle's own preprocessing of one raw image, `[C, *S]` → `[C', *S]`, where steps can say it.
        notes: what the user should know of the weights; complete once each member was made.
    """

    members: tuple[Callable[[], Exportable], ...]
    stated: Description = Description()  # noqa: RUF009  # it is frozen
    transform: Callable[[Tensor], ArrayLike] | None = None
    notes: list[str] = field(default_factory=list)


def read_source(
    module: nn.Module | str | Path,
    weights: str | Path | Sequence[str | Path] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Source:
    """Finds out what is to be exported; networks are built only when a member is called.

    Args:
        module: an nn.Module, `package.module:callable`, `file.py:callable`, an ONNX file or a MONAI bundle's folder.
        weights: files of weights; several are a deep ensemble. `FILE:NAME` where one holds the network more than once.
        arguments: keyword arguments of the callable, or overrides of a bundle's configuration.

    Raises:
        SpecError: it is none of these, or weights or arguments are given to something that takes none.
    """
    files = _distinct(tuple(map(Path, [weights] if isinstance(weights, (str, Path)) else weights)))
    notes: list[str] = []
    if isinstance(module, nn.Module):
        if arguments:
            raise SpecError("arguments are for a factory or a bundle; a module is built already")
        return Source(_members(partial(_copied, module), files, notes), notes=notes)
    if not isinstance(module, (str, Path)):
        raise SpecError(
            f"got a {type(module).__name__}; expected an nn.Module, package.module:callable, file.py:callable, an ONNX "
            "file or a MONAI bundle's folder"
        )
    spec = str(module)
    if spec.endswith(".onnx"):
        if files or arguments:
            raise SpecError("an ONNX file holds its weights: --weights and --arg are for torch")
        return Source((partial(load_graph, Path(spec)),))
    if Path(spec).is_dir():
        bundle = read_bundle(Path(spec))
        files = files or (bundle.stored_weights(),)
        stated = bundle.stated()
        members = _members(partial(bundle.module, arguments or {}), files, notes)
        return Source(members, stated, None if stated.unclear else bundle.transform, notes)
    return Source(_members(partial(load_module, spec, arguments), files, notes), notes=notes)


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file, with external data where it has any."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    try:
        return onnx.load(path)
    except Exception as error:
        raise SpecError(f"{path} cannot be read as ONNX: {error}") from error


def _members(
    make: Callable[[], nn.Module], files: Sequence[Path], notes: list[str]
) -> tuple[Callable[[], Exportable], ...]:
    return tuple(partial(_loaded, make, file, notes) for file in files or (None,))


def _loaded(make: Callable[[], nn.Module], file: Path | None, notes: list[str]) -> nn.Module:
    """With its weights in single precision, in which it is captured and proven: half and bfloat16 lose nothing."""
    module = make()
    if file is not None:
        notes += [note for note in load_weights(module, file) if note not in notes]
    return module.float()


def _copied(module: nn.Module) -> nn.Module:
    """The export sets probabilities and training flags: the caller's own module stays as it is."""
    try:
        return copy.deepcopy(module).cpu()
    except Exception as error:
        raise SpecError(
            f"the module cannot be copied ({type(error).__name__}: {error}); state a factory that builds it, or remove "
            "what hangs on it (hooks, torch.nn.utils.weight_norm)"
        ) from error


def _distinct(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files, none of them twice by content: a member that only repeats another feigns agreement."""
    seen: dict[tuple[str, str], Path] = {}
    for path in files:
        file, part = file_of(path)
        if not file.is_file():
            raise SpecError(f"there is no file {file}")
        twin = seen.setdefault((digest_of_file(file), part), path)
        if twin is not path:
            raise SpecError(f"--weights {path} is the same as {twin}: members of an ensemble must differ")
    return files
