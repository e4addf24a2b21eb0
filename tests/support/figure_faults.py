"""What makes a figure hard to read, found from its boxes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


def legends(made: Figure) -> list:
    return [*made.legends, *(panel.get_legend() for panel in made.axes if panel.get_legend() is not None)]


def described_texts(made: Figure) -> Iterator[Text]:
    """Titles and labels of the axes."""
    for panel in made.axes:
        titles = [panel.title, panel._left_title, panel._right_title]  # type: ignore[attr-defined]
        yield from (text for text in (*titles, panel.xaxis.label, panel.yaxis.label) if text.get_text())


def overlaps(first, second) -> bool:
    """Whether two boxes share more than a pixel."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return bool(width > 1 and height > 1)


def faults(made: Figure) -> list[str]:
    """Everything that makes a figure hard to read, in words."""
    made.canvas.draw()
    found = []
    for legend, panel in itertools.product(legends(made), made.axes):
        if overlaps(legend.get_window_extent(), panel.bbox):
            found.append("a legend covers data")
    inside = made.bbox.padded(1)
    boxes = [item.get_window_extent() for item in (*legends(made), *described_texts(made))]
    found += ["something is cut off" for box in boxes if not (inside.contains(*box.min) and inside.contains(*box.max))]
    found += ["labels overlap" for one, two in itertools.combinations(boxes, 2) if overlaps(one, two)]
    for panel in made.axes:
        found += panel_faults(panel)
    return found


def panel_faults(panel: Axes) -> list[str]:
    found = []
    for axis in (panel.xaxis, panel.yaxis):
        ticks = [t.label1.get_window_extent() for t in axis.get_major_ticks() if t.label1.get_text()]
        if any(overlaps(one, two) for one, two in itertools.pairwise(ticks)):
            found.append("ticks overlap")
    named = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    by_label = {str(line.get_label()): (line.get_marker(), str(line.get_markerfacecolor()) == "none") for line in named}
    if len(set(by_label.values())) < len(by_label) or any(marker == "None" for marker, _ in by_label.values()):
        found.append("two lines differ in colour only")
    sizes = [text.get_fontsize() for text in (panel.xaxis.label, panel.yaxis.label, *panel.texts)]
    sizes += [tick.label1.get_fontsize() for tick in panel.xaxis.get_major_ticks()]
    if min(sizes) < 7:
        found.append("text is too small")
    if not (panel.get_xlabel() and panel.get_ylabel()):
        found.append("an axis has no name")
    return found
