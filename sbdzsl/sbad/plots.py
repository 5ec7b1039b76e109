"""What the CE-VAE learnt, as pictures: real against learned class embeddings, and its latent space in 2-D."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sbdzsl.sbad.ce_vae import LearnedEmbeddings

_MARKERS = "osD^vPX<>"
_DPI = 110


def embeddings_png(learnt: LearnedEmbeddings, surfaces: Sequence[str], attribute_names: Sequence[str]) -> bytes:
    """A PNG: real CE, learned CE and learned minus real side by side, a row an attribute, a column a surface."""
    real, learned = learnt.real.numpy().T, learnt.learned.numpy().T
    width = max(0.28 * len(surfaces), 1.6)
    figure = Figure(figsize=(4 + 3 * width, 2 + 0.22 * len(attribute_names)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    low, high = min(0.0, float(learned.min())), max(1.0, float(learned.max()))
    reach = max(float(np.abs(learned - real).max()), 0.05)
    for place, title, values, colours, bounds in (
        (axes[0], "real", real, "viridis", (low, high)),
        (axes[1], "learned", learned, "viridis", (low, high)),
        (axes[2], "learned − real", learned - real, "RdBu_r", (-reach, reach)),
    ):
        shown = place.imshow(values, cmap=colours, vmin=bounds[0], vmax=bounds[1], aspect="auto")
        place.set_title(title)
        place.set_xticks(range(len(surfaces)), surfaces, rotation=90, fontsize=8)
        if place is not axes[0]:  # real and learned share a scale
            figure.colorbar(shown, ax=place, shrink=0.6, label="difference" if place is axes[2] else "value")
    axes[0].set_yticks(range(len(attribute_names)), attribute_names, fontsize=8)
    return _png(figure)


def latent_png(learnt: LearnedEmbeddings, surfaces: Sequence[str]) -> bytes:
    """A PNG: the code means of the training images on their first two principal axes, with each surface's CEs.

    A cross is a learned CE, a ring the real one of the same colour, a line joins them.
    """
    codes = learnt.code_means.numpy().astype(np.float64)
    centre, axes_2d, shares = principal_plane(codes)
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    axes = figure.add_subplot()
    for index, surface in enumerate(surfaces):
        colour = colormaps["turbo"]((index + 0.5) / len(surfaces))
        marker = _MARKERS[index % len(_MARKERS)]
        own = (codes[learnt.labels.numpy() == index] - centre) @ axes_2d
        axes.scatter(own[:, 0], own[:, 1], s=14, alpha=0.6, color=colour, marker=marker, label=surface)
        ends = (np.stack([learnt.learned.numpy()[index], learnt.real.numpy()[index]]) - centre) @ axes_2d
        axes.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.8)
        axes.scatter(ends[0, 0], ends[0, 1], s=90, marker="x", color="black", linewidth=1.6, zorder=3)
        axes.scatter(
            ends[1, 0], ends[1, 1], s=110, marker="o", facecolor="none", edgecolor=colour, linewidth=2, zorder=4
        )
    axes.set_xlabel(f"1st principal axis ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"2nd principal axis ({shares[1]:.0%})")
    axes.set_title("CE-VAE: code means; × learned CE, ○ real CE")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _png(figure)


def principal_plane(
    points: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[N, A] -> centre [A], the two directions of largest variance [A, 2] and their shares of it [2].

    Where the points have no second direction its share is 0.
    """
    centre = points.mean(axis=0)
    _, strengths, directions = np.linalg.svd(points - centre, full_matrices=True)
    variances = np.zeros(points.shape[1])
    variances[: len(strengths)] = strengths**2
    plane = np.zeros((points.shape[1], 2))
    plane[:, : min(2, len(directions))] = directions[:2].T
    shares = np.zeros(2)
    shares[: len(variances[:2])] = variances[:2] / max(variances.sum(), np.finfo(np.float64).tiny)
    return centre, plane, shares


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
