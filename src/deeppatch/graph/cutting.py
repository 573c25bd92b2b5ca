"""Cut a traced network in two at one of its modules."""

from __future__ import annotations

from torch import fx


def cut(network: fx.GraphModule, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a graph at the module called `name`, which runs once, into what comes before it and what comes after.

    `before(x)` returns a tuple: what the module reads, then all else that is computed before it and read after it.
    `after(y, *else)` goes on from the module's output. Both share their modules with `network`.
    """
    nodes = list(network.graph.nodes)
    index = next(i for i, node in enumerate(nodes) if node.op == "call_module" and node.target == name)
    early, gate, late = nodes[:index], nodes[index], nodes[index + 1 :]
    constants = [node for node in early if node.op == "get_attr"]  # read anew rather than handed over
    crossing = [node for node in early if node not in constants and not node.users.keys().isdisjoint(late)]

    before, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in early:
        copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in (gate.args[0], *crossing)))

    after = fx.Graph()
    copies = {node: after.placeholder(node.name) for node in (gate, *crossing)}
    for node in (*constants, *late):
        copies[node] = after.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, before), fx.GraphModule(network, after)
