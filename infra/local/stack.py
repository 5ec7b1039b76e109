"""A whole plant on one machine, of plain processes: Ray's head and workers, an S3 server, Prometheus, and the service.

    python infra/local/stack.py start --workers 2 --bundle bundle     starts, waits until all answer, prints where
    source /tmp/sbdzsl-stack/env.sh                                   token, store and addresses for this shell
    sbdzsl audit --submit $SBDZSL_DASHBOARD --bundle bundle --lake lake --out s3://stack/audit
    python infra/local/stack.py stop

All are on free ports: service, S3, Prometheus and dashboard on loopback; Ray's nodes on the machine's own address, and
the token guards them. Everything lies below --folder, which each start empties, and the S3 server keeps its objects in
memory: this is for trying out. Needs `pip install 'sbdzsl[dev]'`, and Prometheus (Debian: apt-get install prometheus)
unless --no-prometheus.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import stamina
import yaml

MONITORING = Path(__file__).parents[1] / "monitoring"
BIN = Path(sys.executable).parent
BUCKET = "stack"
OBJECT_STORE_BYTES = 100 * 2**20

#: Seconds until a process has to answer, and until it has to be gone.
START_S, STOP_S = 120.0, 30.0


#: The ports of a node that would clash with another node's of the same machine, or be found out slowly.
RAY_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)

#: On a busy machine a node, and the door of Serve, take longer than Ray gives them. A job does not wait long for room.
RAY_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90",
    "RAY_JOB_START_TIMEOUT_SECONDS": "120",
}


class StackError(Exception):
    """Something of the stack does not start, or is not there."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process of the stack. Its id may be another's one day, its time of creation with it may not."""

    name: str
    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """The process, if it lives."""
        try:
            found = psutil.Process(self.pid)
            is_it = abs(found.create_time() - self.created) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if is_it else None


class Stack:
    """The processes below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "stack.json"

    def start(
        self, workers: int, cpus: int, bundle: str | None, with_prometheus: bool, scrape_s: int
    ) -> dict[str, str]:
        """Start all, wait until all answer; the environment for those who use it. What fails stops everything."""
        if any(one.process() for one in self.started()):
            raise StackError(f"a stack runs below {self.folder}: stop it first, or choose another --folder")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        try:
            return self._start(workers, cpus, bundle, with_prometheus, scrape_s)
        except BaseException:
            self.stop()
            raise

    def _start(
        self, workers: int, cpus: int, bundle: str | None, with_prometheus: bool, scrape_s: int
    ) -> dict[str, str]:
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        s3, gcs, dashboard, service, prometheus = free_ports(5)
        env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "AWS_ACCESS_KEY_ID": "stack",
            "AWS_SECRET_ACCESS_KEY": "stack",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "SBDZSL_DASHBOARD": f"http://127.0.0.1:{dashboard}",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # jobs are started by the word `python`
        }
        self._run("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)], env)
        self._wait("s3", env["AWS_ENDPOINT_URL"])
        _make_bucket(env)
        head = ["--head", "--port", str(gcs), "--num-cpus", "0", "--temp-dir", str(self.folder / "ray")]
        head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
        self._ray("head", head, env)
        for number in range(workers):
            self._ray(f"worker{number}", ["--address", f"127.0.0.1:{gcs}", "--num-cpus", str(cpus)], env)
        self._wait("head", f"{env['SBDZSL_DASHBOARD']}/api/version", token.read_text())
        if bundle is not None:
            env["SBDZSL_SERVICE"] = f"http://127.0.0.1:{service}"
            words = ["serve", "--bundle", bundle, "--port", str(service), "--data", str(self.folder / "service")]
            self._run("service", [str(BIN / "sbdzsl"), *words], env)
            self._wait("service", f"{env['SBDZSL_SERVICE']}/readyz")
        if with_prometheus:
            env["SBDZSL_PROMETHEUS"] = f"http://127.0.0.1:{prometheus}"
            self._prometheus(prometheus, service if bundle is not None else None, scrape_s, env)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in env.items()]
        (self.folder / "env.sh").write_text("".join(lines))
        return env

    def stop(self) -> None:
        """Stop what runs, last started first, each by its id."""
        for one in reversed(self.started()):
            process = one.process()
            if process is None:
                continue
            family = [process, *process.children(recursive=True)]
            _signal([process], signal.SIGTERM)  # upon which `ray start --block` ends its own processes
            _, alive = psutil.wait_procs(family, STOP_S)
            _signal(alive, signal.SIGKILL)
            psutil.wait_procs(alive, STOP_S)
        self._state.unlink(missing_ok=True)

    def started(self) -> list[Started]:
        """What was started, living or not."""
        return [Started(**one) for one in json.loads(self._state.read_text())] if self._state.exists() else []

    def _run(self, name: str, words: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a process, its output in a log of its own, and note it."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        one = Started(name, process.pid, psutil.Process(process.pid).create_time())
        self._state.write_text(json.dumps([asdict(known) for known in [*self.started(), one]]))

    def _ray(self, name: str, words: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a node of Ray and wait for it; once more where it dies, as one does whose helpers are slow to start."""
        common = ["--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats", "--block"]
        for attempt in stamina.retry_context(on=StackError, attempts=2, timeout=None, wait_max=1.0):
            with attempt:
                # With ports of their own a node does not wait to be told which ones they took.
                given = [f"--{kind}={port}" for kind, port in zip(RAY_PORTS, free_ports(len(RAY_PORTS)), strict=True)]
                self._run(name, [str(BIN / "ray"), "start", *words, *given, *common], {**env, **RAY_PATIENCE})
                self._wait_for_word(name, "Ray runtime started")

    def _prometheus(self, port: int, service: int | None, scrape_s: int, env: Mapping[str, str]) -> None:
        """Prometheus with the repository's own configuration, its ports and paths put in."""
        tool = shutil.which("prometheus")
        if tool is None:
            raise StackError("no prometheus on this machine: apt-get install prometheus, or start with --no-prometheus")
        config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"}
        config["rule_files"] = [str(MONITORING / "alerts.yaml")]
        scrapes = {scrape["job_name"]: scrape for scrape in config["scrape_configs"]}
        scrapes["sbdzsl"]["static_configs"][0]["targets"] = [] if service is None else [f"127.0.0.1:{service}"]
        found = str(self.folder / "ray" / "prom_metrics_service_discovery.json")
        scrapes["ray"]["file_sd_configs"] = [{"files": [found], "refresh_interval": "5s"}]
        file = self.folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        data = f"--storage.tsdb.path={self.folder / 'prometheus'}"
        self._run("prometheus", [tool, f"--config.file={file}", data, f"--web.listen-address=127.0.0.1:{port}"], env)
        self._wait("prometheus", f"http://127.0.0.1:{port}/-/ready")

    def _wait(self, name: str, url: str, token: str | None = None) -> None:
        """Return once `url` answers; raise with the end of its log where the process dies or is too slow."""
        for attempt in stamina.retry_context(
            on=OSError, attempts=None, timeout=START_S, wait_initial=0.1, wait_max=1.0
        ):
            with attempt:
                self._require_life(name)
                _get(url, token)

    def _wait_for_word(self, name: str, word: str) -> None:
        """Return once it stands in the log of a process; raise as `_wait`."""
        deadline = time.monotonic() + START_S
        while word not in self._log(name):
            self._require_life(name)
            if time.monotonic() > deadline:
                raise StackError(f"{name} has not started within {START_S:.0f} s; its log:\n{self._log(name)[-2000:]}")
            time.sleep(0.2)

    def _require_life(self, name: str) -> None:
        one = [one for one in self.started() if one.name == name][-1]
        if one.process() is None:
            raise StackError(f"{name} ended while it was waited for; its log ends with:\n{self._log(name)[-2000:]}")

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            one.send_signal(number)


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    held = [socket.socket() for _ in range(number)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _get(url: str, token: str | None = None) -> bytes:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        content: bytes = answer.read()
        return content


def _make_bucket(env: Mapping[str, str]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; 1 where it cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["start", "status", "stop"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sbdzsl-stack"), help="short: sockets lie below it")
    parser.add_argument("--workers", type=int, default=1, help="nodes of Ray beside the head")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that each of them offers")
    parser.add_argument("--bundle", help="serve it, as one process, and have Prometheus look at it")
    parser.add_argument("--scrape-s", type=int, default=5, help="seconds between two looks of Prometheus")
    parser.add_argument("--no-prometheus", action="store_true")
    given = parser.parse_args(argv)
    stack = Stack(given.folder.resolve())
    stamina.instrumentation.set_on_retry_hooks([])  # that something is waited for is no news
    try:
        if given.command == "start":
            env = stack.start(given.workers, given.cpus, given.bundle, not given.no_prometheus, given.scrape_s)
            for name in ("SBDZSL_DASHBOARD", "AWS_ENDPOINT_URL", "SBDZSL_SERVICE", "SBDZSL_PROMETHEUS"):
                if name in env:
                    print(f"{name}={env[name]}")
            print(f"bucket: s3://{BUCKET}   for this shell: source {stack.folder / 'env.sh'}")
        elif given.command == "stop":
            stack.stop()
        for one in stack.started():
            print(f"{one.name}: {'runs' if one.process() else 'has ended'}, process {one.pid}")
    except (StackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
