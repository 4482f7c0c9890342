"""Make every shared weight a value of the graph.

In:   the traced graph, in which modules keep their weights to themselves.
Out:  a graph in which each shared module's weights are get_attr nodes handed to it, so that
      later passes can put a view in their place.
Not:  nothing is masked; the graph computes what it did. Private modules stay calls: each
      path will have its own.
"""

from __future__ import annotations

from torch import fx, nn

from dcil_dsl.masking.apply import apply_layer


def expose_weights(graph: fx.Graph, model: nn.Module, private: frozenset[str]) -> fx.Graph:
    """Hand shared modules their weights.

        conv1 = self.conv1(x)     ==>     conv1_weight = self.conv1.weight
                                          conv1 = apply_layer(self.conv1, {weight: ...}, x)

    A weight used twice, or by two modules, is one node: what is done to it is done at every
    end of a tie.
    """
    exposed = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    weights: dict[int, fx.Node] = {}

    def weight_node(target: str, parameter: nn.Parameter) -> fx.Node:
        if id(parameter) not in weights:
            node = exposed.create_node("get_attr", target, name=target.replace(".", "_"))
            weights[id(parameter)] = node
        return weights[id(parameter)]

    for node in graph.nodes:
        if node.op == "get_attr":
            value = _attribute(model, node.target)
            if isinstance(value, nn.Parameter):
                env[node] = weight_node(node.target, value)
                continue
        if node.op != "call_module" or node.target in private:
            env[node] = exposed.node_copy(node, env.__getitem__)
            continue
        module = model.get_submodule(node.target)
        owned = dict(module.named_parameters(remove_duplicate=False))
        # Running statistics make a call more than a function of its inputs.
        stateful = any(True for _ in module.buffers())
        if not owned:
            env[node] = exposed.node_copy(node, env.__getitem__)
            env[node].meta["stateful"] = stateful
            continue
        handed = {name: weight_node(f"{node.target}.{name}", p) for name, p in owned.items()}
        args = fx.map_arg(node.args, env.__getitem__)
        kwargs = fx.map_arg(node.kwargs, env.__getitem__)
        owner = exposed.create_node("get_attr", node.target, name=f"{node.name}_layer")
        call = exposed.create_node(
            "call_function", apply_layer, (owner, handed, *args), dict(kwargs), name=node.name
        )
        call.meta["stateful"] = stateful
        call.meta["layer"] = node.target
        env[node] = call
    return exposed


def _attribute(model: nn.Module, target: str):
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)
