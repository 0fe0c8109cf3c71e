"""What a network takes besides the image, bound to constants: torch by parameter, ONNX by input (`--bind`)."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from equipoise_core.constant import Constant
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ..errors import SpecError

_SHOWN = 16
"""Numbers of a constant that a contract spells out; of larger ones it has the digest."""
_FILES = (".npy", ".safetensors")


def read_constants(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE`: a number, a JSON list, a word, or a file `.npy` or `.safetensors`. Raises SpecError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name or not text:
            raise SpecError(f"--bind {pair}: expected NAME=VALUE, such as timestep=0, weights=[0.2,0.8] or c=c.npy")
        if text.endswith(_FILES):
            found[name] = _from_file(name, Path(text))
            continue
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _from_file(name: str, path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise SpecError(f"--bind {name}={path}: there is no such file")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        from safetensors.numpy import load_file

        tensors = load_file(path)
    except Exception as error:
        raise SpecError(f"--bind {name}={path}: cannot be read: {error}") from error
    if name not in tensors and len(tensors) != 1:
        raise SpecError(f"--bind {name}={path}: it holds {', '.join(sorted(tensors))}; expected {name}, or one tensor")
    return np.asarray(tensors.get(name, next(iter(tensors.values()))))


def bound(
    network: nn.Module | onnx.ModelProto, values: Mapping[str, Any], example: Tensor
) -> tuple[nn.Module | onnx.ModelProto, tuple[Constant, ...]]:
    """The network as a function of the image alone, and what it is bound to.

    A module is changed, a graph is copied. A tensor whose first axis is 1 is repeated for each image where need be.

    Args:
        example: images `[N ≥ 2, C, *S]` that it takes.

    Raises:
        SpecError: it takes nothing of that name, or not such a value.
    """
    if not values:
        return network, ()
    if isinstance(network, onnx.ModelProto):
        return _bind_inputs(network, values)
    return network, _bind_parameters(network, values, example)


# --- torch ---


def _bind_parameters(module: nn.Module, values: Mapping[str, Any], example: Tensor) -> tuple[Constant, ...]:
    parameters = inspect.signature(module.forward).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    named = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if unknown := [name for name in values if name not in named and not anything]:
        raise SpecError(f"--bind {unknown[0]}: its forward takes {', '.join(parameters)}")
    image = next((name for name in named if name not in values), None)
    if image is None:
        raise SpecError(f"--bind {', '.join(values)}: nothing that its forward takes is left for the image")
    given = {name: _argument(value, parameters.get(name)) for name, value in values.items()}
    repeated = {name for name, value in given.items() if isinstance(value, Tensor) and value.dim() and len(value) == 1}

    def place(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], each: bool) -> tuple[Any, dict[str, Any]]:
        images = args[0] if args else kwargs[image]
        constants = {
            name: value.expand(len(images), *value.shape[1:]) if each and name in repeated else value
            for name, value in given.items()
        }
        return (), {image: images, **constants}

    def as_given(part: nn.Module, args: Any, kwargs: Any) -> Any:
        return place(part, args, kwargs, False)

    def for_each(part: nn.Module, args: Any, kwargs: Any) -> Any:
        return place(part, args, kwargs, True)

    for hook in (as_given, for_each) if repeated else (as_given,):
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        if not repeated or hook is for_each or _runs(module, example):
            break
        handle.remove()
    return tuple(_stated(name, value) for name, value in given.items())


def _runs(module: nn.Module, example: Tensor) -> bool:
    flags = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            module.eval()(example)
    except Exception:  # noqa: BLE001  # whatever a foreign forward raises
        return False
    finally:
        for part, flag in flags.items():
            part.training = flag
    return True


def _argument(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Lists and arrays are tensors; a number is one where the parameter is said to be a tensor."""
    tensor = parameter is not None and "Tensor" in str(parameter.annotation)
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple, np.ndarray)) or (tensor and isinstance(value, (int, float))):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise SpecError(f"a constant holds {array.dtype}; expected numbers")
        return torch.from_numpy(np.ascontiguousarray(array, np.float32) if array.dtype == np.float64 else array.copy())
    return value


# --- ONNX ---


def _bind_inputs(proto: onnx.ModelProto, values: Mapping[str, Any]) -> tuple[onnx.ModelProto, tuple[Constant, ...]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    weights = {entry.name for entry in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    if unknown := [name for name in values if name not in inputs]:
        raise SpecError(f"--bind {unknown[0]}: the file takes {'; '.join(map(spelled_input, inputs.values()))}")
    left = [value for name, value in inputs.items() if name not in values]
    stated = []
    for name, value in values.items():
        array = _as_declared(name, value, inputs[name])
        stated.append(_stated(name, array))
        batch = [_dimensions(each)[:1] for each in (inputs[name], *left[:1])]
        if array.ndim and len(array) == 1 and len(batch) == 2 and batch[0] == batch[1] and isinstance(batch[0][0], str):
            _for_each_image(graph, name, array, left[0].name)
        else:
            graph.initializer.append(numpy_helper.from_array(array, name))
        graph.input.remove(inputs[name])
    return copy, tuple(stated)


def _as_declared(name: str, value: Any, declared: onnx.ValueInfoProto) -> NDArray[Any]:
    """Of the type and rank that the file declares; a number fills all of its fixed sizes."""
    tensor = declared.type.tensor_type
    try:
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (TypeError, ValueError) as error:
        raise SpecError(f"--bind {name}: {error}; expected {spelled_input(declared)}") from error
    sizes = _dimensions(declared) if tensor.HasField("shape") else list(array.shape)
    if not array.ndim:
        array = np.full([size if isinstance(size, int) else 1 for size in sizes], array)
    elif array.ndim == len(sizes) - 1 and (sizes[0] == 1 or isinstance(sizes[0], str)):
        array = array[None]
    fits = array.ndim == len(sizes) and all(
        isinstance(size, str) or size == given for size, given in zip(sizes, array.shape, strict=True)
    )
    if not fits:
        raise SpecError(f"--bind {name}: a value of shape {list(array.shape)}; expected {spelled_input(declared)}")
    return array


def _for_each_image(graph: onnx.GraphProto, name: str, array: NDArray[Any], image: str) -> None:
    """`[1, …]` → `[N, …]`."""
    own, shape, first, rest, whole = (f"{name} {part}" for part in ("once", "image", "images", "rest", "whole"))
    graph.initializer.append(numpy_helper.from_array(array, own))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"{name} axis"))
    graph.initializer.append(numpy_helper.from_array(np.array(array.shape[1:], np.int64), rest))
    nodes = [
        helper.make_node("Shape", [image], [shape]),
        helper.make_node("Gather", [shape, f"{name} axis"], [first], axis=0),
        helper.make_node("Concat", [first, rest], [whole], axis=0),
        helper.make_node("Expand", [own, whole], [name]),
    ]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def _dimensions(declared: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in declared.type.tensor_type.shape.dim]


def spelled_input(declared: onnx.ValueInfoProto) -> str:
    """`timestep int64 [1]`"""
    kind = str(onnx.TensorProto.DataType.Name(declared.type.tensor_type.elem_type)).lower()
    return f"{declared.name} {kind} [{', '.join(map(str, _dimensions(declared)))}]"


# --- both ---


def _stated(name: str, value: Any) -> Constant:
    array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        text = json.dumps(value)
        return Constant(name, type(value).__name__, (), hashlib.sha256(text.encode()).hexdigest(), (text,))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SpecError(f"--bind {name}: it holds NaN or infinity")
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    values = tuple(array.reshape(-1).tolist()) if array.size <= _SHOWN else ()
    return Constant(name, str(array.dtype), tuple(array.shape), hashlib.sha256(data).hexdigest(), values)
