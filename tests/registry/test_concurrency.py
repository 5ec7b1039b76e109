"""Many who promote and roll back at once, from several processes: one record a number, and always a whole bundle."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import bundle as bundles
from sbdzsl.errors import RegistryError
from sbdzsl.registry import Registry
from tests.stores import Doorkeeper, doorkeeper, s3, s3_endpoint  # noqa: F401  fixtures

NUM_CALLS, NUM_PROCESSES = 200, 4


def decide(url: str, digests: list[str], seed: int, calls: int) -> tuple[list[int], int]:
    """Numbers of the records that this process made, and how often it was told that somebody was faster."""
    registry, generator = Registry(url), random.Random(seed)
    made, told = [], 0
    for _ in range(calls):
        try:
            if generator.random() < 0.3:
                made.append(registry.rollback("production", f"process {seed}", "load").number)
            else:
                before = registry.line("production").newest()
                record = registry.promote(generator.choice(digests), "production", f"process {seed}", "load")
                if before is None or (record.number > before.number and record.by == f"process {seed}"):
                    made.append(record.number)
        except RegistryError as error:
            if error.code not in ("promoted-meanwhile", "no-version"):
                raise
            told += error.code == "promoted-meanwhile"
    return made, told


def race(url: str, digests: list[str]) -> None:
    registry, done, looks, wrong = Registry(url), threading.Event(), 0, list[str]()

    def look() -> None:
        nonlocal looks
        while not done.is_set():
            found = registry.resolve("production")
            wrong.extend(str(problem) for problem in bundles.damage(found.url))
            looks += 1

    registry.promote(digests[0], "production", "anna", "begin")
    reader = ThreadPoolExecutor(1).submit(look)
    calls = NUM_CALLS // NUM_PROCESSES
    with ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(decide, url, digests, seed, calls) for seed in range(1, NUM_PROCESSES + 1)]
        results = [one.result() for one in found]
    done.set()
    reader.result()
    numbers = [1, *(number for made, _ in results for number in made)]
    line = registry.history("production")
    assert sorted(numbers) == [record.number for record in line], "each record was made by one, and is told to one"
    assert len(numbers) > 20
    assert sum(told for _, told in results) > 0, "nobody ever lost: they were not at it at once"
    assert looks > 5
    assert wrong == []
    assert registry.gc(keep_days=0, keep_last=1) == (), "all are claimed"
    assert registry.verify() == ()


@pytest.fixture
def digests(tmp_path: Path, draw: Callable[[int], str]) -> Callable[[str], list[str]]:
    """Pushes five bundles, each by two at once."""

    def push(url: str) -> list[str]:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda seed: Registry(url).push(draw(seed // 2)), range(10)))
        assert len(set(found)) == 5
        return found[::2]

    for seed in range(5):
        draw(seed)
    return push


@pytest.mark.slow
def test_in_a_folder(tmp_path: Path, digests: Callable[[str], list[str]]) -> None:
    url = str(tmp_path / "registry")
    race(url, digests(url))


@pytest.mark.slow
def test_on_s3(s3: str, doorkeeper: Doorkeeper, digests: Callable[[str], list[str]]) -> None:  # noqa: F811
    inner, door = doorkeeper.app, threading.Lock()

    def one_write_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
        # This server looks and then writes; one that honours conditional writes does both in one step.
        if environ["REQUEST_METHOD"] != "PUT":
            return inner(environ, start_response)
        with door:
            return inner(environ, start_response)

    doorkeeper.app = one_write_at_a_time
    race(f"{s3}/registry", digests(f"{s3}/registry"))
