"""The course of a training as a picture: losses and validation AP over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sbdzsl.sbdd.trainer import Progress


def curves_png(title: str, history: Sequence[Progress]) -> bytes:
    """A PNG: both losses on a logarithmic axis above, average precision on the validation images below."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    draw_curves(figure, history, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_curves(figure: Figure, history: Sequence[Progress], title: str = "") -> None:
    """Draw the picture of `curves_png` into an empty figure."""
    above, below = figure.subplots(2, sharex=True)
    epochs = [record.epoch for record in history]
    above.plot(epochs, [record.segmentation_loss for record in history], label="map loss", marker=".")
    above.plot(epochs, [record.decision_loss for record in history], label="decision loss", marker=".")
    above.set_yscale("log")
    above.set_ylabel("loss (log scale)")
    above.legend(frameon=False)
    above.set_title(title)
    measured = [record for record in history if record.val_ap is not None]
    below.plot([record.epoch for record in measured], [record.val_ap for record in measured], marker="o")
    below.set_ylim(0, 1.05)
    below.set_ylabel("AP (validation)")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not measured:
        below.text(0.5, 0.5, "no defective validation image", transform=below.transAxes, ha="center")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
