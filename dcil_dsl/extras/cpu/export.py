"""A network to a folder of plain data, and the proof that the folder computes the same.

In:   any nn.Module that torch.export traces, the inputs of one call.
Out:  program.json and weights.safetensors; Exported, what was written.
Not:  nothing is trained, and the model is not changed.

    model ==> graph ==> fold norms ==> fuse ==> program ==> compare with the model ==> write
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Origin
from dcil_dsl.extras.cpu.front import (
    CONSTANT,
    LAYERS,
    Graph,
    aten,
    build_graph,
    original_name,
)
from dcil_dsl.extras.cpu.functions import Inexpressible, encode, encode_keywords, name_of
from dcil_dsl.extras.cpu.network import CpuNetwork, read_network
from dcil_dsl.extras.cpu.program import (
    DTYPES,
    FORMAT,
    PROGRAM,
    Activation,
    CpuProgram,
    ProgramCall,
    ProgramInput,
    ProgramLayer,
    parse_program,
)
from dcil_dsl.extras.cpu.storage import WEIGHTS, StoredTensor, compress, digest_of, write_tensors
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.digest import digest
from dcil_dsl.model.inputs import Inputs, resized
from dcil_dsl.training.files import cannot_write, write_atomically

TOLERANCE = 1e-5  # in float32, relative to 1 + the largest output
LOOSE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-10}
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was written.

    difference  the largest |exported - original| / (1 + max |original|) on the example, with the
                weights in their own type
    rounding    the same between the network with the stored weights and with its own; 0 where the
                weights are stored in their own type
    num_bytes   of the tensors; dense: in their own type without compression
    """

    folder: Path
    program: CpuProgram
    difference: float
    rounding: float
    num_bytes: int
    num_bytes_dense: int


@dataclass
class _Fused:
    """A layer with the nodes that become part of it; `last` gives its value."""

    node: fx.Node
    last: fx.Node
    add: fx.Node | None = None
    activation: Activation | None = None


def write(
    model: nn.Module,
    example_inputs: Inputs | tuple[Any, ...] | Mapping[str, Any] | Tensor,
    folder: str | Path,
    weights: str = "float32",
    origin: Origin | None = None,
) -> Exported:
    """Export a network for `load_cpu`. Nothing is written where the two compute different numbers.

    weights  the type that the weights of layers are stored in: `float32` or `bfloat16`
    origin   the promises of the network, for `dcil verify`

    InputError where the model cannot be traced, or uses a function that a program cannot name.
    """
    if weights not in STORED:
        raise InputError(f"weights are stored as {' or '.join(STORED)}, not as {weights}")
    inputs = Inputs.of(example_inputs)
    program, tensors = build_program(model, inputs)
    names = _layer_weights(program)
    exact = {name: compress(tensor) for name, tensor in tensors.items()}
    difference = _compare(model, program, exact, inputs)
    stored, rounding = exact, 0.0
    if weights != "float32":
        stored = {
            name: compress(tensor, STORED[weights])
            if name in names and tensor.dtype == torch.float32
            else exact[name]
            for name, tensor in tensors.items()
        }
        rounding = _distance(_run(program, exact, inputs), _run(program, stored, inputs))
    folder = Path(folder)
    program = write_program(program, stored, folder, origin)
    return Exported(
        folder,
        program,
        difference,
        rounding,
        sum(entry.num_bytes for entry in stored.values()),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    )


def write_program(
    program: CpuProgram,
    stored: Mapping[str, StoredTensor],
    folder: Path,
    origin: Origin | None = None,
) -> CpuProgram:
    """Write a program with its tensors, whose digest it gets. Nothing is compared with a model."""
    program = program.model_copy(update={"digest": digest_of(stored)})
    text = program.model_dump_json(indent=1, exclude_defaults=True)
    parse_program(text, PROGRAM)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if origin is not None:
        origin = origin.model_copy(update={"digest": digest(original_tensors(stored))})
    write_tensors(folder / WEIGHTS, stored, origin)
    write_atomically(folder / PROGRAM, lambda draft: _write_text(draft, text))
    return program


def read(folder: str | Path) -> CpuNetwork:
    """The network of a folder."""
    return CpuNetwork(*read_network(folder))


def verify(folder: str | Path) -> str:
    """Check a folder as a whole and count its zeros: a table. InputError where it is damaged."""
    from dcil_dsl.extras.cpu.report import show_network

    return show_network(CpuNetwork(*read_network(folder)))


def original_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors of a folder under the original's names, without computed constants.

    A folded batch norm scales the weight of its layer and keeps its zeros.
    """
    return {
        original_name(name): entry.dense()
        for name, entry in stored.items()
        if not name.startswith(CONSTANT)
    }


def _write_text(draft: Path, text: str) -> None:
    draft.write_text(text + "\n", encoding="utf-8")


def build_program(model: nn.Module, inputs: Inputs) -> tuple[CpuProgram, dict[str, Tensor]]:
    """The program of a model and the tensors that it names, dense."""
    found = build_graph(model, inputs)
    fused = _fuse(found)
    inside = {
        node for group in fused.values() for node in _between(group) if node is not group.last
    }
    results = _results(found.graph)
    used: dict[str, Tensor] = {}

    def tensor(node: fx.Node) -> str:
        name = found.places[node]
        used[name] = found.tensors[name]
        return name

    def form(value: object) -> object:
        if not isinstance(value, fx.Node):
            return None
        return {"tensor": tensor(value)} if value in found.places else {"value": _name(value)}

    operations: list[ProgramLayer | ProgramCall] = []
    for node in found.graph.nodes:
        if node.op != "call_function" or node in inside or node.target is operator.getitem:
            continue
        if node in fused:
            operations.append(_layer(found, fused[node], tensor))
        else:
            operations.append(_call(node, results.get(node), form))
    constants: dict[str, str] = {}
    for node in _values_read(found, operations):
        if node in found.places:
            constants[_name(node)] = tensor(node)
    program = CpuProgram(
        format=FORMAT,
        model=found.model[:300],
        inputs=[_input(name, node) for name, node in found.inputs],
        constants=constants,
        operations=operations,
        outputs=_structure(found.outputs),
        digest="",
    )
    return program, used


def _name(node: fx.Node) -> str:
    return str(node.name)


def _input(name: str, node: fx.Node) -> ProgramInput:
    value = node.meta["val"]
    shape = [size if isinstance(size, int) else None for size in value.shape]
    if any(size is None for size in shape[1:]):
        raise InputError(f"the input `{name}` has a size other than the batch that may change")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"the input `{name}` is {dtype}, which the CPU export does not support")
    return ProgramInput.model_validate({"name": _name(node), "shape": shape, "dtype": dtype})


def _results(graph: fx.Graph) -> dict[fx.Node, dict[int, fx.Node]]:
    """The nodes that take one result of a node with several, by the number of the result."""
    found: dict[fx.Node, dict[int, fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is operator.getitem:
            found.setdefault(node.args[0], {})[node.args[1]] = node
    return found


def _call(node: fx.Node, results: dict[int, fx.Node] | None, form: Any) -> ProgramCall:
    function = name_of(node.target)
    if function is None:
        raise InputError(
            f"the network calls `{node.target}` ({_where(node)}), which the CPU export does "
            "not support",
            help="the README of extras/cpu says how to add a function",
        )
    value = node.meta.get("val")
    try:
        args = [encode(argument, form) for argument in node.args]
        kwargs = encode_keywords(node.kwargs, form)
    except Inexpressible as error:
        raise InputError(f"`{function}` ({_where(node)}) has {error}") from None
    outputs: list[str | None] = [_name(node)]
    if isinstance(value, (list, tuple)):
        taken = results or {}
        outputs = [_name(taken[i]) if i in taken else None for i in range(len(value))]
    return ProgramCall(op="torch", function=function, args=args, kwargs=kwargs, outputs=outputs)


def _where(node: fx.Node) -> str:
    """The module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return f"in `{paths[-1]}`" if paths else "in the forward"


def _values_read(found: Graph, operations: list[ProgramLayer | ProgramCall]) -> Iterator[fx.Node]:
    """The nodes whose values are read by name."""
    nodes = {_name(node): node for node in found.graph.nodes}
    names = {name for operation in operations for name in operation.values()}
    for leaf in pytree.tree_leaves(found.outputs):
        if isinstance(leaf, fx.Node):
            names.add(_name(leaf))
    return (nodes[name] for name in sorted(names))


# ---- layers with what follows them


def _fuse(found: Graph) -> dict[fx.Node, _Fused]:
    """Layers with their residual sum and activation, by the last node of each."""
    returned = {leaf for leaf in pytree.tree_leaves(found.outputs) if isinstance(leaf, fx.Node)}
    claimed: set[fx.Node] = set()
    fused: dict[fx.Node, _Fused] = {}
    for node in reversed(list(found.graph.nodes)):  # of two layers that meet, the later one adds
        if node.op != "call_function" or node.target not in LAYERS or not _is_layer(found, node):
            continue
        group = _Fused(node, node)
        while len(group.last.users) == 1 and group.last not in returned:
            user = next(iter(group.last.users))
            if user in claimed or not _take(found, group, user):
                break
            group.last = user
            claimed.add(user)
            if group.activation is not None:
                break
        fused[group.last] = group
    return fused


def _is_layer(found: Graph, node: fx.Node) -> bool:
    weight = found.tensor_of(node.args[1])
    bias = node.args[2] if len(node.args) > 2 else None
    rank = 4 if node.target == aten.conv2d.default else 2
    if weight is None or not weight.is_floating_point() or weight.dim() != rank or node.kwargs:
        return False
    numbers = pytree.tree_leaves(node.args[3:])
    plain = all(isinstance(number, int) and number < 2**15 for number in numbers)
    return plain and (bias is None or found.tensor_of(bias) is not None)


def _take(found: Graph, group: _Fused, user: fx.Node) -> bool:
    """Make a node part of a group, where it may be."""
    activation = _activation(user)
    linear = group.node.target == aten.linear.default
    if activation is not None and not (linear and group.add is not None):
        group.activation = activation
        return True
    if user.target != aten.add.Tensor or group.add is not None or user.kwargs:
        return False
    others = [given for given in user.args if given is not group.last]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0] in found.places:
        return False
    mine, other = (node.meta.get("val") for node in (group.last, others[0]))
    if not isinstance(mine, Tensor) or not isinstance(other, Tensor):
        return False
    if str(mine.shape) != str(other.shape) or mine.dtype != other.dtype:
        return False
    group.add = others[0]
    return True


def _activation(node: fx.Node) -> Activation | None:
    if node.op != "call_function":
        return None
    if node.target == aten.relu.default:
        return "relu"
    if node.target == aten.relu6.default:
        return "relu6"
    if node.target == aten.hardtanh.default and tuple(node.args[1:]) == (0.0, 6.0):
        return "relu6"
    if node.target == aten.gelu.default and node.kwargs.get("approximate", "none") == "none":
        return "gelu"
    return None


def _between(group: _Fused) -> Iterator[fx.Node]:
    node = group.node
    while node is not group.last:
        yield node
        node = next(iter(node.users))


def _layer(found: Graph, group: _Fused, tensor: Any) -> ProgramLayer:
    node, args = group.node, cast(tuple[Any, ...], group.node.args)
    weight, bias = args[1], args[2] if len(args) > 2 else None
    settings: dict[str, Any] = {}
    if node.target == aten.conv2d.default:
        for key, given in zip(("stride", "padding", "dilation"), args[3:6]):
            pair = list(given)
            settings[key] = tuple(pair * 2 if len(pair) == 1 else pair)
        if len(args) > 6:
            settings["groups"] = args[6]
    path = found.places[weight]
    return ProgramLayer(
        op="linear" if node.target == aten.linear.default else "conv2d",
        layer=original_name(path).removesuffix(".weight")[:300],
        input=_name(args[0]),
        output=_name(group.last),
        weight=tensor(weight),
        bias=None if bias is None else tensor(bias),
        add=None if group.add is None else _name(group.add),
        activation=group.activation,
        **settings,
    )


# ---- outputs


def _structure(value: object) -> dict[str, Any]:
    """The structure of the outputs as JSON."""
    match value:
        case fx.Node():
            return {"value": _name(value)}
        case None | bool() | int() | float() | str():
            return {"constant": value}
        case list():
            return {"list": [_structure(part) for part in value]}
        case tuple():
            return {"tuple": [_structure(part) for part in value]}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {"dict": {str(key): _structure(part) for key, part in value.items()}}
    if dataclasses.is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {"dict": {key: _structure(part) for key, part in parts.items()}}
    raise InputError(f"the network returns a {type(value).__name__}, which a program cannot")


# ---- proof


def _layer_weights(program: CpuProgram) -> set[str]:
    return {op.weight for op in program.operations if isinstance(op, ProgramLayer)}


def _run(program: CpuProgram, stored: Mapping[str, StoredTensor], inputs: Inputs) -> list[Tensor]:
    network = CpuNetwork(program, stored, "torch")
    by_name = [one for one in inputs.args if isinstance(one, Tensor)]
    given = [*by_name, *(t for t in inputs.kwargs.values() if isinstance(t, Tensor))]
    return _tensors(network(*given))


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@torch.no_grad()
def _compare(
    model: nn.Module, program: CpuProgram, stored: Mapping[str, StoredTensor], inputs: Inputs
) -> float:
    """The difference of program and model on the example. InputError where it is too large."""
    original = copy_module(model).cpu().eval()
    inputs = inputs.to(torch.device("cpu"))
    worst = 0.0
    free = any(size is None for given in program.inputs for size in given.shape[:1])
    for example in [inputs, *([resized(inputs, 3)] if free else [])]:
        expected = _tensors(original(*example.args, **example.kwargs))
        given = _run(program, stored, example)
        if [t.shape for t in expected] != [t.shape for t in given]:
            raise InputError(f"the export of {program.model} gives outputs of other shapes")
        worst = max(worst, _distance(expected, given))
        for one in expected:
            bound = LOOSE.get(one.dtype, TOLERANCE)
            if not _distance(expected, given) <= bound:
                raise InputError(
                    f"the export of {program.model} differs from the model by {worst:.1e}, "
                    f"relative to 1 + the largest output; {bound:.0e} is allowed"
                )
    return worst


def _distance(expected: list[Tensor], given: list[Tensor]) -> float:
    """The largest difference, relative to 1 + the largest output; NaN where one is not finite."""
    worst = 0.0
    for one, other in zip(expected, given):
        if one.numel() == 0:
            continue
        one, other = one.double(), other.double()
        finite = one.isfinite() & other.isfinite()
        if not bool((one.nan_to_num() == other.nan_to_num())[~finite].all()):
            return float("nan")
        scale = 1 + float(one[finite].abs().max()) if bool(finite.any()) else 1.0
        difference = (one - other)[finite].abs()
        worst = max(worst, float(difference.max()) / scale if difference.numel() else 0.0)
    return worst
