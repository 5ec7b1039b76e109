"""Drift of live images: an alarm where the light has changed, and none where it has not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from sbdzsl.inspector import Inspector, load_image
from sbdzsl.report.drift import MEASURES
from sbdzsl.report.gallery import references_of
from sbdzsl.serving import monitor as monitors
from sbdzsl.serving.alarms import Condition
from sbdzsl.serving.answers import Shot, answer_document
from sbdzsl.serving.live_drift import LiveDrift, Reference
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.rules import AlarmSettings
from tests.conftest import SEEN, Trained


def answers(trained: Trained, gain: float) -> list[dict[str, object]]:
    """What the service would say of all good images of one surface under other light."""
    inspector = Inspector(trained.bundle)
    rows = trained.manifest.select(["surface", "label", "uri"]).to_pylist()
    found = []
    for row in rows:
        if (row["surface"], row["label"]) == (SEEN[0], "benign"):
            grey = cv2.imread(row["uri"], cv2.IMREAD_UNCHANGED)
            done, content = cv2.imencode(".png", np.clip(grey * gain, 0, np.iinfo(grey.dtype).max).astype(grey.dtype))
            assert done
            loaded = load_image("0" * 64, "", trained.bundle.settings.image, content=content.tobytes())
            found.append(answer_document(inspector.decide(loaded), Shot(camera="c1"), "request", 0.0))
    return found


async def recorded(folder: Path, documents: Sequence[dict[str, object]]) -> Recorder:
    """A recorder that was told all of these, twice: some dozens are needed to say anything."""
    recorder = Recorder(str(folder))
    for document in [*documents, *documents]:
        await recorder.record(document, b"image")
    await recorder.record(documents[0] | {"verdict": "error", "error_code": "empty"}, b"")
    return recorder


def drift_of(trained: Trained) -> LiveDrift:
    """Against all good images as they are: the handful that the small bundle was calibrated on could tell nothing."""
    usual = answers(trained, 1.0)
    measured = {name: np.array([one[name] for one in usual if one[name] is not None], float) for name in MEASURES}

    async def reference() -> Reference:
        return trained.bundle.digest, references_of(trained.bundle) | {SEEN[0]: measured}

    return LiveDrift(reference)


@pytest.mark.parametrize(("gain", "drifted"), [(1.0, []), (0.8, [SEEN[0]])])
def test_other_light_is_a_drift_of_its_surface(
    trained: Trained, tmp_path: Path, gain: float, drifted: list[str]
) -> None:
    async def look() -> list[Condition]:
        recorder = await recorded(tmp_path, answers(trained, gain))
        try:
            return await drift_of(trained).conditions(recorder)
        finally:
            recorder.close()

    found = asyncio.run(look())
    assert [one.subject for one in found if "brightness" in one.values["detail"]] == drifted


def test_the_monitor_raises_it_as_an_alarm(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "DRIFT_S", 0.0)

    async def run() -> set[str]:
        recorder = await recorded(tmp_path, answers(trained, 0.8))
        settings = AlarmSettings(delay_on_s=0, delay_off_s=0, in_a_row=10_000, max_reject_rate=1.0)
        try:
            async with Monitor(recorder, settings, drift_of(trained)).run() as monitor:
                for _ in range(100):
                    found = {one["rule"] for one in (await monitor.alarms())["alarms"]}
                    if "drift" in found:
                        return found
                    await asyncio.sleep(0.1)
                return found
        finally:
            recorder.close()

    assert "drift" in asyncio.run(run())
