"""Verdicts as a Delta table: all rows of a run in one commit, once, whoever asks again."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.dataset

from sbdzsl import lake
from sbdzsl.errors import ConfigError
from sbdzsl.store import storage_options, store_errors

#: Rows in memory at a time, about; a row with class embedding and places takes about a kilobyte.
_BATCH_ROWS = 16_384


def append_run(
    parts: pyarrow.dataset.Dataset | pa.RecordBatchReader, table_url: str, app_id: str, version: int
) -> bool:
    """Append all rows of `parts` to the Delta table at `table_url` by one commit; the first makes the table.

    The commit carries the application transaction (`app_id`, `version`), `version` 0 and up. If the table holds one of
    `app_id` that is as high or higher nothing is done and the answer is False: give each audit an `app_id` of its own
    and its runs rising numbers. Of two calls at the same moment one commits, the other finds that and is False.
    Columns that the table lacks are added to it, null in rows before. Memory does not grow with the rows.

    Raises `ConfigError` missing-extra without deltalake, `LakeError` where the table cannot be read or written.
    """
    try:
        import deltalake
        from deltalake.exceptions import CommitFailedError
    except ImportError:
        raise ConfigError("missing-extra", "a Delta table needs deltalake: pip install 'sbdzsl[delta]'") from None

    url = lake.absolute_url(table_url)
    options = storage_options(url)
    with store_errors(url):
        if _committed(deltalake, url, options, app_id) >= version:
            return False
        try:
            deltalake.write_deltalake(
                url,
                _batches(parts),
                mode="append",
                schema_mode="merge",
                storage_options=options,
                commit_properties=deltalake.CommitProperties(
                    app_transactions=[deltalake.Transaction(app_id, version)],
                ),
            )
        except CommitFailedError:
            if _committed(deltalake, url, options, app_id) >= version:
                return False
            raise
    return True


def _committed(deltalake: Any, url: str, options: dict[str, str], app_id: str) -> int:
    """The highest version of an application in the table, -1 for none."""
    if not deltalake.DeltaTable.is_deltatable(url, options):
        return -1
    found = deltalake.DeltaTable(url, storage_options=options).transaction_version(app_id)
    return -1 if found is None else int(found)


def _batches(parts: pyarrow.dataset.Dataset | pa.RecordBatchReader) -> pa.RecordBatchReader:
    if isinstance(parts, pa.RecordBatchReader):
        return parts
    # The defaults read sixteen files ahead.
    scanner = parts.scanner(batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1)
    return scanner.to_reader()
