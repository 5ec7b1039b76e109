from datetime import datetime, timezone
from typing import Any

import pytest

from sbdzsl.cluster.progress import Progress
from sbdzsl.config import AuditSettings
from sbdzsl.errors import LakeError, StoppedError


def row(num_images: int, num_errors: int = 0, error: str = "", message: str = "") -> dict[str, Any]:
    return {"shard": 0, "num_images": num_images, "num_errors": num_errors, "error": error, "message": message}


def begun(lines: list[str] | None = None, **settings: Any) -> Progress:
    progress = Progress(AuditSettings(**settings), datetime.now(timezone.utc), ([] if lines is None else lines).append)
    progress.begin(10, 2)
    return progress


def test_what_was_judged_is_counted_and_said() -> None:
    lines: list[str] = []
    progress = begun(lines)
    for _ in range(10):
        progress.add(row(20, 1))
    progress.end()
    assert (progress.num_images, progress.num_errors, progress.num_actors) == (200, 10, 2)
    assert lines[-1].startswith("10/10 shards, 200 images, 10 of them not judged, ")
    assert progress.images_per_second is not None


def test_too_many_errors_stop_it_once_a_share_means_something() -> None:
    progress = begun(max_errors=0.05)
    progress.add(row(20, 20))
    with pytest.raises(StoppedError, match=r"20 of 120 images could not be judged \(16\.7%\)") as caught:
        progress.add(row(100, 0))
    assert (caught.value.code, caught.value.exit_code) == ("too-many-errors", 3)


def test_too_many_errors_of_few_images_stop_it_at_the_end() -> None:
    progress = begun(max_errors=0.05)
    progress.add(row(20, 2))
    with pytest.raises(StoppedError):
        progress.end()


def test_errors_within_the_share_are_rows_like_others() -> None:
    progress = begun(max_errors=0.05)
    progress.add(row(100, 5))
    progress.end()


def test_time_that_is_up_stops_it() -> None:
    progress = begun(max_minutes=90)
    progress.add(row(20))
    with pytest.raises(StoppedError, match=r"max_minutes \(90\) are over: 1 of 10 shards") as caught:
        progress.add(row(-1))
    assert caught.value.code == "out-of-time"


def test_an_actors_error_is_raised_as_it_was() -> None:
    with pytest.raises(LakeError, match="disk is full") as caught:
        begun().add(row(0, error="LakeError unreachable", message="/out: the disk is full"))
    assert caught.value.code == "unreachable"
