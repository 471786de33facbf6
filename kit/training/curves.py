"""The learning curves of a run as a picture."""

from pathlib import Path
from typing import Any

from kit.paths import replacing


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a PNG with the losses and the Jaccard index per epoch.

    Args:
        rows: of `log.csv`: epoch, train_loss, valid_loss, jaccard.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in rows]
    for column, label in (("train_loss", "training"), ("valid_loss", "held out")):
        left.plot(epochs, [row[column] for row in rows], marker="o", markersize=3, label=label)
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(epochs, [row["jaccard"] for row in rows], marker="o", markersize=3, color="tab:green")
    right.set(xlabel="epoch", ylabel="pooled Jaccard, held out", ylim=(0, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    with replacing(path) as file:
        figure.savefig(file, dpi=110)
