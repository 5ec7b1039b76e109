"""Alerts as lines of a local file."""

from __future__ import annotations

from pathlib import Path

from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.files import append_line
from sbdzsl.serving.alerts.settings import FileSettings


class FileSink:
    """One JSON document a line. See `Sink`."""

    def __init__(self, settings: FileSettings) -> None:
        self._path = Path(settings.path)

    def open(self) -> None:
        """There is nothing to open: each line opens the file anew, so that it may be moved away."""

    def deliver(self, alert: Alert) -> bool:
        """See `Sink.deliver`; delivered when it is on disk."""
        append_line(self._path, alert.to_json())
        return True

    def close(self) -> None:
        """See `open`."""
