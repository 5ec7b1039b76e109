"""An answer as a record of fixed size, for gateways to PLCs and field buses that take no JSON.

`to_record` writes 248 bytes, big-endian as Siemens controllers and networks have it, at offsets that never move within
a version; `LAYOUT` is the one list of them, and docs/cameras.md has it as a table. A record is never OK by default:
`result_evaluation` 0 is Undefined, and a buffer of zeros reads so.
"""

from __future__ import annotations

import ctypes
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from sbdzsl.answer import Answer
from sbdzsl.errors import ServiceError
from sbdzsl.verdict import OPC_RESULT_EVALUATION, Decision

VERSION = 1
#: Defect boxes in a record; `num_regions` counts all that there were.
NUM_BOXES = 4
#: Name, `struct` code and meaning of each field, in order and without gaps.
LAYOUT = (
    ("version", "B", "1; 0: nothing was written yet"),
    ("result_evaluation", "B", "OPC 40001-101: 0 Undefined, 1 OK, 2 NotOK, 3 NotDecidable"),
    ("verdict", "B", "0 none, 1 good, 2 defect, 3 unseen, 4 error"),
    ("flags", "B", "see below"),
    ("num_regions", "H", "defects found, 65535: that many or more"),
    ("num_boxes", "H", "of them with a box in this record, at most 4"),
    ("sequence", "Q", "number of the camera's image, if flag 0 is set"),
    ("event_id", "Q", "place in the service's journal, if flag 1 is set"),
    ("inspected_at", "q", "microseconds since 1970-01-01 UTC"),
    ("processing_ms", "f", "decoding, naming the surface and finding defects, ms; NaN: not known"),
    ("unseen_score", "f", "NaN: not computed, as in all scores"),
    ("unseen_threshold", "f", "unseen above it"),
    ("defect_score", "f", "a logit"),
    ("defect_threshold", "f", "defect above it"),
    ("defect_probability", "f", "0 to 1"),
    ("trigger_id", "32s", "ASCII, zeros behind it"),
    ("part_id", "32s", "ASCII, zeros behind it"),
    ("surface", "32s", "ASCII, zeros behind it; empty: none named"),
    ("error_code", "20s", "ASCII, zeros behind it; empty: no error"),
    ("boxes", "16I", "4 times x, y, width, height in source pixels, the worst defect first; zeros: no box"),
    ("bundle", "8s", "the first 8 bytes of the bundle's digest"),
    ("crc32", "I", "of all bytes before it, as in zlib and Ethernet"),
)
FLAGS = (
    "sequence is there",
    "event_id is there",
    "a surface was expected and one was named",
    "it is the one expected",
    "trigger_id was shortened or is not ASCII",
    "part_id was shortened or is not ASCII",
    "surface was shortened or is not ASCII",
    "error_code was shortened or is not ASCII",
)
_BODY = struct.Struct(">" + "".join(code for name, code, _ in LAYOUT if name != "crc32"))
SIZE = _BODY.size + 4
_DECISIONS: tuple[Decision | None, ...] = (None, "good", "defect", "unseen", "error")
_TEXTS = ("trigger_id", "part_id", "surface", "error_code")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_UINT16, _MAX_UINT32, _MAX_UINT64 = 2**16 - 1, 2**32 - 1, 2**64 - 1

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What a gateway reads. Fields as in `LAYOUT`; what is not there is None.

    `shortened` names the texts that are not whole: compare such an id with care. Scores are rounded to `float32`, so
    that a score may equal its threshold here: the verdict decides.
    """

    result_evaluation: int = 0
    verdict: Decision | None = None
    sequence: int | None = None
    event_id: int | None = None
    inspected_at: datetime | None = None
    processing_ms: float | None = None
    unseen_score: float | None = None
    unseen_threshold: float | None = None
    defect_score: float | None = None
    defect_threshold: float | None = None
    defect_probability: float | None = None
    trigger_id: str | None = None
    part_id: str | None = None
    surface: str | None = None
    error_code: str | None = None
    num_regions: int = 0
    boxes: tuple[Box, ...] = ()
    surface_as_expected: bool | None = None
    shortened: tuple[str, ...] = ()
    bundle: str | None = None


def to_record(answer: Answer) -> bytes:
    """The `SIZE` bytes of an answer.

    A number that does not fit, such as a sequence of 2**64, is left out (its flag is not set), never wrapped around.
    """
    texts = {name: _cut(getattr(answer, name), _width(name)) for name in _TEXTS}
    numbers = [_number(answer.sequence), _number(answer.event_id)]
    expected = answer.surface_as_expected
    flags = (
        *(number is not None for number in numbers),
        expected is not None,
        expected is True,
        *(text.decode("ascii").rstrip("\0") != (getattr(answer, name) or "") for name, text in texts.items()),
    )
    worst = sorted(answer.regions, key=lambda region: -region.score)[:NUM_BOXES]
    boxes = [_pixels(value) for r in worst for value in (r.x, r.y, r.width, r.height)]
    body = _BODY.pack(
        VERSION,
        OPC_RESULT_EVALUATION[answer.verdict],
        _DECISIONS.index(answer.verdict),
        sum(flag << bit for bit, flag in enumerate(flags)),
        min(len(answer.regions), _MAX_UINT16),
        len(worst),
        *(number or 0 for number in numbers),
        (answer.inspected_at - _EPOCH) // timedelta(microseconds=1),
        _float32(_processing_ms(answer)),
        *(_float32(getattr(answer, name)) for name in _SCORES),
        *texts.values(),
        *boxes,
        *[0] * (NUM_BOXES * 4 - len(boxes)),
        _digest(answer.bundle),
    )
    return body + struct.pack(">I", zlib.crc32(body))


_SCORES = ("unseen_score", "unseen_threshold", "defect_score", "defect_threshold", "defect_probability")


def read_record(content: bytes) -> Record:
    """Read a record; zeros alone are a buffer that nothing was written to, and read as Undefined.

    Raises `ServiceError` "bad-answer" for another size or version, a wrong checksum, or an evaluation that is not its
    verdict's: such a record says nothing about a part.
    """
    if len(content) != SIZE:
        raise ServiceError("bad-answer", f"found a record of {len(content)} bytes, expected {SIZE}")
    if not any(content):
        return Record()
    body, (crc,) = content[:-4], struct.unpack(">I", content[-4:])
    if zlib.crc32(body) != crc:
        raise ServiceError("bad-answer", f"the record's checksum is {crc:08x}, expected {zlib.crc32(body):08x}")
    version, evaluation, decision, flags, num_regions, num_boxes, *rest = _BODY.unpack(body)
    if version != VERSION:
        raise ServiceError("bad-answer", f"found a record of version {version}, expected {VERSION}")
    verdict = _DECISIONS[decision] if decision < len(_DECISIONS) else None
    if verdict is None or OPC_RESULT_EVALUATION[verdict] != evaluation or num_boxes > NUM_BOXES:
        raise ServiceError(
            "bad-answer", f"found evaluation {evaluation}, verdict {decision} and {num_boxes} boxes, which do not agree"
        )
    sequence, event_id, inspected_at, *floats = rest[:9]
    texts = [text.rstrip(b"\0").decode("ascii") or None for text in rest[9:13]]
    values = rest[13 : 13 + 4 * num_boxes]
    processing_ms, *scores = (None if math.isnan(value) else value for value in floats)
    return Record(
        result_evaluation=evaluation,
        verdict=verdict,
        sequence=sequence if _has(flags, 0) else None,
        event_id=event_id if _has(flags, 1) else None,
        inspected_at=_EPOCH + timedelta(microseconds=inspected_at),
        processing_ms=processing_ms,
        **dict(zip(_SCORES, scores, strict=True)),
        **dict(zip(_TEXTS, texts, strict=True)),
        num_regions=num_regions,
        boxes=tuple(_box(values[start : start + 4]) for start in range(0, len(values), 4)),
        surface_as_expected=_has(flags, 3) if _has(flags, 2) else None,
        shortened=tuple(name for bit, name in enumerate(_TEXTS, 4) if _has(flags, bit)),
        bundle=rest[-1].hex() if any(rest[-1]) else None,
    )


def _has(flags: int, bit: int) -> bool:
    return bool(flags >> bit & 1)


def _box(values: Sequence[int]) -> Box:
    x, y, width, height = values
    return x, y, width, height


def _width(name: str) -> int:
    return next(struct.calcsize(code) for field, code, _ in LAYOUT if field == name)


def _cut(text: str | None, width: int) -> bytes:
    """ASCII of a fixed width: others are question marks, what is too long ends early. Control characters are others."""
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in text or "")
    return printable.encode("ascii")[:width].ljust(width, b"\0")


def _number(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= _MAX_UINT64 else None


def _pixels(value: int) -> int:
    return min(max(value, 0), _MAX_UINT32)


def _float32(value: float | None) -> float:
    """Rounded as `struct` would, but infinite where that would refuse."""
    return math.nan if value is None else ctypes.c_float(value).value


def _processing_ms(answer: Answer) -> float | None:
    parts = [ms for ms in (answer.decode_ms, answer.route_ms, answer.detect_ms) if ms is not None]
    return sum(parts) if parts else None


def _digest(bundle: str) -> bytes:
    """The digest's beginning; zeros where there is none, as in a refusal before judging."""
    try:
        return bytes.fromhex(bundle[:16]).ljust(8, b"\0")
    except ValueError:
        return bytes(8)
