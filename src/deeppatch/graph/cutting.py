"""Cut a traced network in two at one of its modules."""

from __future__ import annotations

from torch import fx


def cut(network: fx.GraphModule, name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a graph at one of its modules into the part before and the part after it.

    Args:
        network: A traced network.
        name: The name of a module that runs exactly once.

    Returns:
        `before` and `after`, which share their modules with `network`. `before(x)` returns a tuple: the module's
        input, then all other values that are computed before the module and needed after it. `after(y, *others)`
        continues from the module's output y.
    """
    nodes = list(network.graph.nodes)
    index = next(i for i, node in enumerate(nodes) if node.op == "call_module" and node.target == name)
    nodes_before, module, nodes_after = nodes[:index], nodes[index], nodes[index + 1 :]
    constants = [node for node in nodes_before if node.op == "get_attr"]  # read again in the second part
    crossing = [
        node for node in nodes_before if node not in constants and not node.users.keys().isdisjoint(nodes_after)
    ]

    before, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes_before:
        copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in (module.args[0], *crossing)))

    after = fx.Graph()
    copies = {node: after.placeholder(node.name) for node in (module, *crossing)}
    for node in (*constants, *nodes_after):
        copies[node] = after.node_copy(node, copies.__getitem__)
    return fx.GraphModule(network, before), fx.GraphModule(network, after)
