"""Propagate an edit of one channel through a network: as one channel while channels stay separate, then as a whole."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deeppatch.graph.affine import Affine
from deeppatch.graph.network_graph import Graph, Values
from deeppatch.graph.operations import Operation, concatenated, is_crop, is_spatial_mean, operation, padding


@dataclass(frozen=True)
class ChannelDelta:
    """The output of a step that differs from the unedited output in one channel, where it is `values` (N, 1, ...)."""

    channel: int
    values: Tensor

    @property
    def index(self) -> slice:
        """The channel as a slice, so that indexing keeps the dimension."""
        return slice(self.channel, self.channel + 1)

    def within(self, whole: Tensor) -> Tensor:
        """Return a copy of the unedited output (N, C, ...) with the edited channel in it."""
        edited = whole.clone()
        edited[:, self.index] = self.values
        return edited


class Unchanged:
    """Marks a step whose output does not depend on the edited channel."""


State = ChannelDelta | Tensor | Unchanged | tuple[Any, ...]
States = dict[fx.Node, State]


class Downstream:
    """The steps after one convolution, prepared to run for many edits of its output."""

    def __init__(self, graph: Graph, start: fx.Node) -> None:
        self.graph = graph
        self.start = start
        self.nodes = graph.after(start)
        self.operations = {node: operation(graph.module, node) for node in (start, *self.nodes)}
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            last |= dict.fromkeys(node.all_input_nodes, node)
        # the inputs of each step that no later step reads
        self.last_used = {node: [source for source, user in last.items() if user is node] for node in self.nodes}
        self.overwritten = {node: self._overwritable_input(node) for node in self.nodes}

    def run(self, edit: ChannelDelta, base: Values) -> Tensor:
        """Return the logits (N, classes) of the edited network; `base` has the unedited output of every step."""
        states: States = {self.start: edit}
        for node in self.nodes:
            states[node] = self._step(node, states, base)
            for source in self.last_used[node]:
                states.pop(source, None)
        logits = states.get(self.graph.output, Unchanged())
        assert not isinstance(logits, tuple)
        if isinstance(logits, Unchanged):
            return base[self.graph.output]
        return logits.within(base[self.graph.output]) if isinstance(logits, ChannelDelta) else logits

    def _step(self, node: fx.Node, states: States, base: Values) -> State:
        reached = [
            source for source in node.all_input_nodes if not isinstance(states.get(source, Unchanged()), Unchanged)
        ]
        if not reached:
            return Unchanged()
        if any(isinstance(states[source], (ChannelDelta, tuple)) for source in reached):
            kind = self.operations[node]
            single_channel = RULES[kind](self, node, states, base) if kind else None
            if single_channel is not None:
                return single_channel
        for source in reached:
            state = states[source]
            if isinstance(state, ChannelDelta):
                states[source] = state.within(base[source])
        values = {source: states[source] if source in reached else base[source] for source in node.all_input_nodes}
        if self.overwritten[node] in reached:
            return self._in_place(node, values)
        return self.graph.call(node, values)

    def _overwritable_input(self, node: fx.Node) -> fx.Node | None:
        """Return the input that a ReLU or a sum may overwrite, because no other step reads it, or None."""
        if not (self._is_relu(node) or self.operations[node] is Operation.SUM):
            return None
        producers = (Operation.SUM, Operation.CONVOLUTION)
        candidates = [source for source in self.last_used[node] if self.operations.get(source) in producers]
        supported = self._is_relu(node) or (len(node.all_input_nodes) == 2 and not node.kwargs)
        return candidates[0] if candidates and supported else None

    def _is_relu(self, node: fx.Node) -> bool:
        return node.target is F.relu or (node.op == "call_module" and type(self.graph.layer(node)) is nn.ReLU)

    def _in_place(self, node: fx.Node, values: Values) -> Tensor:
        target = values[self.overwritten[node]]  # type: ignore[index]
        if self._is_relu(node):
            return torch.relu_(target)
        (other,) = [values[source] for source in node.all_input_nodes if source is not self.overwritten[node]]
        return target.add_(other) if target.shape == other.shape else target + other


Rule = Callable[[Downstream, fx.Node, States, Values], State | None]


def _channelwise(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    """An operation that applies the same function to each channel separately."""
    source = node.all_input_nodes[0]
    edit = states.get(source)
    if not isinstance(edit, ChannelDelta) or len(node.all_input_nodes) > 1:
        return None
    return ChannelDelta(edit.channel, downstream.graph.call(node, {source: edit.values}))


def _norm(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    edit, norm = states[node.all_input_nodes[0]], downstream.graph.layer(node)
    if not isinstance(edit, ChannelDelta):
        return None
    if isinstance(norm, Affine):
        values = torch.addcmul(norm.shift[edit.index], edit.values, norm.scale[edit.index])
        return ChannelDelta(edit.channel, values.to(edit.values.dtype))
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return None
    weight, bias = (None if value is None else value[edit.index] for value in (norm.weight, norm.bias))
    mean, var = norm.running_mean[edit.index], norm.running_var[edit.index]
    return ChannelDelta(edit.channel, F.batch_norm(edit.values, mean, var, weight, bias, eps=norm.eps))


def _convolve(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    """Convolution is linear: add the convolution of the channel's change with one input channel of the weight."""
    source = node.all_input_nodes[0]
    edit, conv = states[source], downstream.graph.layer(node)
    assert isinstance(conv, nn.Conv2d)
    if not isinstance(edit, ChannelDelta) or conv.padding_mode != "zeros":
        return None
    settings: Any = (conv.stride, conv.padding, conv.dilation)
    if conv.groups == 1:
        change = edit.values - base[source][:, edit.index]
        return F.conv2d(change, conv.weight[:, edit.index], None, *settings).add_(base[node])
    if conv.groups == conv.in_channels == conv.out_channels:
        bias = None if conv.bias is None else conv.bias[edit.index]
        return ChannelDelta(edit.channel, F.conv2d(edit.values, conv.weight[edit.index], bias, *settings))
    return None


def _linear(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    source = node.all_input_nodes[0]
    edit, layer = states[source], downstream.graph.layer(node)
    if not isinstance(edit, ChannelDelta) or edit.values.ndim != 2:
        return None
    assert isinstance(layer, nn.Linear)
    return base[node] + (edit.values - base[source][:, edit.index]) * layer.weight[:, edit.channel]


def _add(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    one, other = node.args[0], node.args[1]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or node.kwargs:
        return None
    if base[one].shape != base[other].shape:
        return None
    a, b = states.get(one, Unchanged()), states.get(other, Unchanged())
    edits = [state for state in (a, b) if isinstance(state, ChannelDelta)]
    if any(isinstance(state, tuple) for state in (a, b)) or len({edit.channel for edit in edits}) != 1:
        return None
    index = edits[0].index
    if isinstance(a, Tensor) or isinstance(b, Tensor):  # full tensor plus one channel
        whole, edited = (a, other) if isinstance(a, Tensor) else (b, one)
        assert isinstance(whole, Tensor)
        corrected = whole[:, index] + edits[0].values
        source = one if isinstance(a, Tensor) else other
        total = whole.add_(base[edited]) if downstream.overwritten[node] is source else whole + base[edited]
        total[:, index] = corrected
        return total
    parts = [
        state.values if isinstance(state, ChannelDelta) else base[source][:, index]
        for state, source in ((a, one), (b, other))
    ]
    return ChannelDelta(edits[0].channel, parts[0] + parts[1])


def _flatten(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    source = node.all_input_nodes[0]
    edit = states[source]
    if not isinstance(edit, ChannelDelta) or base[source].shape[2:].numel() != 1 or base[node].ndim != 2:
        return None
    return ChannelDelta(edit.channel, edit.values.flatten(1))


def _mean(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    of_maps = is_spatial_mean(node) and base[node.all_input_nodes[0]].ndim == 4
    return _channelwise(downstream, node, states, base) if of_maps else None


def _concatenate(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    parts, dim = concatenated(node)
    if dim not in (1, 1 - base[node].ndim) or not parts:
        return None
    reached = [
        position for position, part in enumerate(parts) if not isinstance(states.get(part, Unchanged()), Unchanged)
    ]
    edit = states[parts[reached[0]]]
    if len(reached) != 1 or not isinstance(edit, ChannelDelta):
        return None
    before = sum(base[part].shape[1] for part in parts[: reached[0]])
    return ChannelDelta(before + edit.channel, edit.values)


def _chunk(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    edit = states[node.all_input_nodes[0]]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    only_items = all(user.target is operator.getitem for user in node.users)
    if not isinstance(edit, ChannelDelta) or dim != 1 or not only_items:
        return None
    parts: list[State] = []
    start = 0
    for part in base[node]:
        inside = start <= edit.channel < start + part.shape[1]
        parts.append(ChannelDelta(edit.channel - start, edit.values) if inside else Unchanged())
        start += part.shape[1]
    return tuple(parts)


def _item(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    state, index = states[node.all_input_nodes[0]], cast(Any, node.args[1])
    if isinstance(state, tuple) and isinstance(index, int):
        return state[index]
    if isinstance(state, ChannelDelta) and is_crop(node):
        return ChannelDelta(state.channel, state.values[index])
    return None


def _pad(downstream: Downstream, node: fx.Node, states: States, base: Values) -> State | None:
    edit, widths = states[node.all_input_nodes[0]], padding(node)
    if len(widths) <= 4 and base[node].ndim == 4:
        return _channelwise(downstream, node, states, base)
    zeros = len(node.args) <= 2 and node.kwargs.keys() <= {"pad"}
    if not isinstance(edit, ChannelDelta) or len(widths) != 6 or not zeros:
        return None
    return ChannelDelta(edit.channel + int(widths[4]), F.pad(edit.values, list(widths[:4])))


RULES: dict[Operation, Rule] = {
    Operation.CHANNELWISE: _channelwise, Operation.NORMALISATION: _norm, Operation.CONVOLUTION: _convolve,
    Operation.LINEAR: _linear, Operation.SUM: _add, Operation.FLATTEN: _flatten, Operation.MEAN: _mean,
    Operation.CONCATENATION: _concatenate, Operation.CHUNKS: _chunk, Operation.ITEM: _item, Operation.PADDING: _pad,
}  # fmt: skip
