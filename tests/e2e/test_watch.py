"""A camera's folder and the real service, both killed at work: a short run of `benchmarks/watch_kills.py`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import watch_kills

from tests.conftest import Trained
from tests.inspection_service import GOOD, running

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_each_image_has_one_verdict_whatever_is_killed(trained: Trained, tmp_path: Path) -> None:
    images = [Path(uri) for uri in trained.manifest["uri"].to_pylist()[::8]]
    bad = tmp_path / "cut.png"
    bad.write_bytes(images[0].read_bytes()[:500])
    plan = [("watch", True), ("service", True), ("watch", False), ("both", True), ("service", False)]
    kills = [watch_kills.Kill(kind, at_work, 0.1) for kind, at_work in plan]
    found = watch_kills.run(tmp_path / "line", trained.bundle_url, [*images, bad], 60, kills)
    assert (found.images, found.lines, found.lost, found.doubled) == (60, 60, 0, 0)
    assert (found.different, found.not_put_away, found.changed) == (0, 0, 0)
    # The journal does not wait for the disk with answers `good`: of those, a kill may cost those under way.
    killed = found.kills["service"] + found.kills["both"]
    assert found.events_doubled == 0
    assert 60 - 2 * killed <= found.events <= 60
    assert found.kills == {"watch": 2, "service": 2, "both": 1}
    assert sum(found.kills_at_work.values()) >= 1
    assert found.verdicts["error"] >= 1
    assert len(found.verdicts) >= 3
    assert found.exit_code == 0


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sbdzsl.cli", "watch", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_in_good_order(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "a.png").write_bytes(GOOD)
    with running() as service:
        process = start(str(tmp_path), "--endpoint", service.endpoint, "--settle", "0")
        while not (tmp_path / "done" / "a.png").exists():
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert out.splitlines()[-1] == "1 verdicts: 1 good"
    assert err == ("interrupted\n" if code == 130 else "")


def test_an_outage_prints_two_lines_and_no_more(tmp_path: Path) -> None:
    with running() as service:
        endpoint = service.endpoint
    (tmp_path / "a.png").write_bytes(GOOD)
    process = start(str(tmp_path), "--endpoint", endpoint, "--settle", "0", "--timeout", "0.5")
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    first, last = out.splitlines()
    assert first.startswith(f"waiting for the service (unreachable): {endpoint}")
    assert last == "0 verdicts"
    assert (tmp_path / "a.png").exists()


def test_a_call_that_is_wrong_says_so(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("two words")
    for words in (("--api-key-file", str(key)), ("--api-key-file", str(tmp_path / "none")), ("--done", "burn")):
        process = start(str(tmp_path), "--endpoint", "http://127.0.0.1:9", *words)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 2
        assert err.startswith("error: bad-config")
