"""The metrics of a replica, shown by the node it runs on.

Behind Serve's door a scrape of `/metrics` reaches some replica, another one each time. Ray shows what its processes
record at one place for each node, which is scraped: there they are called `ray_sbdzsl_...`. Counts and buckets go as
gauges, each with its replica's label; they only grow all the same, so that `rate` and `histogram_quantile` read them.
"""

from __future__ import annotations

import logging
import threading
import uuid

from prometheus_client import CollectorRegistry
from ray.util.metrics import Gauge

log = logging.getLogger("sbdzsl.serving")

#: Seconds between two looks; Ray drops a value that was not set for a while.
PERIOD_S = 5.0


class Mirror:
    """Shows a registry's metrics among Ray's for as long as the process lives. To be made once Ray is connected."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._replica = uuid.uuid4().hex[:8]
        self._gauges: dict[tuple[str, ...], Gauge] = {}

    def start(self) -> Mirror:
        """Publish now and then, on a thread of its own."""
        threading.Thread(target=self._run, name="metrics", daemon=True).start()
        return self

    def publish(self) -> None:
        """Set every value once."""
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name.endswith("_created"):  # the time of a series' birth, which nobody asks for
                    continue
                tags = {**sample.labels, "replica_id": self._replica}
                key = (sample.name, *sorted(tags))
                if key not in self._gauges:
                    self._gauges[key] = Gauge(sample.name, metric.documentation, tag_keys=tuple(sorted(tags)))
                self._gauges[key].set(sample.value, tags)

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(PERIOD_S):
            try:
                self.publish()
            except Exception:  # a replica must not lose its metrics over one look that failed
                log.exception("metrics could not be shown among Ray's")
