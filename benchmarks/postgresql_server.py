"""A PostgreSQL server of the machine's own package, for tests and studies: on loopback, of an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from serving_process import free_port


def programs() -> Path | None:
    """The folder with `initdb` and `postgres` of the newest version there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def served() -> Iterator[str]:
    """URL of an empty database, as SQLAlchemy writes it; server and data are gone in the end."""
    folder_of_programs = programs()
    if folder_of_programs is None:
        raise FileNotFoundError("no PostgreSQL server on this machine: `make postgresql` installs Debian's")
    # The server refuses to run as root; its folder has to be its user's own, and below one that all may enter.
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    folder = tempfile.mkdtemp(prefix="sbdzsl-pg-", dir="/tmp")
    if user is not None:
        shutil.chown(folder, user)
    data, port = f"{folder}/data", free_port()
    initdb, postgres = folder_of_programs / "initdb", folder_of_programs / "postgres"
    first = [initdb, "-D", data, "-U", "sweep", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(first, user=user, cwd=folder, check=True, capture_output=True)
    words = [postgres, "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
    with Path(folder, "log").open("wb") as log:
        # A group of its own: who kills a driver with its group does not kill the database.
        server = subprocess.Popen(
            [*words, "-c", "fsync=off"], user=user, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(port, server, Path(folder, "log"))
        yield f"postgresql+psycopg://sweep@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # by SIGTERM it would wait for clients, whose pools keep connections
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="sweep", dbname="postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return
