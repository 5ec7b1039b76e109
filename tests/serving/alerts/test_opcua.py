"""The OPC UA sink seen by a real client."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_lab import OpcUaReader, dispatching, draw_answer, until
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from serving_process import free_port

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.serving.alerts import Alert, AlertSettings, make_alert
from sbdzsl.serving.alerts.settings import OpcUaSettings, RetrySettings, SecretSource
from sbdzsl.serving.alerts.sinks.opcua import OpcUaSink

ALERT = make_alert(draw_answer(1), "http://inspect.example")
SPACE = "urn:sbdzsl:machinery-result"
#: By default a client leaves a server that does not answer for a second, which a busy machine may not.
PATIENT = {"timeout": 60, "watchdog_intervall": 60}


@pytest.fixture(scope="module", autouse=True)
def scada_password() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCADA_PASSWORD", "correct")
        yield


def settings(**more: Any) -> OpcUaSettings:
    return OpcUaSettings(**({"port": free_port(), "users": {"scada": SecretSource(env="SCADA_PASSWORD")}} | more))


def make_sink(given: OpcUaSettings, history: tuple[Alert, ...] = (), receipt: Any = lambda _: False) -> OpcUaSink:
    return OpcUaSink(given, lambda count: list(history)[-count:], receipt)


@contextlib.contextmanager
def running(given: OpcUaSettings, **more: Any) -> Iterator[OpcUaSink]:
    sink = make_sink(given, **more)
    sink.open()
    try:
        yield sink
    finally:
        sink.close()


@pytest.fixture(scope="module")
def server(scada_password: None) -> Iterator[tuple[OpcUaSettings, OpcUaSink]]:
    """One server for all tests that do not mind each other's results: it takes seconds to start."""
    given = settings()
    with running(given) as sink:
        yield given, sink


@contextlib.asynccontextmanager
async def connected(
    given: OpcUaSettings, user: str | None = "scada", password: str | None = "correct"
) -> AsyncIterator[tuple[Client, Any, int]]:
    """A client, the object ResultManagement and its namespace."""
    client = Client(f"opc.tcp://127.0.0.1:{given.port}/sbdzsl", **PATIENT)
    if user is not None:
        client.set_user(user)
        client.set_password(password)
    async with client:
        await client.load_data_type_definitions()
        space = await client.get_namespace_index(SPACE)
        yield client, await client.nodes.objects.get_child(f"{space}:ResultManagement"), space


def test_a_client_reads_a_result_by_the_names_of_the_specification(server: Any) -> None:
    async def read() -> None:
        async with connected(given) as (_, results, space):
            handle, result, error = await results.call_method(f"{space}:GetResultById", ALERT.id, ua.Variant(0, INT32))
            assert (handle, error) == (0, 0)
            about = result.ResultMetaData
            assert about.ResultId == ALERT.id
            assert about.ResultEvaluation == 2
            assert about.ResultEvaluation.name == "NotOK"
            assert (about.ResultState, about.IsPartial, about.IsSimulated) == (1, False, False)
            assert (about.PartId, about.InternalRecipeId) == ("part-1", "leather")
            assert about.InternalConfigurationId == "0123456789abcdef"
            assert about.ResultUri == ["http://inspect.example/v1/verdicts/1/overlay"]
            assert about.ResultEvaluationDetails.Text == "defect - leather - texture grainy; colour dark"
            times = about.ProcessingTimes
            assert times.ProcessingDuration == pytest.approx(15.5)
            assert (times.EndTime - times.StartTime).total_seconds() == pytest.approx(0.0155, abs=1e-5)
            assert about.CreationTime.isoformat() == ALERT.document["inspected_at"]
            assert json.loads(result.ResultContent[0].Value) == ALERT.document
            assert await results.call_method(f"{space}:ReleaseResultHandle", ua.Variant(0, ua.VariantType.UInt32)) == 0

    given, sink = server
    assert sink.deliver(ALERT)
    asyncio.run(read())


INT32 = ua.VariantType.Int32


@pytest.mark.parametrize(
    ("verdict", "evaluation", "state"), [("good", 1, 1), ("defect", 2, 1), ("unseen", 3, 1), ("error", 0, 4)]
)
def test_the_latest_result_says_how_it_was_evaluated(server: Any, verdict: str, evaluation: int, state: int) -> None:
    async def read() -> tuple[str, int, int]:
        async with connected(given) as (_, results, space):
            _, result, error = await results.call_method(f"{space}:GetLatestResult", ua.Variant(0, INT32))
            assert error == 0
            about = result.ResultMetaData
            return about.ResultId, int(about.ResultEvaluation), about.ResultState

    (given, sink), latest = server, make_alert(draw_answer(20 + evaluation, verdict, attributes=[]))
    sink.deliver(make_alert(draw_answer(30 + evaluation)))
    sink.deliver(latest)
    assert asyncio.run(read()) == (latest.id, evaluation, state)


def test_a_result_that_is_not_there_is_an_error_and_never_ok() -> None:
    async def read() -> None:
        async with connected(given) as (_, results, space):
            for method, arguments in [("GetLatestResult", ()), ("GetResultById", ("alert-0",))]:
                call = results.call_method(f"{space}:{method}", *arguments, ua.Variant(0, INT32))
                _, result, error = await call
                assert error == -1
                assert result.ResultMetaData.ResultId == "NA"
                assert result.ResultMetaData.ResultEvaluation is None
            assert f"{space}:AcknowledgeResults" not in [
                (await node.read_browse_name()).to_string() for node in await results.get_children()
            ]

    given = settings()
    with running(given):
        asyncio.run(read())


def test_subscribers_hear_of_each_result(server: Any) -> None:
    async def listen() -> list[Any]:
        events: list[Any] = []

        class Handler:
            def event_notification(self, event: Any) -> None:
                events.append(event)

        async with connected(given) as (client, results, space):
            kind = await client.nodes.base_event_type.get_child(f"{space}:ResultReadyEventType")
            subscription = await client.create_subscription(50, Handler())
            await subscription.subscribe_events(results, evtypes=[kind])
            for number in range(40, 43):
                await asyncio.to_thread(sink.deliver, make_alert(draw_answer(number)))
            for _ in range(200):
                if len(events) == 3:
                    break
                await asyncio.sleep(0.05)
        return events

    given, sink = server
    events = asyncio.run(listen())
    assert [event.PartId for event in events] == ["part-40", "part-41", "part-42"]
    assert [event.ResultEvaluation for event in events] == [2, 2, 2]
    assert json.loads(events[0].ResultContent)["sequence"] == 40
    assert events[0].Severity == 700


def test_the_oldest_results_make_room() -> None:
    async def names() -> list[str]:
        async with connected(given) as (_, results, space):
            folder = await results.get_child(f"{space}:Results")
            return [(await node.read_browse_name()).Name for node in await folder.get_children()]

    given, alerts = settings(keep_results=2), [make_alert(draw_answer(number)) for number in range(4)]
    with running(given) as sink:
        for alert in alerts:
            assert sink.deliver(alert)
        assert asyncio.run(names()) == [alerts[2].id, alerts[3].id]


@pytest.mark.parametrize(("user", "password"), [(None, None), ("scada", "wrong"), ("scada", ""), ("root", "correct")])
def test_nobody_comes_in_without_name_and_password(server: Any, user: str | None, password: str | None) -> None:
    async def connect() -> None:
        async with connected(given, user, password):
            raise AssertionError("let in")

    given, _ = server
    with pytest.raises(ua.UaStatusCodeError, match=r"BadUserAccessDenied|BadIdentityTokenRejected"):
        asyncio.run(connect())


def test_anonymous_clients_come_in_where_that_is_set_and_may_only_read() -> None:
    async def try_to_write() -> None:
        async with connected(given, None) as (_, results, space):
            node = await results.get_child([f"{space}:Results", f"{space}:{ALERT.id}"])
            assert (await node.read_value()).ResultMetaData.ResultId == ALERT.id
            with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
                await node.write_value(None)
            with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
                await node.delete()

    given = settings(users={}, allow_anonymous=True)
    with running(given) as sink:
        sink.deliver(ALERT)
        asyncio.run(try_to_write())


async def _make_certificate(folder: Path) -> None:
    from asyncua.crypto.cert_gen import setup_self_signed_certificate
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for name, uri in [("server", "urn:sbdzsl:alerts"), ("client", "urn:scada")]:
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        await setup_self_signed_certificate(
            folder / f"{name}.key.pem", folder / f"{name}.der", uri, "127.0.0.1", uses, {"commonName": name}
        )


def test_with_a_certificate_only_encrypted_connections_are_taken(tmp_path: Path) -> None:
    async def encrypted() -> str:
        client = Client(f"opc.tcp://127.0.0.1:{given.port}/sbdzsl", **PATIENT)
        client.application_uri = "urn:scada"
        client.set_user("scada")
        client.set_password("correct")
        await client.set_security(
            SecurityPolicyBasic256Sha256, str(tmp_path / "client.der"), str(tmp_path / "client.key.pem")
        )
        async with client:
            await client.load_data_type_definitions()
            space = await client.get_namespace_index(SPACE)
            results = await client.nodes.objects.get_child(f"{space}:ResultManagement")
            _, result, _ = await results.call_method(f"{space}:GetLatestResult", ua.Variant(0, INT32))
            return str(result.ResultMetaData.ResultId)

    async def in_the_clear() -> None:
        async with connected(given):
            raise AssertionError("let in")

    asyncio.run(_make_certificate(tmp_path))
    given = settings(certificate=str(tmp_path / "server.der"), private_key=str(tmp_path / "server.key.pem"))
    with running(given) as sink:
        sink.deliver(ALERT)
        assert asyncio.run(encrypted()) == ALERT.id
        with pytest.raises((ua.UaError, OSError, asyncio.TimeoutError)):
            asyncio.run(in_the_clear())


def test_a_certificate_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file at .*none\.der"):
        make_sink(settings(certificate=str(tmp_path / "none.der"), private_key="k.pem"))


def test_a_port_that_is_taken_is_an_outage(server: Any) -> None:
    other = make_sink(server[0])
    with pytest.raises(AlertError, match="cannot start") as error:
        other.open()
    assert error.value.code == "sink-unreachable"
    other.close()


def test_results_come_back_after_a_restart(tmp_path: Path) -> None:
    async def names() -> list[str]:
        async with connected(given) as (_, results, space):
            folder = await results.get_child(f"{space}:Results")
            return [(await node.read_browse_name()).Name for node in await folder.get_children()]

    given, alerts = settings(keep_results=3), [make_alert(draw_answer(number)) for number in range(5)]
    for _ in range(2):
        with dispatching(AlertSettings(folder=str(tmp_path), sinks=(given,))) as (outbox, dispatcher):
            for alert in alerts:
                outbox.put(alert)
            until(lambda dispatcher=dispatcher: dispatcher.statistics()[0].pending == 0)
            until(lambda: _listens(given.port))
            assert asyncio.run(names()) == [alert.id for alert in alerts[2:]]


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_with_acknowledgement_an_alert_is_delivered_when_a_client_has_it(tmp_path: Path) -> None:
    given = settings(acknowledged=True, keep_results=4, retry=RetrySettings(first_wait_s=0.05, longest_wait_s=0.1))
    alerts = [make_alert(draw_answer(number)) for number in range(10)]
    with dispatching(AlertSettings(folder=str(tmp_path), sinks=(given,))) as (outbox, dispatcher):
        for alert in alerts:
            outbox.put(alert)
        until(lambda: dispatcher.statistics()[0].state == "failing")
        found = dispatcher.statistics()[0]
        assert (found.pending, found.delivered) == (10, 0)
        assert found.last_error is not None
        assert "4 results wait for AcknowledgeResults" in found.last_error
        reader = OpcUaReader(given.port, "scada", "correct")
        until(lambda: dispatcher.statistics()[0].delivered == 10)
        reader.close()
    assert set(reader.seen) == {alert.id for alert in alerts}


def test_an_acknowledgement_says_which_results_it_is_good_for() -> None:
    async def acknowledge() -> Any:
        async with connected(given) as (_, results, space):
            wanted = ua.Variant([ALERT.id, "alert-0"], ua.VariantType.String, is_array=True)
            first = await results.call_method(f"{space}:AcknowledgeResults", wanted)
            only = ua.Variant([OTHER.id], ua.VariantType.String, is_array=True)
            return first, await results.call_method(f"{space}:AcknowledgeResults", only)

    given = settings(acknowledged=True)
    with running(given, receipt=lambda alert_id: alert_id in (ALERT.id, OTHER.id)) as sink:
        assert not sink.deliver(ALERT)
        assert not sink.deliver(OTHER)
        assert asyncio.run(acknowledge()) == ([[0, -1], -1], [[], 0])


OTHER = make_alert(draw_answer(2))


def test_an_acknowledgement_that_cannot_be_stored_is_refused() -> None:
    async def acknowledge() -> Any:
        async with connected(given) as (_, results, space):
            wanted = ua.Variant([ALERT.id], ua.VariantType.String, is_array=True)
            answer = await results.call_method(f"{space}:AcknowledgeResults", wanted)
            _, result, _ = await results.call_method(f"{space}:GetLatestResult", ua.Variant(0, INT32))
            return answer, result.ResultMetaData.ResultId

    def full(_: str) -> bool:
        raise AlertError("outbox-unusable", "disk full")

    given = settings(acknowledged=True)
    with running(given, receipt=full) as sink:
        sink.deliver(ALERT)
        assert asyncio.run(acknowledge()) == ([[-2], -2], ALERT.id)
