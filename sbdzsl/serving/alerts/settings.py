"""Settings of alerts: which sinks there are, what each is told, and how long it is tried.

A secret never stands in the settings: they name the environment variable or the file that holds it. Whoever writes one
there all the same is refused, and the refusal does not repeat it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from sbdzsl.config import HIDDEN, Settings
from sbdzsl.errors import ConfigError
from sbdzsl.lake.store import HOLDS_SECRET
from sbdzsl.verdict import Decision


class SecretSource(Settings):
    """Where a secret is kept: an environment variable or a file, of which the last line end is not part."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_one_place(cls, given: Any) -> Any:
        names_one = isinstance(given, Mapping) and len(given) == 1 and given.keys() <= {"env", "file"}
        if isinstance(given, cls) or (names_one and all(isinstance(place, str) and place for place in given.values())):
            return given
        raise PydanticCustomError(
            HIDDEN, "a secret does not stand in the settings: expected {{env: NAME}} or {{file: PATH}} that holds it"
        )

    def read(self) -> str:
        """The secret. Raises `ConfigError` where the place is empty or cannot be read."""
        place = f"environment variable {self.env}" if self.env else f"file {self.file}"
        try:
            secret = os.environ.get(self.env, "") if self.env else Path(self.file or "").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError("bad-config", f"{place}: the secret cannot be read: {reason}") from None
        secret = secret.removesuffix("\n").removesuffix("\r")
        if not secret:
            raise ConfigError("bad-config", f"{place} is empty or not set, expected a secret in it")
        return secret


def _a_list(given: Any) -> Any:
    if not isinstance(given, list | tuple):
        raise PydanticCustomError(HIDDEN, "expected a list of {{env: NAME}} or {{file: PATH}}")
    return given


def _without_secret(url: Any) -> Any:
    if isinstance(url, str) and not re.match(r"https?://[^/]", url):
        raise ValueError("expected a URL that begins with http:// or https://")
    if isinstance(url, str) and re.search(HOLDS_SECRET, url):
        raise PydanticCustomError(HIDDEN, "a password or a signature stands in the URL; leave it out")
    return url


class RetrySettings(Settings):
    """How long a sink is tried. The wait doubles with each failure, less up to a half by chance."""

    first_wait_s: float = Field(1.0, gt=0, description="after the first failure")
    longest_wait_s: float = Field(60.0, gt=0, description="between two attempts at a sink that cannot be reached")
    give_up_after_h: float = Field(72.0, gt=0, description="an alert older than this is given up when tried in vain")
    give_up_attempts: int = Field(
        12, ge=1, description="attempts in vain before any alert is given up; one that is refused itself: after so many"
    )


class SinkSettings(Settings):
    """What all kinds of sinks share: a name, and which answers are alerts to it."""

    kind: str
    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$|^$", description="in metrics and files; none: its kind")
    verdicts: tuple[Decision, ...] = Field(("defect", "unseen"), min_length=1, description="which verdicts it is told")
    surfaces: tuple[str, ...] = Field((), description="only these, where a surface was named; none: all")
    cameras: tuple[str, ...] = Field((), description="only these; none: all, and answers without a camera")
    retry: RetrySettings = RetrySettings()

    @property
    def label(self) -> str:
        """The sink's name, its kind where it has none."""
        return self.name or self.kind

    def wants(self, document: Mapping[str, Any]) -> bool:
        """Whether the sink is told of this answer or alert."""
        surface = document.get("surface")
        return (
            document["verdict"] in self.verdicts
            and (not self.surfaces or surface is None or surface in self.surfaces)
            and (not self.cameras or document.get("camera") in self.cameras)
        )


class FileSettings(SinkSettings):
    """One JSON document a line, appended and synced to disk."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, description="a local file; made with its folders")


class WebhookSettings(SinkSettings):
    """POST after Standard Webhooks."""

    kind: Literal["webhook"] = "webhook"
    url: Annotated[str, BeforeValidator(_without_secret)]
    secrets: Annotated[tuple[SecretSource, ...], BeforeValidator(_a_list)] = Field(
        min_length=1, description="each whsec_ and base64; every one signs, so that a new one can be brought in"
    )
    timeout_s: float = Field(10.0, gt=0, description="to connect, and for each pause in the answer")
    ca_file: str | None = Field(None, description="certificate authority (PEM) of the receiver; none: the system's")


class MqttSettings(SinkSettings):
    """Publishes at QoS 1."""

    kind: Literal["mqtt"] = "mqtt"
    host: str = Field(min_length=1)
    port: int | None = Field(None, ge=1, le=65535, description="none: 8883 with TLS, 1883 without")
    tls: bool = Field(True, description="false: in the clear, the password too")
    ca_file: str | None = Field(None, description="certificate authority (PEM) of the broker; none: the system's")
    certificate: str | None = Field(None, description="of this client (PEM), where the broker asks for one")
    private_key: str | None = Field(None, description="of that certificate (PEM)")
    username: str | None = None
    password: SecretSource | None = None
    client_id: str = Field("sbdzsl", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="its own for each service")
    topic: str = Field("sbdzsl", pattern=r"^[^+#$\x00/][^+#\x00]*$", description="all topics are below this")
    protocol: Literal["5", "3.1.1"] = Field("5", description="3.1.1 does not tell that a broker refused a message")
    keepalive_s: int = Field(30, ge=1, le=65535)
    timeout_s: float = Field(10.0, gt=0, description="to connect, and until the broker has acknowledged")

    @model_validator(mode="after")
    def _complete(self) -> MqttSettings:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both or neither")
        if self.password is not None and self.username is None:
            raise ValueError("there is a password without a username")
        return self


class OpcUaSettings(SinkSettings):
    """An OPC UA server in this process."""

    kind: Literal["opcua"] = "opcua"
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; others than loopback: see below")
    port: int = Field(4840, ge=1, le=65535)
    users: dict[str, SecretSource] = Field(default_factory=dict, description="name -> where the password is kept")
    allow_anonymous: bool = False
    certificate: str | None = Field(None, description="of this server (PEM or DER): signed and encrypted, nothing else")
    private_key: str | None = Field(None, description="of that certificate (PEM)")
    allow_plaintext: bool = Field(False, description="listen beyond loopback without a certificate")
    keep_results: int = Field(1000, ge=1, le=100_000, description="results that clients can read, the latest")
    acknowledged: bool = Field(
        False, description="a result counts as delivered when a client called AcknowledgeResults, not when it is ready"
    )

    @model_validator(mode="after")
    def _is_closed(self) -> OpcUaSettings:
        if not self.users and not self.allow_anonymous:
            raise ValueError("nobody could connect: name users, or set allow_anonymous")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both or neither")
        if not (self.certificate or self.allow_plaintext or _is_loopback(self.host)):
            raise ValueError(
                f"passwords and results would cross the network in the clear on {self.host}: give a certificate, "
                "listen on 127.0.0.1, or set allow_plaintext"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


AnySink = Annotated[FileSettings | WebhookSettings | MqttSettings | OpcUaSettings, Field(discriminator="kind")]


class AlertSettings(Settings):
    """Where alerts wait, and who is told. Without sinks there are no alerts."""

    folder: str = Field("alerts", min_length=1, description="on a local disk: the outbox and the dead-letter files")
    keep_days: float = Field(7.0, gt=0, description="delivered and dead alerts stay so long in the outbox")
    sinks: tuple[AnySink, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> AlertSettings:
        labels = [sink.label for sink in self.sinks]
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        if doubled:
            raise ValueError(f"two sinks are called {', '.join(doubled)}: give each a name of its own")
        return self
