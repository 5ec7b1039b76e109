"""Ingest, train, audit and report, all on an S3 endpoint: `benchmarks/audit_s3.py` in small."""

from pathlib import Path

import audit_lab
import audit_s3
import faulty_store
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_whole_path_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_lab, "KEPT", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with faulty_store.running() as store:
        steps = audit_s3.whole_path(store, 48)
    audit = steps["audit"]
    assert (audit["rows"], audit["ids"], audit["error_rows"], audit["report"]) == (48, 48, 0, True)
    # Finished, it reads no image and writes no part again.
    assert steps["audit again"]["requests"].get("PUT", 0) < 10
    assert steps["audit again"]["requests"].get("GET", 0) < audit["requests"]["GET"]
