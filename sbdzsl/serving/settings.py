"""Settings of the online service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sbdzsl.config import Promise, RuleSetting, Settings
from sbdzsl.runtime import Runtime
from sbdzsl.serving.alerts.settings import AlertSettings
from sbdzsl.serving.rules import AlarmSettings

Shape = Literal["fused", "routed"]

#: Hosts that only this machine can reach; without keys the service binds to nothing else.
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class KeepSettings(Settings):
    """What a service keeps of its answers below its data folder, and for how long."""

    good_share: float = Field(0.01, ge=0, le=1, description="share of the good images whose bytes are kept")
    max_images_mb: float = Field(2048, ge=0, description="of all kept images; the oldest good ones go first")
    recent_mb: float = Field(64, ge=0, description="images of late that are kept in memory for the page")
    journal_events: int = Field(200_000, ge=0, description="verdicts that the journal keeps once the log has them")
    log: str | None = Field(None, description="folder or URL of the verdict log; none: `log` in the data folder")
    log_rows: int = Field(2_000, ge=1, description="a part of the log is written when so many rows wait")
    log_seconds: float = Field(60.0, ge=0, description="or when one has waited so long")
    log_days: int | None = Field(None, ge=1, description="days that the log keeps; none: all")


class ServeSettings(Settings):
    """What is served, by how many threads, within which limits.

    Verdicts follow from the first group alone, and are those of an audit with the same bundle, policy and promise.
    """

    policy: RuleSetting | None = Field(None, description="threshold policy of all surfaces; none: the bundle's own")
    surface_policies: dict[str, RuleSetting] = Field(default_factory=dict, description="of single surfaces")
    promise: Promise | None = Field(None, description="what the router's false-alarm rate holds for")

    runtime: Runtime = Field("torch", description="what runs the nets")
    device: str = Field("cpu", description="device of the nets")
    workers: int = Field(1, ge=1, description="images judged at once in a process")
    threads: int | None = Field(
        None, ge=1, description="threads of the nets of one worker; none: the cores, shared among the workers"
    )
    decoders: int = Field(2, ge=1, description="threads that decode ahead of the nets")
    max_memory_mb: float | None = Field(None, ge=192, description="of judging one image; none: the bundle's own")

    max_queue: int = Field(16, ge=1, description="images that wait at most; one more is refused with 429")
    deadline_s: float = Field(10.0, gt=0, description="an image that is not judged by then is refused with 408")
    upload_timeout_s: float = Field(10.0, gt=0, description="a body that has not arrived by then is refused with 408")
    max_bytes: int = Field(64 * 2**20, gt=0, description="largest body of a request")
    max_images: int = Field(16, ge=1, description="images in one request")

    keys: str | None = Field(None, description="file of API keys; needed wherever others than this machine can connect")
    data: str | None = Field(None, description="folder on a local disk for journal, alerts and kept images")
    keep: KeepSettings = KeepSettings()
    alarms: AlarmSettings = AlarmSettings()
    alerts: AlertSettings = Field(AlertSettings(), description="who is told of alarms; its folder lies below `data`")
    public_url: str | None = Field(None, description="where people reach the service, for links in alerts")

    @model_validator(mode="after")
    def _alerts_have_a_place(self) -> ServeSettings:
        if self.alerts.sinks and self.data is None:
            raise ValueError("alerts have to be stored before the answer: give a folder, `data`")
        return self
