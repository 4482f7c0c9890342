"""Draw docs/graph.svg, the picture in the README, from a graph that the compiler really made.

In:   the small network and the recipe below.
Out:  the recipe on the left, the dual graph on the right: `python docs/draw_graph.py`.
Not:  no layout is drawn by hand: rows and columns follow from the graph.
"""

from __future__ import annotations

import operator
from html import escape
from pathlib import Path

import networkx as nx
import torch
from torch import fx, nn

import dcil_dsl as dcil
from dcil_dsl.masking.split import share_gradient, split_weight

RECIPE = """\
prune Conv2d to global(90%)
keep  first Conv2d

mix {
  path sparse = masked
  path dense  = full

  update kept   by sparse
  update pruned by dense

  private BatchNorm2d

  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
"""
TRAIN = "train { epochs = 1ep optimizer = sgd(lr=0.1) lr = constant() }"
MODEL = """\
def forward(self, x):
    x = relu(self.stem(x))
    x = relu(self.bn(self.conv(x)))
    return self.head(x.mean((2, 3)))
"""

WIDTH, HEIGHT, TOP, ROW = 1240, 800, 136, 66
COLUMN = {"sparse": 630, None: 865, "dense": 1100}
INK, PAPER, FAINT = "#1f2933", "#ffffff", "#697586"
FILL = {"sparse": "#d8f0ea", None: "#eef1f5", "dense": "#ffe6cf", "weight": "#e5e2fa"}
HALF = {"weight": 64, "mask": 80, "split": 72}  # of a node's width; 58 for the others
EDGE = {"sparse": "#0f8a6d", None: "#8a97a6", "dense": "#d9730d", "weight": "#6554c0"}


class Net(nn.Module):
    """A stem, one pruned convolution, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.conv = nn.Conv2d(8, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(x.mean((2, 3)))


def compiled() -> fx.Graph:
    """The training graph of the network by the recipe."""
    recipe = dcil.loads(f'language 1\nrecipe picture {{ title = "the picture" }}\n{RECIPE}{TRAIN}')
    model = Net()
    return dcil.compile(dcil.resolve(recipe, model, steps_per_epoch=1), model).graph


def condensed(graph: fx.Graph) -> nx.DiGraph:
    """What is drawn: calls, and weights that both paths read. An edge knows its reader's path,
    what flows forward on it, and which gradient comes back: None is all of it, "" is none.

    share_gradient and the views of split_weight are not nodes but marks on the edge they stand on.
    """
    drawn = nx.DiGraph()
    for node in graph.nodes:
        path = node.meta.get("path")
        if node.op == "output":
            for name, end in node.args[0].items():
                drawn.add_node(f"output {name}", text=f'"{name}"', path=name, kind="end")
                drawn.add_edge(end.name, f"output {name}", path=name, forward="", back=None)
        elif not _is_mark(node) and (node.op != "get_attr" or _is_seen(node)):
            drawn.add_node(node.name, text=_text(node), path=path, kind=_kind(node))
    for node in graph.nodes:
        for source in node.all_input_nodes:
            forward, back = _marks(source)
            source = source.args[0] if _is_mark(source) else source
            if node.name in drawn and source.name in drawn:
                path = node.meta.get("path")
                drawn.add_edge(source.name, node.name, path=path, forward=forward, back=back)
    return drawn


def _marks(node: fx.Node) -> tuple[str, str | None]:
    if node.target is share_gradient:
        assert node.args[1] == 0, "the picture knows no shares but all and nothing"
        return "", ""
    if node.target is not operator.getitem:
        return "", None
    views, index = node.args[0].kwargs, node.args[1]
    learns = [part for part in ("kept", "pruned") if views[part][index]]
    return {"masked": "w * mask", "full": "w"}[views["views"][index]], " and ".join(learns)


def _is_mark(node: fx.Node) -> bool:
    return node.target in (share_gradient, operator.getitem)


def _is_seen(node: fx.Node) -> bool:
    """A weight or mask that the paths read; the stem's own weight is left out."""
    if node.name.endswith("_layer"):
        return False
    return any(user.meta.get("path") or user.target is split_weight for user in node.users)


def _kind(node: fx.Node) -> str:
    if node.op == "get_attr":
        return "mask" if node.target.endswith("_mask") else "weight"
    return {"placeholder": "end"}.get(node.op, "split" if node.target is split_weight else "call")


def _text(node: fx.Node) -> str:
    if node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        layer = node.args[0]
        if layer.op == "get_attr" and layer.name.endswith("_layer"):
            return layer.target
    return node.target if isinstance(node.target, str) else node.target.__name__


def placed(graph: fx.Graph, drawn: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """The middle of each node: its path is its column, the longest way to it is its row."""
    order, kind = drawn.copy(), nx.get_node_attributes(drawn, "kind")
    shared = [name for name in drawn if drawn.nodes[name]["path"] is None]
    last = [name for name in shared if kind[name] in ("call", "end")][-1]
    for name in shared:
        if kind[name] in ("weight", "mask"):
            order.add_edge(last, name)  # below the shared layers, or they would cover each other
    row = {}
    for name in nx.topological_sort(order):
        # What comes from the side stands in the row of its reader.
        above = [row[p] + (not _from_the_side(drawn, p, name)) for p in order.predecessors(name)]
        row[name] = max(above, default=0)
    place = {}
    for name in drawn:
        if kind[name] == "weight":
            row[name] = min(
                row[r] - (not _from_the_side(drawn, name, r)) for r in drawn.successors(name)
            )
        x = COLUMN[drawn.nodes[name]["path"]]
        if kind[name] == "mask":
            x += 76
        elif any(kind[reader] == "split" for reader in drawn.successors(name)):
            x -= 90
        place[name] = (x, TOP + ROW * row[name])
    return place


def _from_the_side(drawn: nx.DiGraph, source: str, reader: str) -> bool:
    sideways = drawn.nodes[source]["kind"] in ("weight", "split")
    return sideways and reader in drawn[source] and drawn.edges[source, reader]["path"] is not None


def draw(graph: fx.Graph) -> str:
    """The picture as SVG."""
    drawn = condensed(graph)
    place = placed(graph, drawn)
    parts = [
        _card(36, 84, 400, RECIPE, "the recipe"),
        _card(36, 560, 400, MODEL, "your model"),
        _label(COLUMN[None], 60, "the graph that is trained", 20, INK, bold=True),
        _label(COLUMN["sparse"], 90, "sparse path, deployed", 14, EDGE["sparse"]),
        _label(COLUMN[None], 90, "computed once", 14, FAINT),
        _label(COLUMN["dense"], 90, "dense path", 14, EDGE["dense"]),
        f'<path d="M456 400 H528" stroke="{INK}" stroke-width="2.5" marker-end="url(#ink)"/>',
        _label(490, 386, "dcil", 15, INK, mono=True),
        *_legend(36, 730),
    ]
    parts += [_edge(place, drawn, *edge) for edge in drawn.edges]
    parts += [_node(place[name], **drawn.nodes[name]) for name in drawn]
    arrows = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6.5" '
        f'markerHeight="6.5" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
        for name, color in (
            ("sparse", EDGE["sparse"]),
            ("dense", EDGE["dense"]),
            ("none", EDGE[None]),
            ("weight", EDGE["weight"]),
            ("ink", INK),
        )
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="DejaVu Sans, Verdana, sans-serif">\n'
        f'<defs>{arrows}</defs>\n<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{PAPER}"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _card(x: int, y: int, width: int, text: str, title: str) -> str:
    lines = text.rstrip("\n").split("\n")
    height = 23 * len(lines) + 34
    rows = "".join(
        f'<text x="{x + 22}" y="{y + 36 + 23 * i}" font-size="15" xml:space="preserve" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" fill="{_ink(line)}">'
        f"{escape(line)}</text>\n"
        for i, line in enumerate(lines)
    )
    return (
        f'{_label(x + width / 2, y - 24, title, 20, INK, bold=True)}\n<rect x="{x}" y="{y}" '
        f'width="{width}" height="{height}" rx="10" fill="#f7f8fa" stroke="#d5dbe3"/>\n{rows}'
    )


def _ink(line: str) -> str:
    """The lines about one path have its colour, so that the eye finds them in the graph."""
    found = [path for path in ("sparse", "dense") if path in line]
    return EDGE[found[0]] if len(found) == 1 and "deploy" not in line else INK


def _label(x, y, text, size, color, bold=False, mono=False, anchor="middle") -> str:
    family = ' font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"' if mono else ""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{color}"'
        f"{family}{weight}>{escape(text)}</text>"
    )


def _legend(x: int, y: int) -> list[str]:
    back = f'stroke="{EDGE["weight"]}" stroke-width="2" stroke-dasharray="4 4"'
    return [
        f'<path d="M{x} {y} h44" {back} marker-end="url(#weight)"/>',
        _label(x + 58, y + 5, "what a weight learns from", 14, FAINT, anchor="start"),
        _stop(x + 22, y + 30),
        _label(x + 58, y + 35, "no gradient flows back here", 14, FAINT, anchor="start"),
    ]


def _node(at: tuple[float, float], text: str, path: str | None, kind: str) -> str:
    x, y = at
    look = "weight" if kind in ("weight", "mask", "split") else path
    half, radius = HALF.get(kind, 58), 17 if kind in ("end", "weight", "mask") else 7
    return (
        f'<rect x="{x - half}" y="{y - 17}" width="{2 * half}" height="34" rx="{radius}" '
        f'fill="{FILL[look]}" stroke="{EDGE[look]}" stroke-width="1.6"/>'
        f"{_label(x, y + 5, text, 14, INK, mono=True)}"
    )


def _edge(place, drawn: nx.DiGraph, source: str, reader: str) -> str:
    (x0, y0), (x1, y1) = place[source], place[reader]
    kind, edge = drawn.nodes[source]["kind"], drawn.edges[source, reader]
    side = 1 if x1 > x0 else -1
    if _from_the_side(drawn, source, reader):
        return _weight_edge(x0 + side * HALF.get(kind, 58), x1 - side * 58, y0, **edge)
    look = "weight" if kind in ("weight", "mask") else edge["path"]
    if x0 == x1:
        line = f"M{x0} {y0 + 17} V{y1 - 19}"
    elif look == "weight":  # into split_weight, from above
        line = (
            f"M{x0} {y0 + 17} C{x0} {y0 + 40} {x1 - 30 * side} {y0 + 30} {x1 - 30 * side} {y1 - 19}"
        )
    else:  # out of the shared layers: sideways, then down
        line = f"M{x0 + 58 * side} {y0} H{x1 - 16 * side} q{16 * side} 0 {16 * side} 16 V{y1 - 19}"
    return _line(line, look) + (_stop((x0 + x1) / 2, y0) if edge["back"] == "" else "")


def _weight_edge(x0: float, x1: float, y: float, path: str, forward: str, back: str | None) -> str:
    """A weight on its way into a layer of one path, and what comes back to it."""
    side, middle = (1 if x1 > x0 else -1), (x0 + x1) / 2
    if back == "":
        return _line(f"M{x0} {y} H{x1 - 2 * side}", "weight") + _stop(middle, y)
    parts = [
        _line(f"M{x0} {y - 6} H{x1 - 2 * side}", "weight"),
        _line(f"M{x1} {y + 6} H{x0 + 2 * side}", "weight", dash=True),
        _label(middle, y - 13, forward, 13, EDGE["weight"], mono=True),
        _label(middle, y + 23, back or "", 13, EDGE[path], bold=True),
    ]
    return "".join(parts)


def _line(path: str, look: str | None, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dash else ""
    return (
        f'<path d="{path}" fill="none" stroke="{EDGE[look]}" stroke-width="2"{dashes} '
        f'marker-end="url(#{look or "none"})"/>'
    )


def _stop(x: float, y: float) -> str:
    """The bar at which a gradient ends."""
    return f'<path d="M{x} {y - 9} V{y + 9}" stroke="#c0392b" stroke-width="4"/>'


if __name__ == "__main__":
    Path(__file__).with_name("graph.svg").write_text(draw(compiled()), encoding="ascii")
