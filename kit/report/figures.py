"""Plots as inline SVG: text and lines take the page's colours, so that they suit a light and a dark screen."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# colours that matplotlib is given, and what stands for them in the page's style sheet
INK, SERIES = "#010101", tuple(f"#0101{place:02x}" for place in range(16, 24))
BROKEN_PARTS = re.compile(r"^.*?(?=<svg)", re.DOTALL)  # XML declaration and doctype: not inside HTML
SIZE_IN = (4.6, 3.1)


def svg(draw: Callable[[Any], None], alt: str, size_in: tuple[float, float] = SIZE_IN) -> str:
    """Returns an SVG element.

    Args:
        draw: draws on matplotlib's axes, in the colours of INK and SERIES.
        alt: what the plot shows, for screen readers; each plot of a page needs its own.
        size_in: width and height, inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: dict[Any, Any] = dict.fromkeys(ink, INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": alt,  # ids differ between the plots of a page, and not between calls
        "text.parse_math": False,
        "font.size": 9,
        "grid.alpha": 0.15,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size_in, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.grid()
        axes.set_axisbelow(True)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": alt, "Creator": None})
    text = BROKEN_PARTS.sub("", file.getvalue(), count=1).replace(INK, "currentColor")
    for place, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{place})")
    return text.replace("<svg ", '<svg role="img" ', 1)


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], x: str, y: str) -> Callable[[Any], None]:
    """Returns a function that draws groups of bars, without the groups that have none.

    Args:
        labels: of the groups.
        series: height of each group's bars by name; NaN: no bar.
        x: title of the horizontal axis.
        y: likewise, vertical.
    """
    groups = [at for at in range(len(labels)) if not all(math.isnan(values[at]) for values in series.values())]

    def draw(axes: Any) -> None:
        width = 0.8 / len(series)
        for place, (name, values) in enumerate(series.items()):
            left = [at - 0.4 + (place + 0.5) * width for at in range(len(groups))]
            heights = [values[group] for group in groups]
            axes.bar(left, heights, width * 0.92, label=name, color=SERIES[place % len(SERIES)])
        ticks = [labels[group] for group in groups]
        axes.set(xlabel=x, ylabel=y, xticks=range(len(groups)), xticklabels=ticks, ylim=(0, 1))
        axes.grid(visible=False, axis="x")
        if len(series) > 1:
            axes.legend(frameon=False)

    return draw


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, diagonal: bool = False
) -> Callable[[Any], None]:
    """Returns a function that draws lines from 0 to 1.

    Args:
        series: x and y of the points by name.
        x: title of the horizontal axis.
        y: likewise, vertical.
        diagonal: also draw y = x.
    """

    def draw(axes: Any) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=1, linestyle="--")
        for place, (name, (across, up)) in enumerate(series.items()):
            marker = "o" if len(across) < 30 else None
            axes.plot(across, up, marker=marker, markersize=3.5, label=name, color=SERIES[place % len(SERIES)])
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1))
        if len(series) > 1:
            axes.legend(frameon=False)

    return draw
