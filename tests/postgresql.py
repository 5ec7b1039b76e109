"""A PostgreSQL server for tests, where the machine has one."""

from __future__ import annotations

from collections.abc import Iterator

import postgresql_server
import pytest


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty database; skips where there is no server to start."""
    if postgresql_server.programs() is None:
        pytest.skip("no PostgreSQL server on this machine: `make postgresql` installs Debian's")
    with postgresql_server.served() as url:
        yield url
