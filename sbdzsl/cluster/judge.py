"""The actor of an audit: a shard number goes in, a part file comes out, a few counts are what Ray carries.

An actor reads and decodes ahead on its own threads while the nets judge. A bad image is a row; an error that concerns
the whole audit, such as a full disk, is a value that the driver raises: none ever reaches Ray as an exception.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster.plan import Plan
from sbdzsl.cluster.reading import read_ahead
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.errors import AuditError, SbdzslError
from sbdzsl.inspector import Inspector
from sbdzsl.verdict import Verdict

#: Starts at one shard by one start of the audit; the processes of all but the last have died.
MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class InspectorLoader:
    """Makes the inspector of an actor: of the bundle that was planned, with the thresholds that were asked for."""

    request: AuditRequest

    def __call__(self, plan: Plan, device: str) -> Inspector:
        """Load it to a device. Raises `AuditError` "other-audit" where the bundle has been replaced meanwhile."""
        request, settings = self.request, self.request.settings
        url = lake.absolute_url(request.bundle_url)
        bundle = bundles.load(url, device, plan.identity.promise)
        if bundle.digest != plan.identity.bundle_digest:
            raise AuditError(
                "other-audit",
                f"{url} holds bundle {bundle.digest[:16]} now, the audit was begun with "
                f"{plan.identity.bundle_digest[:16]}; put that back, or choose another --out",
            )
        return Inspector(
            bundle, request.policy, device, settings.max_memory_mb, request.runtime, settings.surface_policies
        )


class ShardJudge:
    """The fused actor stage of Ray Data: one shard a call, from image URIs to a part file.

    `load_inspector` is called once, on the actor; a test passes a fake. `stop_at` is the time of the clock (seconds)
    from which on no shard is begun. `session` names this start of the audit.
    """

    def __init__(
        self,
        plan: Plan,
        load_inspector: Callable[[Plan, str], Inspector],
        readers: int,
        threads: int,
        read_timeout_s: float,
        device: str = "cpu",
        stop_at: float | None = None,
        session: str = "",
    ) -> None:
        self._plan = plan
        self._threads = threads
        self._nets = threading.Lock()
        self._session = session
        self._readers = readers
        self._read_timeout_s = read_timeout_s
        self._stop_at = stop_at
        self._inspector: Inspector | SbdzslError
        try:
            self._inspector = load_inspector(plan, device)
        except SbdzslError as error:
            self._inspector = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Judge the shards of a batch, one row each: see `_row`."""
        rows = [self._row(int(shard)) for shard in batch["shard"]]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _row(self, shard: int) -> dict[str, Any]:
        """How many images were judged and how many of them could not be; -1 images: the time was up."""
        row: dict[str, Any] = {"shard": shard, "num_images": 0, "num_errors": 0, "error": "", "message": ""}
        if self._stop_at is not None and time.time() >= self._stop_at:
            return row | {"num_images": -1}
        try:
            if isinstance(self._inspector, SbdzslError):
                raise self._inspector
            verdicts = self._judge(shard, self._inspector)
        except SbdzslError as error:
            return row | {"error": f"{type(error).__name__} {error.code}", "message": error.message}
        num_errors = sum(verdict.verdict == "error" for verdict in verdicts)
        return row | {"num_images": len(verdicts), "num_errors": num_errors}

    def _judge(self, shard: int, inspector: Inspector) -> list[Verdict]:
        if ledger.is_done(self._plan, shard):  # by another start of the same audit
            return []
        self._note_attempt(shard)
        images = ledger.shard_images(self._plan, shard)
        settings = inspector.bundle.settings.image
        ahead = read_ahead(images, settings, self._readers, self._read_timeout_s)
        with self._nets:  # of two shards at once one is judged, while the other is read, or written
            torch.set_num_threads(self._threads)  # which holds for this thread alone
            found = {number: inspector.decide(loaded) for number, loaded in ahead}
        verdicts = [found[number] for number in range(len(images))]
        ledger.write_part(self._plan, shard, verdicts)
        return verdicts

    def _note_attempt(self, shard: int) -> None:
        """Ray begins a shard again whenever a process dies, without end: one that kills its process must end."""
        before = [one for one in ledger.attempts(self._plan, shard) if one.session == self._session]
        if len(before) >= MAX_ATTEMPTS:
            places = ", ".join(f"process {one.pid} on {one.host}" for one in before)
            raise AuditError(
                "crashing",
                f"shard {shard} was begun {len(before)} times and each time its process died ({places}): too little "
                f"memory, or an image that crashes a decoder. Its images: {self._plan.shard_uri(shard)}",
            )
        ledger.note_attempt(self._plan, shard, self._session)
