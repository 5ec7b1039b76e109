"""The client and the real service, both as users start them: the answer is the inspector's verdict, field by field."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import watch_kills

from sbdzsl.client import InspectionClient
from sbdzsl.errors import ConfigError, ImageError, ServiceError
from sbdzsl.gateway_record import read_record, to_record
from sbdzsl.image import decode
from sbdzsl.inspector import Inspector, load_image
from tests.conftest import PASSING, Trained

pytestmark = pytest.mark.slow


@pytest.fixture
def client(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InspectionClient]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    line = watch_kills.Line(tmp_path / "line", trained.bundle_url)
    try:
        line.start("service")
        line.wait_for_service()
        with InspectionClient(line.endpoint) as client:
            yield client
    finally:
        line.close()


def test_answers_are_the_inspectors_verdicts(trained: Trained, client: InspectionClient) -> None:
    inspector = Inspector(trained.bundle)
    seen = set()
    for number, uri in enumerate(trained.manifest["uri"].to_pylist()[::10]):
        content = Path(uri).read_bytes()
        answer = client.inspect_file(uri, camera="left", sequence=number, part_id=f"p{number}")
        verdict = inspector.decide(load_image("", "", inspector.bundle.settings.image, content=content))
        found, expected = (json.loads(json.dumps(given.to_json())) for given in (answer, verdict))
        same = expected.keys() - PASSING
        assert {name: found[name] for name in same} == {name: expected[name] for name in same}
        assert (answer.camera, answer.sequence, answer.part_id) == ("left", number, f"p{number}")
        record = read_record(to_record(answer))
        assert (record.verdict, record.sequence, record.surface) == (answer.verdict, number, answer.surface)
        seen.add(answer.verdict)
    assert seen >= {"good", "defect", "unseen"}
    assert client.surfaces().keys() == set(trained.bundle.surfaces)
    assert client.bundle()["bundle"] == trained.bundle.digest

    content = Path(trained.manifest["uri"][0].as_py()).read_bytes()
    decode(client.overlay(content), inspector.bundle.settings.image)
    first, again = (client.inspect(content, idempotency_key="k") for _ in range(2))
    assert first == again
    assert client.inspect(content).event_id != first.event_id


def test_refusals_of_the_real_service(client: InspectionClient) -> None:
    for content, code in ((b"", "empty"), (b"no image", "unsupported-format"), (b"\x89PNG\r\n\x1a\n", "truncated")):
        answer = client.inspect(content, name="a.png", sequence=1)
        assert (answer.verdict, answer.result_evaluation, answer.sequence) == ("error", 0, 1)
        assert answer.error_code in (code, "unreadable")
        with pytest.raises(ImageError):
            client.overlay(content)
    for wrong in ({"policy": "no-such"}, {"surface": "no-such"}):
        with pytest.raises(ConfigError, match="no-such"):
            client.inspect(b"x", **wrong)
    with pytest.raises(ServiceError, match="sequence") as caught:
        client.inspect(b"x", sequence=-1)
    assert caught.value.code == "bad-request"
