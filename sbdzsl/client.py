"""The client of online inspection: one image in, one `Answer` out, over HTTP.

    with InspectionClient("https://inspect.plant.example", api_key=key) as client:
        answer = client.inspect(content, camera="line7", sequence=4711)
        if answer.verdict != "good": ...

It loads neither torch nor Ray and starts at once, so it may run on a camera PC. What cannot be judged is an answer with
the verdict `error`; what went wrong between here and the service is a `ServiceError`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import stamina

from sbdzsl.answer import Answer, read_answer
from sbdzsl.errors import ConfigError, ImageError, SbdzslError, ServiceError

#: Seconds of one request, all its attempts together.
TIMEOUT_S = 10.0
#: Problems that pass by themselves: the request is sent again.
_PASSING = ("overloaded", "not-ready", "deadline-exceeded", "unreachable")
#: What a status means where something in between, such as a proxy, answered without a problem document.
_BARE_STATUS = {
    400: "bad-request",
    401: "unauthorised",
    403: "missing-scope",
    408: "deadline-exceeded",
    429: "overloaded",
    # A door whose server died under the request; the service's own mistakes come as problem documents.
    500: "not-ready",
    502: "not-ready",
    503: "not-ready",
    504: "not-ready",
}
#: A later kind wins: of `unreachable`, which lakes know too, the service's is meant.
_KIND_OF_CODE = {code: kind for kind in SbdzslError.__subclasses__() for code in kind.CODES} | dict.fromkeys(
    ServiceError.CODES, ServiceError
)


class InspectionClient:
    """Talks to one service over kept connections. Safe to share between threads.

    `endpoint` is the service's URL, http or https; `api_key` is sent with each request. `timeout_s` bounds a request
    with all its attempts; a wait between two of them may end up to a second later. `verify` is whether and, as a path,
    by which certificates (PEM) the service's certificate is checked. Proxies of the environment are used, but never
    towards this machine. Raises `ConfigError` for an endpoint, a key or a file that cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        verify: bool | str | Path = True,
    ) -> None:
        url = _endpoint_url(endpoint)
        if timeout_s <= 0:
            raise ConfigError("bad-config", f"found a timeout of {timeout_s:g} s, expected more than 0")
        # A line's end that came along from a file would be an error of each request, and one that prints the key.
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ConfigError("bad-config", "the API key is not one word of ASCII letters, digits and signs")
        self.endpoint = str(url)
        self._timeout_s = timeout_s
        self._gave_up = threading.Event()
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            verify=verify if isinstance(verify, bool) else _trust(Path(verify)),
            trust_env=not _is_loopback(url.host),
            limits=httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60),
        )

    def __enter__(self) -> InspectionClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. No request may be under way."""
        self._http.close()

    def give_up(self) -> None:
        """From now on no request is tried again; those under way in other threads end with what they get."""
        self._gave_up.set()

    def inspect(
        self,
        content: bytes,
        *,
        camera: str | None = None,
        trigger_id: str | None = None,
        part_id: str | None = None,
        sequence: int | None = None,
        captured_at: datetime | None = None,
        name: str | None = None,
        bit_depth: int | None = None,
        policy: str | None = None,
        surface: str | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Judge the bytes of one image file.

        `sequence` counts the camera's images; `captured_at` needs a time zone; `surface` is the one expected, which is
        compared and not trusted. `policy` is the word of a threshold policy, the bundle's own if None. An image that
        cannot be judged is an answer `error` with its code. Requests of the same `idempotency_key` are one request for
        the service; without one each call is a request of its own, and its attempts share a key.

        Raises `ServiceError` or `ConfigError` with the service's own code; "unreachable" where there is no service,
        "bad-answer" where something else answers.
        """
        given = {
            "camera": camera,
            "trigger_id": trigger_id,
            "part_id": part_id,
            "sequence": sequence,
            "captured_at": _iso(captured_at),
            "name": name,
            "bit_depth": bit_depth,
            "policy": policy,
            "surface": surface,
        }
        reply = self._request("POST", "/v1/inspect", content, given, idempotency_key or str(uuid.uuid4()))
        if reply.is_success:
            return read_answer(_read_json(reply))
        problem = _read_problem(reply)
        verdict = problem.get("verdict")
        if isinstance(verdict, dict):
            return read_answer(verdict)
        error = _error_of(reply, problem)
        if not isinstance(error, ImageError):
            raise error
        # Refused before there was a verdict, such as by its length: the image is at fault all the same.
        return Answer(
            image_id="",
            uri=name or "",
            verdict="error",
            bundle="",
            error_code=error.code,
            error_detail=error.message,
            request_id=str(problem.get("request_id") or ""),
            camera=camera,
            trigger_id=trigger_id,
            part_id=part_id,
            sequence=sequence,
            captured_at=captured_at,
            surface_expected=surface,
        )

    def inspect_file(self, path: str | Path, **given: Any) -> Answer:
        """Judge an image file of this machine: `inspect` with its content and, unless given, its name.

        Raises `OSError` where it cannot be read, and as `inspect` does.
        """
        file = Path(path)
        return self.inspect(file.read_bytes(), **({"name": file.name} | given))

    def overlay(self, content: bytes, **given: Any) -> bytes:
        """The image as PNG with what was found drawn into it. `given` as the service's query parameters.

        Raises `ImageError` for an image that cannot be judged, and as `inspect` does.
        """
        reply = self._request("POST", "/v1/inspect", content, given, str(uuid.uuid4()), accept="image/png")
        if not reply.is_success:
            raise _error_of(reply, _read_problem(reply))
        if not reply.content.startswith(b"\x89PNG"):
            found = reply.headers.get("content-type")
            raise ServiceError("bad-answer", f"{reply.url} answered {found}, expected a PNG image")
        return reply.content

    def surfaces(self) -> dict[str, Any]:
        """The surfaces that the service knows, each with its threshold. Raises as `inspect` does."""
        return self._get("/v1/surfaces")

    def bundle(self) -> dict[str, Any]:
        """The bundle that the service judges with, as it describes it. Raises as `inspect` does."""
        return self._get("/v1/bundle")

    def is_ready(self) -> bool:
        """Whether the service has judged an image and takes more. Asked once, not again.

        Raises `ServiceError` where something answers that is not the service.
        """
        try:
            reply = self._attempt("GET", "/readyz", None, {}, {}, time.monotonic() + self._timeout_s)
        except _PassingProblem:
            return False
        if not reply.is_success:
            raise _error_of(reply, _read_problem(reply))
        return True

    def _get(self, path: str) -> dict[str, Any]:
        reply = self._request("GET", path)
        if not reply.is_success:
            raise _error_of(reply, _read_problem(reply))
        return _read_json(reply)

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        params: Mapping[str, Any] = MappingProxyType({}),
        idempotency_key: str | None = None,
        accept: str = "application/json",
    ) -> _Reply:
        """Send until there is an answer that will stay the same, or no time. Raises what stood in the way last."""
        headers = {"Accept": accept}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        known = {name: value for name, value in params.items() if value is not None}
        deadline = time.monotonic() + self._timeout_s

        def is_worth_another(error: Exception) -> bool | float:
            if not isinstance(error, _PassingProblem) or self._gave_up.is_set():
                return False
            wait_s = error.retry_after_s or 0.0
            # Stamina would begin to wait before it looks at the clock.
            return time.monotonic() + wait_s < deadline and (wait_s or True)

        attempts = stamina.retry_context(
            is_worth_another, attempts=None, timeout=self._timeout_s, wait_initial=0.1, wait_max=1.0, wait_jitter=0.2
        )
        told: _PassingProblem | None = None
        try:
            for attempt in attempts:
                with attempt:
                    try:
                        return self._attempt(method, path, content, known, headers, deadline)
                    except _PassingProblem as problem:
                        # The last attempt may have little time: that it ran out says less than what was met before.
                        if told is None or problem.error.code != "deadline-exceeded":
                            told = problem
                        raise
        except _PassingProblem:
            assert told is not None
            raise told.error from told.__cause__
        raise AssertionError("stamina raises the last error")

    def _attempt(
        self,
        method: str,
        path: str,
        content: bytes | None,
        params: Mapping[str, Any],
        headers: Mapping[str, str],
        deadline: float,
    ) -> _Reply:
        """One attempt, over by `deadline`. Raises `_PassingProblem` for what may be otherwise the next time."""
        left_s = max(deadline - time.monotonic(), 0.001)
        try:
            with self._http.stream(
                method, path, content=content, params=params, headers=headers, timeout=left_s
            ) as response:
                # The limit of `httpx2` is one of each single read: a server that drips would outlast it.
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("the answer came too slowly", request=response.request)
                reply = _Reply(str(response.url), response.status_code, response.headers, bytes(body))
        except httpx2.TimeoutException as error:
            message = f"{self.endpoint} gave no answer within {self._timeout_s:g} s; raise the timeout or look why"
            raise _PassingProblem(ServiceError("deadline-exceeded", message)) from error
        except httpx2.RequestError as error:
            message = f"{self.endpoint} cannot be reached: {error}; is the service running, and is this its address?"
            raise _PassingProblem(ServiceError("unreachable", message)) from error
        if not reply.is_success:
            problem = _read_problem(reply)
            failure = _error_of(reply, problem)
            if isinstance(failure, ServiceError) and failure.code in _PASSING and "verdict" not in problem:
                raise _PassingProblem(failure, _retry_after_s(reply))
        return reply


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer of the service, read to its end."""

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class _PassingProblem(Exception):  # noqa: N818
    """What stood in the way of one attempt, and how long the service wants to be left alone."""

    def __init__(self, error: ServiceError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


def _read_json(reply: _Reply) -> dict[str, Any]:
    found = _read_problem(reply)
    if not found:
        kind = reply.headers.get("content-type")
        raise ServiceError("bad-answer", f"{reply.url} answered {kind}, expected a JSON object; is this the service?")
    return found


def _read_problem(reply: _Reply) -> dict[str, Any]:
    """The problem document of RFC 9457, empty where there is none."""
    try:
        found = json.loads(reply.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error_of(reply: _Reply, problem: Mapping[str, Any]) -> SbdzslError:
    """The error that a problem document stands for, or that the status does where there is none."""
    code, status = problem.get("code"), reply.status
    kind = _KIND_OF_CODE.get(code) if isinstance(code, str) else None
    if kind is not None and isinstance(code, str):
        return kind(code, str(problem.get("detail") or problem.get("title") or f"status {status}"))
    code = "bad-answer" if status == 500 and problem else _BARE_STATUS.get(status, "bad-answer")
    detail = problem.get("detail") or "no reason given"
    return ServiceError(code, f"{reply.url} answered status {status} without a known code: {detail}")


def _retry_after_s(reply: _Reply) -> float | None:
    """Seconds of `Retry-After`; None for its other form, a date, which needs clocks that agree."""
    try:
        return max(0.0, float(reply.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _endpoint_url(endpoint: str) -> httpx2.URL:
    try:
        url = httpx2.URL(endpoint)
    except httpx2.InvalidURL as error:
        raise ConfigError("bad-config", f"endpoint {endpoint!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("bad-config", f"found endpoint {endpoint!r}, expected a URL such as http://127.0.0.1:8000")
    if url.userinfo:
        raise ConfigError("bad-config", f"the endpoint at {url.host} holds a password; give an API key instead")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _trust(certificates: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(certificates))
    except OSError as error:
        raise ConfigError("bad-config", f"certificates {certificates}: {error.strerror or error}") from None


def _iso(moment: datetime | None) -> str | None:
    if moment is not None and moment.tzinfo is None:
        raise ConfigError("bad-config", f"found the time {moment.isoformat()} without a time zone, expected one")
    return moment.astimezone(timezone.utc).isoformat() if moment is not None else None
