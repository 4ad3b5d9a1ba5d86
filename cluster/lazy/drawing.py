"""Drawings of what was delayed, as SVG made here and as text for graphviz."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cluster.graph.order import depth_first
from cluster.lazy.expression import Node, find_nodes, inputs_of

__all__ = ["Drawing", "visualize"]

NODES_LIMIT: Final = 5000
LABEL_LIMIT: Final = 24
BOX_HEIGHT: Final = 26
CHARACTER_WIDTH: Final = 7.2
PADDING: Final = 10
GAP_WITHIN_LAYER: Final = 16
GAP_BETWEEN_LAYERS: Final = 44
SWEEPS: Final = 4


class Drawing:
    """A graph drawn: `svg` and `dot` are its texts, `save` writes either; a notebook shows it."""

    def __init__(self, nodes: Sequence[Node], rankdir: str) -> None:
        self._nodes = nodes
        self._rankdir = rankdir

    @property
    def svg(self) -> str:
        """The drawing as SVG, in the colours of the text around it."""
        return _svg(self._nodes, self._rankdir)

    @property
    def dot(self) -> str:
        """The graph in the language of graphviz."""
        lines = ["digraph tasks {", f'  rankdir="{self._rankdir}";', '  node [shape="box"];']
        place = {id(node): index for index, node in enumerate(self._nodes)}
        for index, node in enumerate(self._nodes):
            label = node.label.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'  n{index} [label="{label}"];')
        for index, node in enumerate(self._nodes):
            lines += [f"  n{place[id(source)]} -> n{index};" for source in node.inputs]
        return "\n".join([*lines, "}", ""])

    def save(self, filename: str | Path) -> Path:
        """Write the drawing to a file whose name ends with .svg or .dot."""
        path = Path(filename)
        if path.suffix not in (".svg", ".dot"):
            raise ValueError(
                f"{path.name} must end with .svg or .dot; graphviz makes other formats of the latter: "
                f"dot -Tpng {path.stem}.dot -o {path.stem}.png"
            )
        path.write_text(self.svg if path.suffix == ".svg" else self.dot, encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<Drawing of {len(self._nodes)} tasks>"


def visualize(*values: Any, filename: str | Path | None = None, rankdir: str = "TB") -> Drawing:
    """Draw the graph of what was delayed, inputs first; nothing is computed and nothing else need be installed.

    With a `filename` that ends with .svg or .dot it is written there too. `rankdir` is the direction in which values
    flow: "TB" downwards, "LR" to the right. Raises ValueError when there is nothing delayed in the values, and when
    there are more than 5,000 tasks, of which no drawing could be read.
    """
    if rankdir not in ("TB", "LR"):
        raise ValueError(f'rankdir must be "TB" (downwards) or "LR" (to the right), not {rankdir!r}')
    nodes = depth_first(find_nodes(values), inputs_of)
    if not nodes:
        raise ValueError("there is nothing to draw: none of the values is delayed")
    if len(nodes) > NODES_LIMIT:
        raise ValueError(f"the graph has {len(nodes)} tasks, and at most {NODES_LIMIT} can be drawn: draw a part of it")
    drawing = Drawing(nodes, rankdir)
    if filename is not None:
        drawing.save(filename)
    return drawing


# --------------------------------------------------------------------------- layout


class _Box:
    def __init__(self, node: Node) -> None:
        self.label = node.label if len(node.label) <= LABEL_LIMIT else node.label[: LABEL_LIMIT - 1] + "…"
        self.title = node.key
        self.round = node.function is None
        self.length = CHARACTER_WIDTH * len(self.label) + 2 * PADDING
        self.sources: list[_Box] = []
        self.layer = 0
        self.at = 0.0  # the middle, along its layer
        self.breadth = 0.0  # what it takes of its layer


def _layers(nodes: Sequence[Node], upright: bool) -> list[list[_Box]]:
    """The boxes in layers, each below all its inputs, near them (the barycentre heuristic of Sugiyama et al., 1981)."""
    boxes = {id(node): _Box(node) for node in nodes}
    layers: list[list[_Box]] = []
    takers: dict[int, list[_Box]] = {}
    for node in nodes:
        box = boxes[id(node)]
        box.sources = [boxes[id(source)] for source in node.inputs]
        box.breadth = box.length if upright else BOX_HEIGHT
        box.layer = 1 + max((source.layer for source in box.sources), default=-1)
        for source in box.sources:
            takers.setdefault(id(source), []).append(box)
        while len(layers) <= box.layer:
            layers.append([])
        layers[box.layer].append(box)
    for layer in layers:
        _spread(layer)
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            neighbours = {id(box): box.sources if sweep % 2 == 0 else takers.get(id(box), []) for box in layer}
            layer.sort(key=lambda box: _middle(box, neighbours[id(box)]))
            _spread(layer)
    return layers


def _middle(box: _Box, neighbours: list[_Box]) -> float:
    return sum(each.at for each in neighbours) / len(neighbours) if neighbours else box.at


def _spread(layer: list[_Box]) -> None:
    """Set the boxes of a layer side by side, around zero."""
    total = sum(box.breadth for box in layer) + GAP_WITHIN_LAYER * (len(layer) - 1)
    at = -total / 2
    for box in layer:
        box.at = at + box.breadth / 2
        at += box.breadth + GAP_WITHIN_LAYER


def _svg(nodes: Sequence[Node], rankdir: str) -> str:
    upright = rankdir == "TB"
    layers = _layers(nodes, upright)
    half = max(abs(box.at) + box.breadth / 2 for layer in layers for box in layer) + PADDING
    corners: dict[int, tuple[float, float]] = {}
    offset = float(PADDING)
    for layer in layers:
        depth = BOX_HEIGHT if upright else max(box.length for box in layer)
        for box in layer:
            across = half + box.at - box.breadth / 2
            corners[id(box)] = (across, offset) if upright else (offset, across)
        offset += depth + GAP_BETWEEN_LAYERS
    length = offset - GAP_BETWEEN_LAYERS + PADDING
    width, height = (2 * half, length) if upright else (length, 2 * half)
    boxes = [box for layer in layers for box in layer]
    lines = [_line(source, box, corners, upright) for box in boxes for source in box.sources]
    shapes = [_shape(box, *corners[id(box)]) for box in boxes]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" fill="none" stroke="currentColor" font-family="monospace" font-size="12">'
        + "".join(lines + shapes)
        + "</svg>"
    )


def _line(source: _Box, taker: _Box, corners: dict[int, tuple[float, float]], upright: bool) -> str:
    (x1, y1), (x2, y2) = corners[id(source)], corners[id(taker)]
    if upright:
        x1, y1, x2 = x1 + source.length / 2, y1 + BOX_HEIGHT, x2 + taker.length / 2
        middle = (y1 + y2) / 2
        curve = f"{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f}"
    else:
        x1, y1, y2 = x1 + source.length, y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2
        middle = (x1 + x2) / 2
        curve = f"{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f}"
    return f'<path opacity="0.5" d="M{x1:.0f} {y1:.0f}C{curve} {x2:.0f} {y2:.0f}"/>'


def _shape(box: _Box, x: float, y: float) -> str:
    return (
        f"<g><title>{html.escape(box.title)}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{box.length:.0f}" height="{BOX_HEIGHT}" rx="{13 if box.round else 3}"/>'
        f'<text x="{x + box.length / 2:.0f}" y="{y + 17:.0f}" text-anchor="middle" fill="currentColor" stroke="none">'
        f"{html.escape(box.label)}</text></g>"
    )
