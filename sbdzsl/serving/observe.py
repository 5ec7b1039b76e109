"""Metrics in Prometheus' form, one structured log line a request, and the ids that tie them together.

Names follow Prometheus' rules: base units, `_seconds`, `_total`; labels have few values, so no part and no trigger.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sbdzsl.serving.alerts import SinkStatistics

log = logging.getLogger("sbdzsl.serving")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_LOGITS = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
_LIMITS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 4, 8)

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


class Meter:
    """The metrics of one application; each has a registry of its own, so that two in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "sbdzsl_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "sbdzsl_request_seconds", "Whole requests", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self._stages = Histogram(
            "sbdzsl_stage_seconds", "Steps of an inspection", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self._verdicts = Counter(
            "sbdzsl_verdicts", "Verdicts by surface", ["surface", "verdict"], registry=self.registry
        )
        self._errors = Counter(
            "sbdzsl_image_errors", "Images that could not be judged", ["code"], registry=self.registry
        )
        self._defect_score = Histogram(
            "sbdzsl_defect_score_above_threshold", "Defect score minus its threshold, in logits", ["surface"],
            buckets=_LOGITS, registry=self.registry,
        )  # fmt: skip
        self._unseen_score = Histogram(
            "sbdzsl_unseen_score_of_limit", "Unseen score divided by its threshold", ["surface"],
            buckets=_LIMITS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("sbdzsl_images_in_flight", "Images waiting or being judged", registry=self.registry)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """One answered request; `path` is the route's template, so that there are few of them."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def count_answer(self, document: Mapping[str, Any]) -> None:
        """One verdict, as an answer document."""
        surface = document["surface"] or ""
        self._verdicts.labels(surface, document["verdict"]).inc()
        for stage in ("queue", "decode", "route", "detect"):
            if (ms := document[f"{stage}_ms"]) is not None:
                self._stages.labels(stage).observe(ms / 1e3)
        if document["error_code"] is not None:
            self._errors.labels(document["error_code"]).inc()
        if document["defect_score"] is not None:
            self._defect_score.labels(surface).observe(document["defect_score"] - document["defect_threshold"])
        if document["unseen_score"] is not None and document["unseen_threshold"] > 0:
            self._unseen_score.labels(surface).observe(document["unseen_score"] / document["unseen_threshold"])

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for whenever metrics are read; `value` must not wait for anything."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def watch_sinks(self, statistics: Callable[[], Sequence[SinkStatistics]]) -> None:
        """Show how the alerts of each sink fare; asked for whenever metrics are read."""
        self.registry.register(_SinkCollector(statistics))

    def exposition(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self.registry)


class _SinkCollector(Collector):
    """Alerts by sink. A sink delivers (1) or fails, stands by, is disabled (0)."""

    def __init__(self, statistics: Callable[[], Sequence[SinkStatistics]]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        found = self._statistics()
        for name, text, value in (
            ("sbdzsl_alert_sink_up", "Whether the sink takes alerts", lambda one: one.state == "delivering"),
            ("sbdzsl_alerts_pending", "Alerts that wait for the sink", lambda one: one.pending),
            ("sbdzsl_alerts_dead", "Alerts given up that are still kept", lambda one: one.dead),
            ("sbdzsl_alerts_oldest_pending_seconds", "Age of the oldest", lambda one: one.oldest_pending_s or 0),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["sink"])
            for one in found:
                gauge.add_metric([one.name], float(value(one)))  # type: ignore[no-untyped-call]
            yield gauge
        for name, text, value in (
            ("sbdzsl_alerts_delivered", "Alerts that the sink took", lambda one: one.delivered),
            ("sbdzsl_alert_attempts_failed", "Attempts in vain", lambda one: one.failed),
            ("sbdzsl_alerts_given_up", "Alerts that went to the dead-letter file", lambda one: one.given_up),
        ):
            counter = CounterMetricFamily(name, text, labels=["sink"])
            for one in found:
                counter.add_metric([one.name], float(value(one)))
            yield counter


class Observed:
    """Middleware: gives each request its ids, times it, counts it and writes its log line.

    A request id or a `traceparent` (W3C Trace Context) that the caller sent is kept, else one is made; both are
    answered.
    """

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        state = scope.setdefault("state", {})
        given = headers.get(b"x-request-id", "")
        state["request_id"] = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        state["trace_id"], state["traceparent"] = _trace(headers.get(b"traceparent", ""))
        status = 500

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = {"x-request-id": state["request_id"], "traceparent": state["traceparent"]}
                kept = [pair for pair in message["headers"] if pair[0].decode("latin-1").lower() not in ids]
                added = [(name.encode(), value.encode("latin-1")) for name, value in ids.items()]
                message = {**message, "headers": [*kept, *added]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._meter.count_request(path, status, seconds)
            words = {"method": scope["method"], "path": scope["path"], "status": status, "ms": round(seconds * 1e3, 2)}
            ids = {"request_id": state["request_id"], "trace_id": state["trace_id"]}
            log.info("request", extra={"fields": words | ids | state.get("log_fields", {})})


def _trace(given: str) -> tuple[str, str]:
    """Trace id and the `traceparent` of this step: of the caller's trace where one was sent."""
    found = _TRACEPARENT.fullmatch(given)
    trace, flags = found.groups() if found else (secrets.token_hex(16), "01")
    return trace, f"00-{trace}-{secrets.token_hex(8)}-{flags}"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
