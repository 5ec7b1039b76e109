"""Which images a training step sees: positives evenly, negatives by how rarely they were used.

Section 3.2 of Bozic et al. 2021 (Computers in Industry 129), "frequency-of-use sampling".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Batches that are drawn together, then sorted by image size, so that a batch holds images of like size.
BATCHES_PER_DRAW = 8


class FrequencySampler:
    """Draws negatives, the seldom used ones first.

    With use u_i of n negatives: p_i = 1 - u_i / max(u), shifted so that its median is 1, to the power 4 ln(n). Drawn
    without replacement by the Gumbel top-k rule on logarithms, so that a large power cannot underflow to fewer than
    `count` possible outcomes; where `count` exceeds n, every negative is used once before any is used again.
    """

    def __init__(self, num_negatives: int, generator: np.random.Generator, by_use: bool = True) -> None:
        if num_negatives < 1:
            raise ValueError("a sampler needs at least one negative")
        self.uses = np.zeros(num_negatives, np.int64)
        self._generator = generator
        self._by_use = by_use

    def log_weights(self) -> NDArray[np.float64]:
        """Logarithms [n] of the unnormalised probabilities of the next draw; all alike without `by_use`."""
        if not self._by_use:
            return np.zeros(len(self.uses))
        likelihood = 1.0 - self.uses / max(1, int(self.uses.max()))
        likelihood = np.clip(likelihood - np.median(likelihood) + 1.0, 1e-6, None)
        return 4.0 * np.log(len(self.uses)) * np.log(likelihood)

    def draw(self, count: int) -> NDArray[np.int64]:
        """The next `count` indices [count] of negatives, in 0..n-1."""
        drawn: list[NDArray[np.int64]] = []
        while count > 0:
            keys = self.log_weights() + self._generator.gumbel(size=len(self.uses))
            chosen = np.argsort(-keys, kind="stable")[:count].astype(np.int64)
            self.uses[chosen] += 1
            drawn.append(chosen)
            count -= len(chosen)
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


class BalancedBatches:
    """Batches of half positives, half negatives; of negatives alone where there is no positive.

    `positives` and `negatives` are indices of images, `heights` and `widths` [N] the sizes of all images. Positives
    come round in shuffled turns. Images of like size share a batch, since a batch is padded to its largest image.
    """

    def __init__(
        self,
        positives: Sequence[int],
        negatives: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        generator: np.random.Generator,
        by_use: bool = True,
    ) -> None:
        self._positives = np.asarray(positives, np.int64)
        self._negatives = np.asarray(negatives, np.int64)
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self._num_positives = batch_size // 2 if len(self._positives) else 0
        self._num_negatives = batch_size - self._num_positives
        self._generator = generator
        self._sampler = FrequencySampler(len(self._negatives), generator, by_use)
        self._turn = np.zeros(0, np.int64)

    def draw(self, num_batches: int) -> list[NDArray[np.int64]]:
        """The next batches: arrays [batch_size] of image indices."""
        batches: list[NDArray[np.int64]] = []
        while len(batches) < num_batches:
            batches.extend(self._draw_together(min(BATCHES_PER_DRAW, num_batches - len(batches))))
        return batches

    def state(self) -> dict[str, list[int]]:
        """Where the turns stand, as plain values; the generator's state is the caller's."""
        return {"uses": self._sampler.uses.tolist(), "turn": self._turn.tolist()}

    def restore(self, state: dict[str, list[int]]) -> None:
        """Go on from a `state()`."""
        self._sampler.uses = np.array(state["uses"], np.int64)
        self._turn = np.array(state["turn"], np.int64)

    def _draw_together(self, num_batches: int) -> list[NDArray[np.int64]]:
        negatives = self._negatives[self._sampler.draw(num_batches * self._num_negatives)]
        halves = [self._by_size(negatives).reshape(num_batches, -1)]
        if self._num_positives:
            positives = self._next_positives(num_batches * self._num_positives)
            halves.insert(0, self._by_size(positives).reshape(num_batches, -1))
        together = np.concatenate(halves, axis=1)
        return list(together[self._generator.permutation(num_batches)])

    def _next_positives(self, count: int) -> NDArray[np.int64]:
        while len(self._turn) < count:
            self._turn = np.concatenate([self._turn, self._generator.permutation(self._positives)])
        taken, self._turn = self._turn[:count], self._turn[count:]
        return taken

    def _by_size(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        return images[np.lexsort((self._sizes[images, 1], self._sizes[images, 0]))]
