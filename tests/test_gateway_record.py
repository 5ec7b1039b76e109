"""Whatever the answer, its record has one size and says the same; whatever the bytes, none reads as a false OK."""

import struct
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbdzsl import gateway_record
from sbdzsl.answer import Answer
from sbdzsl.errors import ServiceError
from sbdzsl.gateway_record import FLAGS, LAYOUT, SIZE, Record, read_record, to_record
from sbdzsl.verdict import OPC_RESULT_EVALUATION, Region
from tests.inspection_service import DEFECT, GOOD, canned

floats = st.none() | st.floats(allow_nan=False)
ids = st.none() | st.text(max_size=60) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=32)
pixels = st.integers(0, 2**31 - 1)
regions = st.builds(Region, pixels, pixels, pixels, pixels, pixels, st.floats(-1e6, 1e6))
answers = st.builds(
    Answer,
    image_id=st.just("i"),
    uri=st.just("u"),
    request_id=st.just("r"),
    verdict=st.sampled_from(["good", "defect", "unseen", "error"]),
    bundle=st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex),
    surface=ids,
    unseen_score=floats,
    unseen_threshold=floats,
    defect_score=floats,
    defect_threshold=floats,
    defect_probability=floats,
    regions=st.lists(regions, max_size=7).map(tuple),
    error_code=st.none() | st.sampled_from(["unreadable", "unsupported-format", "too-large"]),
    inspected_at=st.datetimes(timezones=st.just(timezone.utc)),
    decode_ms=st.none() | st.floats(0, 1e6),
    route_ms=st.none() | st.floats(0, 1e6),
    detect_ms=st.none() | st.floats(0, 1e6),
    event_id=st.none() | st.integers(0, 2**64 - 1),
    trigger_id=ids,
    part_id=ids,
    sequence=st.none() | st.integers(0, 2**64 - 1),
    surface_as_expected=st.none() | st.booleans(),
)


def rounded(value: float | None) -> float | None:
    with np.errstate(over="ignore"):
        return None if value is None else float(np.float32(value))


@given(answers)
def test_a_record_says_what_the_answer_says(answer: Answer) -> None:
    content = to_record(answer)
    assert len(content) == SIZE <= 250
    record = read_record(content)
    assert record.result_evaluation == OPC_RESULT_EVALUATION[answer.verdict]
    for name in ("verdict", "sequence", "event_id", "inspected_at", "surface_as_expected"):
        assert getattr(record, name) == getattr(answer, name)
    for name in ("unseen_score", "unseen_threshold", "defect_score", "defect_threshold", "defect_probability"):
        assert getattr(record, name) == rounded(getattr(answer, name))
    times = [ms for ms in (answer.decode_ms, answer.route_ms, answer.detect_ms) if ms is not None]
    assert record.processing_ms == rounded(sum(times) if times else None)
    for name in ("trigger_id", "part_id", "surface", "error_code"):
        given = getattr(answer, name) or ""
        fits = len(given) <= (20 if name == "error_code" else 32) and all(" " <= letter <= "~" for letter in given)
        assert (name not in record.shortened) == fits
        assert ((getattr(record, name) or "") == given) == fits
    worst = sorted(answer.regions, key=lambda region: -region.score)[:4]
    assert record.boxes == tuple((r.x, r.y, r.width, r.height) for r in worst)
    assert record.num_regions == len(answer.regions)
    digest = answer.bundle[:16]
    assert record.bundle == (digest if digest.strip("0") else None)


@given(answers, st.integers(0, SIZE * 8 - 1))
def test_a_flipped_bit_is_never_read(answer: Answer, bit: int) -> None:
    content = bytearray(to_record(answer))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ServiceError, match="checksum"):
        read_record(bytes(content))


@given(st.binary(min_size=SIZE, max_size=SIZE) | st.binary(max_size=300))
def test_other_bytes_are_never_ok(content: bytes) -> None:
    if len(content) == SIZE and not any(content):
        assert read_record(content).result_evaluation == 0
    else:
        with pytest.raises(ServiceError):
            read_record(content)


def test_zeros_are_undefined() -> None:
    assert read_record(bytes(SIZE)) == Record()
    assert (Record().result_evaluation, Record().verdict, Record().sequence) == (0, None, None)


def resealed(content: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(content)
    changed[offset] = value
    return bytes(changed[:-4]) + struct.pack(">I", gateway_record.zlib.crc32(changed[:-4]))


def test_a_record_that_contradicts_itself_is_refused() -> None:
    defect = to_record(canned(DEFECT))
    assert read_record(resealed(defect, 0, 1)).verdict == "defect"
    with pytest.raises(ServiceError, match="version 2"):
        read_record(resealed(defect, 0, 2))
    for offset, value in ((1, 1), (2, 1), (2, 9), (2, 0), (7, 5)):
        with pytest.raises(ServiceError, match="do not agree"):
            read_record(resealed(defect, offset, value))


def test_numbers_that_do_not_fit_are_left_out() -> None:
    answer = replace(canned(GOOD), sequence=2**64, event_id=7)
    record = read_record(to_record(answer))
    assert (record.sequence, record.event_id) == (None, 7)


def test_the_first_bytes_stand_where_a_controller_looks() -> None:
    answer = canned(GOOD)
    content = to_record(answer)
    assert tuple(content[:3]) == (1, 1, 1)
    assert content[120:126] == b"steel\0"
    assert struct.unpack_from(">f", content, 44) == (1.5,)
    assert struct.unpack_from(">q", content, 24)[0] == int(answer.inspected_at.timestamp() * 1e6 + 0.5)
    assert datetime.fromtimestamp(struct.unpack_from(">q", content, 24)[0] / 1e6, timezone.utc).year >= 2026


def test_the_manual_has_the_layout() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "cameras.md").read_text(encoding="utf-8")
    offset = 0
    for name, code, meaning in LAYOUT:
        size = struct.calcsize(">" + code)
        assert f"| {offset} | {size} | `{name}` | {meaning} |" in manual
        offset += size
    assert offset == SIZE
    for bit, meaning in enumerate(FLAGS):
        assert f"| {bit} | {meaning} |" in manual
