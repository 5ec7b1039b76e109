"""Run a command as a job of a Ray cluster and follow it: one id is one job, and its own exit code comes back.

`ray job submit` makes 1 of every exit code, refuses an id that was used, and lets a job that fits on no node wait for a
quarter of an hour. The command runs where the cluster is, on what is installed and readable there: no data travels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sbdzsl.errors import AuditError

#: Between two looks at a job that has not begun, and before a broken stream of its log is taken up again.
_POLL_S = 0.5

Report = Callable[[str], None]


def submit(
    words: Sequence[str],
    address: str,
    submission_id: str,
    metadata: Mapping[str, str] | None = None,
    cpus: float = 0.0,
    pending_s: float = 30.0,
    report: Report = print,
) -> int:
    """Run the command `words` on the cluster at `address` (http://head:8265), follow its log, return its exit code.

    A job of this id that has not ended is followed, not started twice; after one that has ended the next free of
    `<id>-2`, `<id>-3` ... is taken. Nothing is shipped to the nodes. `cpus` are kept for the command itself,
    beside its actors'. A `KeyboardInterrupt` leaves the job running and says how to go on.
    Raises `AuditError` "no-resources": the cluster does not answer, refuses the token, or the job had not begun after
    `pending_s` seconds and was stopped.
    """
    # It tells of each connection that was closed in good order.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    entry: dict[str, Any] = {"entrypoint": shlex.join(words), "metadata": dict(metadata or {})}
    if cpus:
        entry["entrypoint_num_cpus"] = cpus
    deadline = time.monotonic() + pending_s
    try:
        client = JobSubmissionClient(address)
        name = _enter(client, entry, submission_id, deadline, report)
        try:
            _await_start(client, name, deadline, pending_s)
            asyncio.run(_follow(client, name, report))
        except KeyboardInterrupt:
            at = f"--address {address} {name}"
            report(f"job {name} goes on. To follow it: ray job logs --follow {at}   To stop it: ray job stop {at}")
            raise
        return _exit_code(client.get_job_info(name), report)
    except AuthenticationError as error:
        raise AuditError(
            "no-resources",
            f"{address} asks for its token, and found none or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
            "or RAY_AUTH_TOKEN_PATH",
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise AuditError("no-resources", f"no jobs at {address}: {error}; give the address of the dashboard") from error


def _enter(
    client: JobSubmissionClient, entry: Mapping[str, Any], submission_id: str, deadline: float, report: Report
) -> str:
    """The id under which the command runs now: of a job that was there, or of a new one."""
    while True:
        known = {job.submission_id: job for job in client.list_jobs()}
        name, number = submission_id, 1
        while name in known and known[name].status.is_terminal():
            number += 1
            name = f"{submission_id}-{number}"
        if name in known:
            report(f"job {name} is there already and is followed")
            return name
        try:
            client.submit_job(submission_id=name, **entry)
        except RuntimeError as error:
            # Somebody took the id just now, or the agent of a new cluster, which takes jobs, is not up yet.
            passing = "already exists" in str(error) or "No available agent" in str(error)
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            report(f"job {name} submitted")
            return name


def _await_start(client: JobSubmissionClient, name: str, deadline: float, pending_s: float) -> None:
    """Return once the job has begun or ended; stop it and raise if that takes too long."""
    while (info := client.get_job_info(name)).status == JobStatus.PENDING:
        if time.monotonic() > deadline:
            client.stop_job(name)
            raise AuditError(
                "no-resources",
                f"job {name} had not begun after {pending_s:.0f} s and was stopped: {info.message} "
                "Ask for less, add a node, or look at the cluster's dashboard",
            )
        time.sleep(_POLL_S)


async def _follow(client: JobSubmissionClient, name: str, report: Report) -> None:
    """Report each line of the job's log once, until the job has ended."""
    num_reported = 0
    while True:
        position, is_whole = 0, False
        # A connection may be lost; whether the cluster is, the next call says.
        with contextlib.suppress(aiohttp.ClientError, RuntimeError):
            # A stream starts at the first line each time.
            async for line in _lines(client.tail_job_logs(name)):
                position += 1
                if position > num_reported:
                    report(line)
                    num_reported = position
            is_whole = True
        if client.get_job_info(name).status.is_terminal() and is_whole:
            return
        await asyncio.sleep(_POLL_S)


async def _lines(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Whole lines out of pieces of text."""
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _exit_code(info: JobDetails, report: Report) -> int:
    """The command's own exit code; 1 where it has none, such as when it was stopped, and then why."""
    code = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if code is None or code <= 0:  # stopped, or ended by a signal
        report(f"job {info.submission_id} ended as {info.status}: {info.message}")
        return 1
    return int(code)
