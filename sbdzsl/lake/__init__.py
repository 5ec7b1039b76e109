"""Lakes: where images lie and results go, on any store, and the manifest that lists them.

    store       bytes in and out of any place, written once where that is asked for
    folders     what a store holds, file by file
    packed      images inside TAR files, read by their range
    pick        which files are images that are wanted
    manifest    the table of images
    listing     a lake of any size into a folder of manifest pages (partitions, inventory)
    delta       verdicts as a Delta table

Other packages use what is offered here, `listing` and `delta`.
"""

from sbdzsl.lake.folders import StoredFile, list_files
from sbdzsl.lake.manifest import (
    MANIFEST_SCHEMA,
    MANIFEST_VALUES,
    image_id,
    image_table,
    list_images,
    manifest_digest,
    manifest_pages,
    read_manifest,
    read_manifests,
    write_manifest,
)
from sbdzsl.lake.packed import read_bytes, read_together, together
from sbdzsl.lake.pick import IMAGE_SUFFIXES
from sbdzsl.lake.store import (
    absolute_url,
    exists,
    filesystem,
    join,
    probe_write_once,
    remove,
    shown,
    storage_options,
    write_bytes,
    write_once,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST_SCHEMA",
    "MANIFEST_VALUES",
    "StoredFile",
    "absolute_url",
    "exists",
    "filesystem",
    "image_id",
    "image_table",
    "join",
    "list_files",
    "list_images",
    "manifest_digest",
    "manifest_pages",
    "probe_write_once",
    "read_bytes",
    "read_manifest",
    "read_manifests",
    "read_together",
    "remove",
    "shown",
    "storage_options",
    "together",
    "write_bytes",
    "write_manifest",
    "write_once",
]
