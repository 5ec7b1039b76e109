"""Verdicts as a Delta table: all rows of a run in one commit, once, whoever asks again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from sbdzsl import lake
from sbdzsl.errors import ConfigError, LakeError
from sbdzsl.lake.store import shown, storage_options, store_errors

#: Rows in memory at a time, about; a row with class embedding and places takes about a kilobyte.
_BATCH_ROWS = 16_384
_ATTEMPTS = 5
#: A file is built in memory, which takes up to fifteen times this.
_FILE_BYTES = 50_000_000


def append_run(parts: pyarrow.dataset.Dataset, table_url: str, app_id: str, version: int) -> bool:
    """Append all rows of `parts` to the Delta table at `table_url` by one commit; one without rows makes the table.

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
    once = deltalake.CommitProperties(app_transactions=[deltalake.Transaction(app_id, version)])
    with store_errors(url), _no_panic(url):
        for attempt in range(1, _ATTEMPTS + 1):
            # The commit is checked against what was read here: nobody may have committed the same since.
            table = _opened(deltalake, url, options, parts.schema)
            committed = table.transaction_version(app_id)
            if committed is not None and committed >= version:
                return False
            try:
                deltalake.write_deltalake(
                    table,
                    _batches(parts),
                    mode="append",
                    schema_mode="merge",
                    target_file_size=_FILE_BYTES,
                    commit_properties=once,
                )
            except CommitFailedError:  # the table was changed or made by another; what was written stands nowhere
                if attempt == _ATTEMPTS:
                    raise
            else:
                return True
    raise AssertionError("the last attempt returns or raises")


def _opened(deltalake: Any, url: str, options: dict[str, str], schema: pa.Schema) -> Any:
    """The table as it is now, made without rows if there is none."""
    if not deltalake.DeltaTable.is_deltatable(url, options):
        try:
            deltalake.DeltaTable.create(url, schema, mode="ignore", storage_options=options)
        except deltalake.exceptions.DeltaError:
            if not deltalake.DeltaTable.is_deltatable(url, options):  # else another was faster
                raise
    return deltalake.DeltaTable(url, storage_options=options)


@contextlib.contextmanager
def _no_panic(url: str) -> Iterator[None]:
    """What deltalake takes for impossible, such as brackets in a path, is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise LakeError("unsupported-store", f"{shown(url)}: deltalake cannot use this place: {error}") from None


def _batches(parts: pyarrow.dataset.Dataset) -> pa.RecordBatchReader:
    # The defaults read sixteen files ahead.
    return parts.scanner(batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1).to_reader()
