"""The watch itself: look, send, keep the verdict, put the file away; and wait where the service is away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sbdzsl.answer import Answer
from sbdzsl.client import InspectionClient
from sbdzsl.errors import ConfigError, SbdzslError
from sbdzsl.watch.inbox import Arrival, Inbox, WatchSettings, folder_error
from sbdzsl.watch.verdict_file import VerdictFile

VERDICTS_NAME = "verdicts.jsonl"
#: How long nothing is sent while the service is away, and a file that was answered by nothing sensible waits.
_PAUSE_S, _MAX_PAUSE_S = 0.5, 5.0
_PUT_OFF_S, _MAX_PUT_OFF_S = 1.0, 60.0
#: The service takes nothing at the moment, whichever file.
_AWAY = ("unreachable", "not-ready", "overloaded", "disk-full")
#: This request failed, as do those of any other code whose status is the server's fault; others may not.
_LATER = ("deadline-exceeded", "idempotency-in-flight", "idempotency-mismatch")
#: So often a file may find the service away before others come first: it may be what kills it.
_MAX_STRIKES = 3


class Watch:
    """One run over a folder. `say` gets a line for each file and for each change of the service's state.

    Raises `ConfigError` where the folder is not one or another watch is at work on it, `LakeError` where verdicts
    cannot be kept, `ServiceError` and `ConfigError` where the service will take none of the files: a wrong key, say.
    """

    def __init__(
        self,
        folder: Path,
        client: InspectionClient,
        out: Path | None = None,
        settings: WatchSettings | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if not folder.is_dir():
            raise ConfigError("bad-config", f"found no folder {folder}, expected the one that the camera writes into")
        self._settings = settings or WatchSettings()
        self._inbox = Inbox(folder, self._settings)
        self._client, self._say = client, say
        self._out = out or folder / VERDICTS_NAME
        self._answered: dict[Arrival, bool] = {}
        self._put_off: dict[Arrival, tuple[float, float]] = {}  # until when, and for how long
        self._strikes: Counter[Arrival] = Counter()
        self._flying: dict[Future[Answer | None], Arrival] = {}
        self._pause_s, self._resume_at = 0.0, 0.0
        self._complaints: set[str] = set()
        self._verdicts: Counter[str] = Counter()

    def run(self, stop: threading.Event, once: bool = False) -> Counter[str]:
        """Judge what comes until `stop` is set, or, with `once`, until the folder holds nothing to judge.

        Images under way at the end are waited for, but not tried again. Returns how often there was each verdict.
        """
        with self._locked(), contextlib.closing(VerdictFile(self._out)) as verdicts:
            if verdicts.num_cut:
                self._say(f"{self._out}: cut off {verdicts.num_cut} bytes of a line that a kill left unfinished")
            self._inbox.look()
            self._answered = verdicts.answered(self._inbox.present)
            if self._answered:
                self._say(f"{len(self._answered)} files have their verdict already and are not sent again")
            with ThreadPoolExecutor(self._settings.parallel) as pool:
                try:
                    while not stop.is_set() and not (once and self._is_empty()):
                        self._work(pool, verdicts, stop)
                finally:
                    self._client.give_up()
                    for future in wait(self._flying).done:
                        self._land(future, verdicts)
        return self._verdicts

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else puts the same files away or writes the same verdicts; the system unlocks for who was killed."""
        taken = {self._out.with_name(f".{self._out.name}.lock")}
        if self._settings.done != "keep":
            taken.add(self._inbox.folder / ".sbdzsl-watch.lock")
        with contextlib.ExitStack() as stack:
            for path in sorted(taken):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(path, timeout=0))
                except Timeout:
                    raise ConfigError("bad-config", f"another watch is at work here: it holds {path}") from None
                except OSError as error:
                    raise folder_error(path, error) from None
            yield

    def _is_empty(self) -> bool:
        return not self._flying and not self._inbox.present - self._answered.keys()

    def _work(self, pool: ThreadPoolExecutor, verdicts: VerdictFile, stop: threading.Event) -> None:
        """One look at the folder, and what can be sent and received until the next."""
        waiting = deque(self._due())
        next_look = time.monotonic() + self._settings.interval_s
        while not stop.is_set():
            now = time.monotonic()
            while waiting and len(self._flying) < self._settings.parallel and now >= self._resume_at:
                arrival = waiting.popleft()
                self._flying[pool.submit(self._judge, arrival)] = arrival
            if now >= next_look:
                break
            if self._flying:
                for future in wait(self._flying, next_look - now, FIRST_COMPLETED).done:
                    self._land(future, verdicts)
            else:
                stop.wait(next_look - now)

    def _due(self) -> Iterable[Arrival]:
        """Complete files that are neither answered nor under way nor put off; answered ones are put away."""
        complete, now = self._inbox.look(), time.monotonic()
        present = self._inbox.present
        self._answered = {arrival: is_error for arrival, is_error in self._answered.items() if arrival in present}
        self._put_off = {arrival: until for arrival, until in self._put_off.items() if arrival in present}
        for arrival, is_error in self._answered.items():
            self._put_away(arrival, is_error)
        for suffix in sorted(self._inbox.left_alone):
            self._complain(f"left alone, since these are no images: files that end in {suffix or 'nothing'}")
        busy = self._answered.keys() | set(self._flying.values())
        return (a for a in complete if a not in busy and self._put_off.get(a, (0.0, 0.0))[0] <= now)

    def _judge(self, arrival: Arrival) -> Answer | None:
        """The answer to one file; None if it changed or went. On a thread of its own."""
        content = self._inbox.read(arrival)
        if content is None:
            return None
        given = self._request_of(arrival)
        return self._client.inspect(
            content, **given, idempotency_key=idempotency_key(arrival, content, given | {"captured_at": None})
        )

    def _request_of(self, arrival: Arrival) -> dict[str, Any]:
        """What is said about a file beside its bytes. Its time of change is taken for the time of capture."""
        settings = self._settings
        said = _read_name(settings.names, arrival.name) if settings.names else {}
        return {
            "camera": said.get("camera") or settings.camera,
            "trigger_id": said.get("trigger_id"),
            "part_id": said.get("part_id"),
            "sequence": int(said["sequence"]) if said.get("sequence", "").isdecimal() else None,
            "captured_at": datetime.fromtimestamp(arrival.mtime_ns / 1e9, timezone.utc),
            "name": arrival.label,
            "bit_depth": settings.bit_depth,
            "policy": settings.policy,
            "surface": settings.surface,
        }

    def _land(self, future: Future[Answer | None], verdicts: VerdictFile) -> None:
        """Take one answer, or see to it that the file is sent again. Raises what is wrong with every file."""
        arrival = self._flying.pop(future)
        try:
            answer = future.result()
        except SbdzslError as error:
            if error.code in _AWAY:
                self._wait_for_service(error)
                self._strikes[arrival] += 1
                if self._strikes[arrival] >= _MAX_STRIKES:
                    self._put_off_file(arrival)
            elif error.code in _LATER or error.http_status >= 500:
                self._put_off_file(arrival, error.message)
            else:
                raise
            return
        except OSError as error:
            self._put_off_file(arrival, f"cannot be read: {error.strerror}")
            return
        self._strikes.pop(arrival, None)
        self._service_is_back()
        if answer is None:
            return
        key = {"file": arrival.name, "file_size": arrival.size, "file_mtime_ns": arrival.mtime_ns}
        verdicts.append(key | answer.to_json())
        self._put_off.pop(arrival, None)
        self._answered[arrival] = answer.verdict == "error"
        self._verdicts[answer.verdict] += 1
        self._put_away(arrival, answer.verdict == "error")
        self._say(f"{arrival.label}: {answer.describe()}")
        if self._settings.names and not _read_name(self._settings.names, arrival.name):
            self._say(f"{arrival.label}: its name does not match {self._settings.names.pattern}, so it has no ids")

    def _put_away(self, arrival: Arrival, is_error: bool) -> None:
        try:
            self._inbox.put_away(arrival, is_error)
        except OSError as error:
            # Answered it is, and known to be: it is put away at a later look.
            self._complain(f"{arrival.label}: answered, but cannot be put away: {error.strerror}")

    def _wait_for_service(self, error: SbdzslError) -> None:
        if not self._pause_s:
            self._say(f"waiting for the service ({error.code}): {error.message}")
        self._pause_s = min(max(2 * self._pause_s, _PAUSE_S), _MAX_PAUSE_S)
        self._resume_at = time.monotonic() + self._pause_s

    def _service_is_back(self) -> None:
        if self._pause_s:
            self._say("the service answers again")
        self._pause_s = self._resume_at = 0.0

    def _put_off_file(self, arrival: Arrival, reason: str | None = None) -> None:
        _, before_s = self._put_off.get(arrival, (0.0, 0.0))
        for_s = min(max(2 * before_s, _PUT_OFF_S), _MAX_PUT_OFF_S)
        self._put_off[arrival] = time.monotonic() + for_s, for_s
        if reason:
            self._say(f"{arrival.label}: {reason}; again in {for_s:g} s")

    def _complain(self, line: str) -> None:
        """Say once what would else be said at each look."""
        if line not in self._complaints:
            self._complaints.add(line)
            self._say(line)


def idempotency_key(arrival: Arrival, content: bytes, given: dict[str, Any]) -> str:
    """The same for the same file sent with the same words, whoever sends it and when; else another."""
    words = json.dumps([arrival.name, arrival.size, arrival.mtime_ns, given], sort_keys=True)
    return hashlib.sha256(words.encode() + b"\0" + content).hexdigest()


def _read_name(names: re.Pattern[str], name: str) -> dict[str, str]:
    """What the groups of a pattern find in a name; nothing where it does not match."""
    found = names.search(name)
    return {group: value for group, value in found.groupdict().items() if value} if found else {}
