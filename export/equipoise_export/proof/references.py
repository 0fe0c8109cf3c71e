"""Networks under given masks: the side of the proof that the compiler is measured against.

A network here is a function (image `[1, C, *S]`, packed mask `[B]`) → logits, one image and one sample at a time, so
that nothing can be mixed up in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import torch
from equipoise_core.contract import Contract, SiteKind
from equipoise_core.masks import mask_layout, unpack_masks
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ProofRefused
from ..graph.marker import DOMAIN, Call
from ..graph.nodes import IMAGE, without_markers
from ..graph.randomness import draws, sampling
from ..graph.session import session
from ..graph.storage import store

Array = NDArray[Any]
MISSED = "Report this network: the exporter missed or mistook a stochastic operation."


class Network(Protocol):
    """What the sampler is to equal."""

    def __call__(self, contract: Contract, image: Array, packed: Array) -> Array:
        """Logits `[K, *S]` of one image `[1, C, *S]` under one sample's packed masks `[B]`."""

    def ready(self) -> Any:
        """A context in which the network answers."""


class TorchNetwork:
    """The module that was handed in, untouched, with only its random numbers replaced.

    PyTorch itself reduces every kind of dropout to one draw (`bernoulli_`, `rand`, …) of the noise's own shape, and a
    dispatch mode hands out mask bits there, in the order of the calls. Scaling, broadcasting and everything else stay
    PyTorch's. So neither the capture nor any pass is trusted.

    Args:
        active: the modules that are in training mode when the network is sampled.
        calls: per site, which stochastic call of a forward pass it is.
        original: image → the same output, but probabilities where the network answers with them; None: the module.
    """

    def __init__(
        self, module: nn.Module, active: tuple[str, ...], calls: Sequence[Call], original: nn.Module | None = None
    ) -> None:
        self.module = module
        self.original = original or module
        self.active = active
        self.calls = calls

    @contextmanager
    def ready(self) -> Iterator[None]:
        with sampling(self.module, self.active), torch.no_grad():
            yield

    def evaluated(self, image: Array, ones: bool = False) -> Array:
        """Answers `[N, K(, *S)]` to images `[N, C, *S]` in evaluation mode, as the network gives them.

        Nothing is dropped by what is random there as well; `ones` and errors as for `undropped`.
        """
        with sampling(self.original, ()), torch.no_grad(), DropoutOff(), ExpectedMasks(ones):
            return self.original(torch.from_numpy(image)).numpy()  # type: ignore[no-any-return]

    def undropped(self, image: Array, ones: bool = False) -> Array:
        """Answers `[N, K(, *S)]` to images `[N, C, *S]` with nothing dropped.

        Args:
            ones: a mask that the network's own code draws keeps everything; else it is its expectation, which
                scaling by 1/(1 − p) makes 1.

        Raises:
            UnknownNoise: its own code draws other noise than masks.
        """
        modules = (self.module.get_submodule(name) for name in self.active)
        active = tuple(name for name, part in zip(self.active, modules, strict=True) if not _only_noise(part))
        with sampling(self.module, active), torch.no_grad(), DropoutOff(), ExpectedMasks(ones):
            return self.module(torch.from_numpy(image)).numpy()  # type: ignore[no-any-return]

    def __call__(self, contract: Contract, image: Array, packed: Array) -> Array:
        layout = mask_layout(contract, image.shape[2:])
        forced = ForcedMasks(contract, self.calls, unpack_masks(layout, packed[None]))
        with forced:
            logits = self.module(torch.from_numpy(image))
        missed = [site.name for call, (site, _, _) in forced.keeps.items() if call not in forced.met]
        if missed:
            raise ProofRefused(
                f"the network draws {forced.calls} times, too few for the graph's {len(contract.sites)} sites",
                missed[0],
                MISSED,
            )
        return logits[0].numpy()  # type: ignore[no-any-return]


def _only_noise(part: nn.Module) -> bool:
    """Whether a module has nothing of its own to compute (Dropout, DropPath): in evaluation it is the identity."""
    return not any(True for _ in (*part.children(), *part.parameters(), *part.buffers()))


class UnknownNoise(Exception):
    """Of this noise it is not known what it is where nothing is dropped."""


class DropoutOff(TorchFunctionMode):
    """Whatever PyTorch calls dropout does nothing, whatever the training flag says."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        if "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        if "training" in kwargs:
            kwargs["training"] = False
        return func(*args, **kwargs)


class ExpectedMasks(TorchDispatchMode):
    """Where random numbers are drawn all the same, masks are their expectation, or 1."""

    def __init__(self, ones: bool) -> None:
        super().__init__()
        self.ones = ones

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not draws(func, args, kwargs):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name not in ("bernoulli", "bernoulli_"):
            raise UnknownNoise(name)
        p = args[0] if func._overloadname == "default" else args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        drawn = func(*args, **kwargs)
        return drawn.fill_(1.0) if self.ones else drawn.copy_(torch.as_tensor(p, dtype=drawn.dtype).expand_as(drawn))


class ForcedMasks(TorchDispatchMode):
    """Hands out given bits wherever PyTorch draws random numbers, in the order of the calls.

    Args:
        calls: per site, which stochastic call of a forward pass it is. Other calls (the noise of an output that was
            not chosen) draw as they like: if they matter after all, network and sampler differ.
    """

    def __init__(self, contract: Contract, calls: Sequence[Call], keeps: Sequence[Array]) -> None:
        super().__init__()
        self.keeps = {
            call.index: (site, call.inverted, keep)
            for call, site, keep in zip(calls, contract.sites, keeps, strict=True)
        }
        self.calls = 0
        self.met: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not draws(func, args, kwargs):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in ("bernoulli", "bernoulli_"):
            p = args[0] if func._overloadname == "default" else args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            if isinstance(p, Tensor):
                p = p.reshape(-1)[0].item()
            if p in (0.0, 1.0):  # no decision in it, hence no site
                return func(*args, **kwargs)
            noise = self._next(args[0], name, p)
            if noise is None:
                return func(*args, **kwargs)
            return args[0].copy_(noise) if name == "bernoulli_" else noise
        drawn = func(*args, **kwargs)
        noise = self._next(drawn, name, None)
        if noise is None:
            return drawn
        low, high = (*args[1:3], *(0.0, 1.0)[len(args) - 1 :]) if name == "uniform_" else (0.0, 1.0)
        return drawn.copy_(low + noise * ((high - low) * (1.0 - 2.0**-24)))

    def _next(self, like: Tensor, name: str, one: float | None) -> Tensor | None:
        """What this call draws, in the shape of PyTorch's own noise: 1 with probability `one`, where that is known.

        None for a call that is no site.
        """
        call, self.calls = self.calls, self.calls + 1
        if call not in self.keeps:
            return None
        self.met.add(call)
        site, inverted, keep = self.keeps[call]
        if name not in ("bernoulli", "bernoulli_", "rand", "rand_like", "uniform_"):
            raise ProofRefused(f"`{name}` draws random numbers that no mask stands for", site.name, MISSED)
        p = None if one is None else one if inverted else 1.0 - one
        if keep.size != like.numel() or (p is not None and abs(p - site.p) > 1e-6):
            drawn = "" if p is None else f" with p = {p:g}"
            raise ProofRefused(
                f"the network draws {like.numel()} units{drawn} where the graph has {keep.size} with p = {site.p:g}",
                site.name,
                MISSED,
            )
        drawn_as = 1.0 - keep if inverted else keep
        return torch.from_numpy(np.asarray(drawn_as, np.float32)).reshape(like.shape).to(like.dtype)


class OnnxNetwork:
    """A marked graph run as it is, every marker a plain product with the mask that is fed: the proof's other side.

    Which units a mask has follows from the site's kind and from the tensor's shape when it runs, not from the marker.
    """

    def __init__(self, marked: ir.Model) -> None:
        proto, weights = store(marked)
        shapes = {}
        for node in list(proto.graph.node):
            if node.domain == DOMAIN:
                site = next(entry.s.decode() for entry in node.attribute if entry.name == "site")
                shapes[site] = f"shape of {node.output[0]}"
                proto.graph.node.append(helper.make_node("Shape", [node.input[0]], [shapes[site]]))
                proto.graph.output.append(helper.make_tensor_value_info(shapes[site], onnx.TensorProto.INT64, None))
                node.op_type, node.domain = "Mul", ""
                node.input.append(f"mask {site}")
                del node.attribute[:]
                proto.graph.input.append(helper.make_tensor_value_info(f"mask {site}", onnx.TensorProto.FLOAT, None))
        without_markers(proto)
        self.session = session(proto, weights=weights)
        self.answer = proto.graph.output[0].name
        self.shape_names = shapes
        self.shapes: dict[tuple[int, ...], dict[str, list[int]]] = {}

    def ready(self) -> AbstractContextManager[None]:
        return nullcontext()

    def __call__(self, contract: Contract, image: Array, packed: Array) -> Array:
        layout = mask_layout(contract, image.shape[2:])
        feeds = {IMAGE: image}
        for site, keep in zip(layout.sites, unpack_masks(layout, packed[None]), strict=True):
            shape = self._shapes(image)[site.name]
            if site.kind is SiteKind.CHANNEL:
                shape = [*shape[:2], *(1 for _ in shape[2:])]
            if prod(shape) != keep.size:
                raise ProofRefused(f"a {site.kind.value} mask for {shape} has {keep.size} units", site.name, MISSED)
            feeds[f"mask {site.name}"] = (keep.reshape(shape) / (1.0 - site.p)).astype(np.float32)
        return self.session.run([self.answer], feeds)[0][0]  # type: ignore[no-any-return]

    def undropped(self, image: Array) -> Array:
        """Logits `[N, K, *S]` of images `[N, C, *S]` with nothing dropped and nothing scaled."""
        return self.session.run([self.answer], self._unmasked(image))[0]  # type: ignore[no-any-return]

    def _unmasked(self, image: Array) -> dict[str, Array]:
        return {IMAGE: image, **{f"mask {site}": np.ones(1, np.float32) for site in self.shape_names}}

    def _shapes(self, image: Array) -> dict[str, list[int]]:
        """Shape of every masked tensor for images of this size, from a run with nothing masked."""
        if image.shape not in self.shapes:
            found = self.session.run(list(self.shape_names.values()), self._unmasked(image))
            self.shapes[image.shape] = {
                site: list(map(int, f)) for site, f in zip(self.shape_names, found, strict=True)
            }
        return self.shapes[image.shape]
