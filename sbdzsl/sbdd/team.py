"""Several processes that train one net together: each computes on its share of a batch, and all take the same step.

What they exchange goes through the default group of `torch.distributed`, which whoever starts them has joined. A single
process is a team of its own: it exchanges nothing, and computes to the last bit what it would without one.

The step is that of the whole batch, up to the rounding of sums. Each worker encodes its own images; what the net says
of them and what it should say then goes to all (`whole`), so that each computes the loss of the whole batch; gradients
are summed; and batch norm, whose statistics are over the batch, takes them over the team (`TeamNorm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sbdzsl.errors import TrainingError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Team:
    """This process is number `rank` of `size` that train together. All of them must make the same calls in one order.

    A call ends in an error of torch where another process has died; it waits where one is late.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reads and writes for all."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of `count` images are this worker's: shares differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def whole(self, mine: Tensor, count: int) -> Tensor:
        """All `count` rows from those that each worker has of its share, [b, ...] to [count, ...].

        A gradient goes back to this worker's own rows alone: each computes the same from the whole, and has its part.
        """
        if self.size == 1:
            return mine
        rows = self.rows(count)
        total = mine.new_zeros((count, *mine.shape[1:]))
        total[rows] = mine.detach()
        dist.all_reduce(total)
        return torch.cat([total[: rows.start], mine, total[rows.stop :]])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up what each worker's rows contribute to the gradients, in place; all at once, since each call waits."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def spread(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The outcome of `work` for each item, in their order: each worker does its share, and all get all of it."""
        mine = [work(item) for item in items[self.rows(len(items))]]
        return mine if self.size == 1 else [outcome for part in self._of_each(mine) for outcome in part]

    def from_first(self, value: T) -> T:
        """What the first worker gives, to all; the others' own is not looked at."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def agree(self, value: object, what: str) -> None:
        """Make sure that all workers have the same `value`. Raises `TrainingError` "workers-failed" on each if not."""
        if self.size > 1 and any(other != value for other in self._of_each(value)):
            raise TrainingError(
                "workers-failed",
                f"{what} differ between the {self.size} workers of one training: see that each of their nodes reads "
                "the same images, then run again",
            )

    def _of_each(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


#: A process that trains by itself.
ALONE = Team()


class TeamNorm(_BatchNorm):
    """Batch norm over the rows of all workers while training, with parameters and buffers of the one it replaces.

    Each worker's mean and variance go to all, and are put together without the cancellation of a mean of squares (Chan
    et al. 1979): var = sum_r n_r (var_r + (mean_r - mean)^2) / n. torch's own `SyncBatchNorm` is for GPUs alone.
    """

    def __init__(self, norm: _BatchNorm, team: Team) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._team = team
        self.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """[b, C, ...], this worker's rows; same shape."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, variance, count = self._statistics(x)
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        return _Normalised.apply(x, self.weight, self.bias, mean, variance, count, self.eps)  # type: ignore[no-untyped-call]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance [C] over the team, and over how many values [C]; float32."""
        # What it would update is not wanted: the running values follow from the statistics of all workers.
        unused = torch.zeros_like(self.weight), torch.ones_like(self.weight)
        mean, variance = torch.batch_norm_update_stats(x, *unused, 0.0)
        table = mean.new_zeros(self._team.size, 3, len(mean))
        table[self._team.rank] = torch.stack([mean, variance, torch.full_like(mean, x.numel() / len(mean))])
        dist.all_reduce(table)
        means, variances, counts = table.unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        return mean, (counts * (variances + (means - mean).square())).sum(0) / count, count

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  torch's own name
        """Any number of dimensions: what it replaces has checked its own."""


def share_norms(network: nn.Module, team: Team) -> None:
    """Let each batch norm of a network take its statistics over the team, in place; alone, nothing changes."""
    if team.size == 1:
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, TeamNorm(child, team))


class _Normalised(torch.autograd.Function):
    """weight * (x - mean) / sqrt(variance + eps) + bias, where mean and variance follow from the rows of all workers.

    So a row's gradient depends on what all workers' rows are given: with x' the normalised x and g the gradient,
    weight / sqrt(variance + eps) * (g - mean(g) - x' mean(g x')). The passes over x are torch's fused ones.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        mean_of_gradient, mean_with_x = sums / count * weight * torch.rsqrt(variance + ctx.eps)
        indirect = nn.functional.batch_norm(
            x, mean, variance, mean_with_x, mean_of_gradient, training=False, eps=ctx.eps
        )
        return direct - indirect, of_weight, of_bias, None, None, None, None
