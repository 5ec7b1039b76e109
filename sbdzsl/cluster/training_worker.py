"""What the workers of a training do: go down a queue of surfaces, one each, or train a single one together.

Both call what the single process calls, `training.train_surface`, and tell a board (`board.py`) how it went.
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from sbdzsl.cluster.board import Standing
from sbdzsl.errors import SbdzslError, StoppedError
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd.fit import Progress
from sbdzsl.sbdd.team import ALONE, Team
from sbdzsl.training import TrainingPlan, train_surface


def train_in_turn(config: Mapping[str, Any]) -> None:
    """Take a surface, train it, say how it ended, until none is left."""
    board, crew = config["board"], config["crew"]
    plan: TrainingPlan = ray.get(config["plan"])
    torch.set_num_threads(crew.threads)  # which holds for this thread alone
    rank, group = ray.train.get_context().get_world_rank(), broadcast_from_rank_zero(uuid.uuid4().hex)
    embedder: Embedder | None = None
    while (surface := ray.get(board.take.remote(rank, group))) is not None:
        try:
            embedder = embedder or plan.embedder(crew.device)
            train_surface(plan, surface, embedder, board.say.remote, _Noting(board, surface))
        except StoppedError:
            ray.get(board.stop.remote(surface))
            return
        except SbdzslError as error:
            ray.get(board.fail.remote(surface, f"{error.code}: {error.message}"))
        except Exception as error:  # noqa: BLE001  one surface's fault, even one of ours, does not stop the others
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            ray.get(board.fail.remote(surface, reason))
        else:
            ray.get(board.finish.remote(surface))


def train_together(config: Mapping[str, Any]) -> None:
    """Train the only surface of a board as a team of `torch.distributed`, whose first worker speaks for all.

    An error of torch, as where another worker has died, ends this one: Ray starts the group again.
    """
    board, crew = config["board"], config["crew"]
    plan: TrainingPlan = ray.get(config["plan"])
    torch.set_num_threads(crew.threads)
    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    surface = team.from_first(ray.get(board.take.remote(team.rank, uuid.uuid4().hex)) if team.is_first else None)
    if surface is None:
        return
    if team.is_first:
        board.say.remote(f"{surface}: {team.size} workers train it together")
    report = board.say.remote if team.is_first else _unheard
    try:
        train_surface(plan, surface, plan.embedder(crew.device), report, _Noting(board, surface, team), team)
    except StoppedError:
        if team.is_first:
            ray.get(board.stop.remote(surface))
    except SbdzslError as error:
        ray.get(board.fail.remote(surface, f"{error.code}: {error.message}"))
        # The others may wait for this one: Ray ends them all, and the group that it starts finds nothing to do.
        raise
    else:
        if team.is_first:
            ray.get(board.finish.remote(surface))


def _unheard(line: str) -> None:
    """What the first worker of a team says is not said again."""


class _Noting:
    """Writes each epoch of a surface on the board. Raises `StoppedError` where the board says that the time is up."""

    def __init__(self, board: Any, surface: str, team: Team = ALONE) -> None:
        self._board = board
        self._surface = surface
        self._team = team

    def __call__(self, progress: Progress) -> None:
        loss = progress.segmentation_loss + progress.decision_loss
        standing = Standing(progress.epoch, progress.epochs, loss, progress.val_ap, progress.seconds)
        goes_on = ray.get(self._board.note.remote(self._surface, standing)) if self._team.is_first else True
        if not self._team.from_first(goes_on):
            raise StoppedError("out-of-time", f"{self._surface}: the time is up")
