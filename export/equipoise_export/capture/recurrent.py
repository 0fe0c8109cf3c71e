"""Takes multi-layer recurrences apart, so that the dropout between their layers becomes visible.

    y = LSTM(x; layers 1 … L, p)   ⇒   x₀ = x,   x_l = LSTM_l(dropout(x_{l−1}, p)) with no dropout before the first

which is what PyTorch computes, draws included and in that order. A recurrence that drops nothing is left as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram

from .fx import Fx, Writer

_aten = torch.ops.aten
_CELLS = (_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input)


def split_layers(program: ExportedProgram) -> None:
    """Ensures that no recurrence of the graph draws random numbers itself."""
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target in _CELLS:
            _, _, _, _, layers, p, train, *_ = node.args
            if train and p and layers > 1:
                _split(program, node)


def _split(program: ExportedProgram, node: Fx) -> None:
    x, state, weights, biases, layers, p, _, both_ways, batch_first = node.args
    write = Writer(program, node)
    directions, each = (2 if both_ways else 1), len(weights) // layers
    several = isinstance(state, (list, tuple))
    states = list(state) if several else [state]
    finals: list[list[Fx]] = [[] for _ in states]
    for layer in range(layers):
        if layer:
            x = write(_aten.dropout.default, x, p, True)
        own: list[Any] = [
            write(_aten.slice.Tensor, whole, 0, layer * directions, (layer + 1) * directions) for whole in states
        ]
        part = list(weights[layer * each : (layer + 1) * each])
        one = own if several else own[0]
        # Their shapes are stated: PyTorch's own shape inference would take N for the number that it is in the example.
        answer = x.meta["val"]
        with write.mode:
            answer = answer.new_empty((*answer.shape[:-1], node.meta["val"][0].shape[-1]))
        value = (answer, *(entry.meta["val"] for entry in own))
        result = write.stating(value, node.target, x, one, part, biases, 1, 0.0, False, both_ways, batch_first)
        x = write(operator.getitem, result, 0)
        for index, final in enumerate(finals, start=1):
            final.append(write(operator.getitem, result, index))
    for user in list(node.users):
        index = user.args[1]
        user.replace_all_uses_with(x if index == 0 else write(_aten.cat.default, finals[index - 1], 0))
        program.graph.erase_node(user)
    program.graph.erase_node(node)
