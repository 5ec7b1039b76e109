import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import Response
from serving_process import free_port

from sbdzsl.answer import Answer, read_answer
from sbdzsl.client import InspectionClient
from sbdzsl.errors import ConfigError, ImageError, ServiceError
from sbdzsl.verdict import Region
from tests.inspection_service import BAD, BUNDLE, DEFECT, GOOD, PNG, Service, canned, problem, running


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[InspectionClient]:
    with InspectionClient(service.endpoint, timeout_s=5) as client:
        yield client


def test_an_answer_has_the_verdict_and_what_was_asked(service: Service, client: InspectionClient) -> None:
    moment = datetime(2026, 5, 4, 12, tzinfo=timezone(timedelta(hours=2)))
    answer = client.inspect(
        DEFECT,
        camera="line 7 / left",
        trigger_id="t&1",
        part_id="p1",
        sequence=0,
        captured_at=moment,
        name="a.png",
        bit_depth=12,
        policy="cost:20@0.01",
        surface="steel",
    )
    assert (answer.verdict, answer.surface, answer.result_evaluation, answer.bundle) == ("defect", "steel", 2, BUNDLE)
    assert answer.regions == (Region(1, 2, 30, 4, 99, 3.5),)
    assert (answer.camera, answer.trigger_id, answer.part_id, answer.sequence) == ("line 7 / left", "t&1", "p1", 0)
    assert answer.captured_at == moment
    assert (answer.request_id, answer.event_id, answer.surface_expected) == ("r1", 1, "steel")
    assert answer.inspected_at.tzinfo is not None
    assert service.seen[0].params == {
        "camera": "line 7 / left",
        "trigger_id": "t&1",
        "part_id": "p1",
        "sequence": "0",
        "captured_at": "2026-05-04T10:00:00+00:00",
        "name": "a.png",
        "bit_depth": "12",
        "policy": "cost:20@0.01",
        "surface": "steel",
    }


def test_only_what_is_given_is_sent_and_connections_are_kept(service: Service, client: InspectionClient) -> None:
    client.inspect(GOOD)
    client.inspect(GOOD)
    first, second = service.seen
    assert first.params == {}
    assert "authorization" not in first.headers
    assert first.connection == second.connection
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_the_key_is_sent(service: Service) -> None:
    with InspectionClient(service.endpoint, api_key="secret") as client:
        client.inspect(GOOD)
    assert service.seen[0].headers["authorization"] == "Bearer secret"


def test_a_file_goes_by_its_name(service: Service, client: InspectionClient, tmp_path: Path) -> None:
    file = tmp_path / "part 1.png"
    file.write_bytes(DEFECT)
    assert client.inspect_file(file, camera="a").uri == "part 1.png"
    assert service.seen[0].params == {"name": "part 1.png", "camera": "a"}
    assert client.inspect_file(file, name="b").uri == "b"


def test_a_bad_image_is_an_answer(client: InspectionClient) -> None:
    answer = client.inspect(BAD, camera="a")
    assert (answer.verdict, answer.error_code, answer.result_evaluation) == ("error", "unreadable", 0)
    assert answer.camera == "a"
    assert answer.request_id == "r1"


def test_an_image_refused_before_it_was_judged_is_an_answer_too(service: Service, client: InspectionClient) -> None:
    service.script.append(problem(413, "too-large", request_id="r9"))
    answer = client.inspect(GOOD, name="a.png", sequence=3)
    assert (answer.verdict, answer.error_code, answer.error_detail) == ("error", "too-large", "it is too-large")
    assert (answer.uri, answer.sequence, answer.request_id, answer.bundle) == ("a.png", 3, "r9", "")


@pytest.mark.parametrize(
    "passing",
    [
        problem(429, "overloaded"),
        problem(503, "not-ready"),
        problem(408, "deadline-exceeded"),
        Response("<html>bad gateway", 502),
        Response("Internal Server Error", 500),
        Response("", 504),
    ],
)
def test_what_passes_is_tried_again_under_the_same_key(
    service: Service, client: InspectionClient, passing: Response
) -> None:
    service.script += [passing, passing]
    assert client.inspect(GOOD).verdict == "good"
    assert len(service.seen) == 3
    assert len(set(service.keys)) == 1


def test_retry_after_is_honoured(service: Service, client: InspectionClient) -> None:
    service.script.append(problem(429, "overloaded", {"Retry-After": "2"}))
    client.inspect(GOOD)
    assert 2 <= service.seen[1].at - service.seen[0].at < 3


def test_a_wait_that_would_outlast_the_deadline_is_not_begun(service: Service, client: InspectionClient) -> None:
    service.script.append(problem(429, "overloaded", {"Retry-After": "60"}))
    began = time.monotonic()
    with pytest.raises(ServiceError, match="it is overloaded") as caught:
        client.inspect(GOOD)
    assert caught.value.code == "overloaded"
    assert time.monotonic() - began < 2
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad-request", ServiceError),
        (400, "bad-config", ConfigError),
        (401, "unauthorised", ServiceError),
        (403, "missing-scope", ServiceError),
        (409, "idempotency-in-flight", ServiceError),
        (422, "idempotency-mismatch", ServiceError),
    ],
)
def test_other_problems_are_errors_at_once(
    service: Service, client: InspectionClient, status: int, code: str, kind: type[Exception]
) -> None:
    service.script.append(problem(status, code))
    with pytest.raises(kind, match=f"it is {code}") as caught:
        client.inspect(GOOD)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (Response("<html>hello", 200), "bad-answer"),
        (Response("[1]", 200), "bad-answer"),
        (Response("{}", 200), "bad-answer"),
        (Response("", 302, {"Location": "/login"}), "bad-answer"),
        (problem(500, "internal"), "bad-answer"),
        (Response("who are you", 401), "unauthorised"),
        (problem(418, "no-such-code"), "bad-answer"),
    ],
)
def test_what_is_no_answer_says_so(service: Service, client: InspectionClient, response: Response, code: str) -> None:
    service.script.append(response)
    with pytest.raises(ServiceError) as caught:
        client.inspect(GOOD)
    assert caught.value.code == code
    assert len(service.seen) == 1


def test_an_evaluation_that_is_not_its_verdicts_is_refused() -> None:
    values = canned(DEFECT).to_json()
    assert read_answer(values | {"of a later version": 1}).verdict == "defect"
    for wrong in (values | {"result_evaluation": 1}, {k: v for k, v in values.items() if k != "result_evaluation"}):
        with pytest.raises(ServiceError, match="result_evaluation"):
            read_answer(wrong)


def test_an_answer_survives_the_wire() -> None:
    answer = canned(DEFECT)
    assert read_answer(answer.to_json()) == answer
    assert answer.to_json().keys() == {field.name for field in fields(Answer)}


def test_no_service_is_unreachable_within_the_deadline() -> None:
    began = time.monotonic()
    with (
        InspectionClient(f"http://127.0.0.1:{free_port()}", timeout_s=1) as client,
        pytest.raises(ServiceError, match="cannot be reached") as caught,
    ):
        client.inspect(GOOD)
    assert caught.value.code == "unreachable"
    assert 0.5 < time.monotonic() - began < 3


def test_a_service_that_hangs_is_given_up_at_the_deadline(service: Service) -> None:
    service.delay_s = 3
    began = time.monotonic()
    with (
        InspectionClient(service.endpoint, timeout_s=0.5) as client,
        pytest.raises(ServiceError, match=r"within 0.5 s") as caught,
    ):
        client.inspect(GOOD)
    assert caught.value.code == "deadline-exceeded"
    assert time.monotonic() - began < 2


def test_what_was_met_is_told_and_not_that_time_ran_out(service: Service) -> None:
    service.script += [problem(503, "not-ready") for _ in range(3)]
    service.delay_s = 5
    with InspectionClient(service.endpoint, timeout_s=3) as client, pytest.raises(ServiceError) as caught:
        client.inspect(GOOD)
    assert caught.value.code == "not-ready"
    assert len(service.seen) == 4


class _RawServer(threading.Thread):
    """Answers each connection with the next of the byte strings, dripped with pauses, and closes it."""

    def __init__(self, *answers: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._answers, self._socket = answers, socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        with self._socket:
            for answer in self._answers:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    try:
                        for part in answer:
                            connection.sendall(part)
                            time.sleep(0.2)
                    except OSError:  # the client left, as it should
                        continue


def test_a_connection_that_breaks_is_tried_again() -> None:
    body = b'{"path": "x"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = _RawServer([], [head, body[:4]], [head + body])
    with InspectionClient(server.endpoint, timeout_s=5) as client:
        assert client.bundle() == {"path": "x"}


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server = _RawServer([head, *[b"x"] * 100])
    began = time.monotonic()
    with InspectionClient(server.endpoint, timeout_s=1) as client, pytest.raises(ServiceError) as caught:
        client.bundle()
    assert caught.value.code in ("deadline-exceeded", "unreachable")
    assert time.monotonic() - began < 3


def test_given_up_nothing_is_tried_again(service: Service, client: InspectionClient) -> None:
    service.script.append(problem(503, "not-ready"))
    client.give_up()
    with pytest.raises(ServiceError):
        client.inspect(GOOD)
    assert len(service.seen) == 1


def test_proxies_are_not_asked_about_this_machine(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for endpoint in (service.endpoint, service.endpoint.replace("127.0.0.1", "localhost")):
        with InspectionClient(endpoint, timeout_s=2) as client:
            assert client.inspect(GOOD).verdict == "good"


def test_overlay(service: Service, client: InspectionClient) -> None:
    assert client.overlay(DEFECT, policy="max-f1") == PNG
    assert service.seen[0].params == {"policy": "max-f1"}
    with pytest.raises(ImageError, match="unreadable"):
        client.overlay(BAD)
    service.script.append(Response("{}"))
    with pytest.raises(ServiceError, match="expected a PNG"):
        client.overlay(DEFECT)


def test_what_the_service_says_of_itself(service: Service, client: InspectionClient) -> None:
    assert client.surfaces() == {"path": "/v1/surfaces"}
    assert client.bundle() == {"path": "/v1/bundle"}
    assert client.is_ready()
    service.is_ready = False
    assert not client.is_ready()
    service.script.append(Response("no", 404))
    with pytest.raises(ServiceError):
        client.is_ready()
    with InspectionClient(f"http://127.0.0.1:{free_port()}", timeout_s=1) as nobody:
        assert not nobody.is_ready()


@pytest.mark.parametrize("endpoint", ["", "service:8000", "ftp://a", "http://", "http://user:pw@a", "http://a:b"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InspectionClient(endpoint)
    assert "pw" not in caught.value.message


@pytest.mark.parametrize("key", ["", "secret\n", "two words", "schlüssel"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as caught:
        InspectionClient("http://a", api_key=key)
    assert key not in caught.value.message or not key


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    with running(ssl_keyfile=key, ssl_certfile=certificate) as service:
        with InspectionClient(service.endpoint, verify=certificate) as client:
            assert client.inspect(GOOD).verdict == "good"
        with (
            InspectionClient(service.endpoint, timeout_s=1) as client,
            pytest.raises(ServiceError, match="certificate") as caught,
        ):
            client.inspect(GOOD)
    assert caught.value.code == "unreachable"
    assert len(service.seen) == 1


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of this machine, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    moment = datetime.now(timezone.utc)
    built = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), moment, moment + timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    no_password = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, no_password))
    (folder / "certificate.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return folder / "key.pem", folder / "certificate.pem"


def test_arguments_that_cannot_be_used(client: InspectionClient, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        client.inspect(GOOD, captured_at=datetime(2026, 1, 1))
    with pytest.raises(ConfigError, match="timeout"):
        InspectionClient("http://a", timeout_s=0)
    with pytest.raises(ConfigError, match="certificates"):
        InspectionClient("https://a", verify=tmp_path / "none.pem")
