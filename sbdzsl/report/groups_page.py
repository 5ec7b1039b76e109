"""The groups of unseen images as files: a manifest a group to enrol or extend by, `groups.csv`, and a page to look at.

`groups.html` needs nothing beside itself. Names of files are hostile input: the template escapes everything.
"""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from sbdzsl import __version__, lake
from sbdzsl.config import ImageSettings
from sbdzsl.datasets import samples_to_table
from sbdzsl.grouping import Group, Grouping, Member, manifest_samples
from sbdzsl.inspector import load_image
from sbdzsl.report.overlay import encode_thumbnail
from sbdzsl.spreadsheet import rows_csv

#: Groups that the page shows, the largest first, and pictures of each; the manifests and the CSV hold all.
MAX_SHOWN, MAX_PICTURES = 40, 6
COLUMNS = ("group", "image_id", "uri", "unseen_score", "nearest_surface")


@dataclass(frozen=True, slots=True)
class _Section:
    group: Group
    enrol: str
    extend: str
    pictures: tuple[tuple[str, str], ...]  # data URL, uri


def write_groups(grouping: Grouping, bundle_url: str, settings: ImageSettings, out: str) -> str:
    """Write `group-NN.parquet`, `groups.csv` and `groups.html` into the folder or URL `out`; returns the page's URL.

    Files of the same names are replaced, manifests of groups that are no more are removed. The images of the page are
    read again, by `settings`. Raises `LakeError` where `out` cannot be written.
    """
    out = lake.absolute_url(out)
    for old in lake.list_files(out) if lake.exists(lake.join(out, "groups.csv")) else ():
        if re.fullmatch(r"group-\d+\.parquet", old.uri.rpartition("/")[2]):
            lake.remove(old.uri)
    for group in grouping.groups:
        lake.write_manifest(samples_to_table(manifest_samples(group)), manifest_url(out, group))
    lake.write_bytes(lake.join(out, "groups.csv"), _table(grouping))
    sections = [
        _Section(
            group,
            enrol_command(bundle_url, out, group),
            extend_command(bundle_url, out, group),
            _pictures(group, settings),
        )
        for group in grouping.groups[:MAX_SHOWN]
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("groups.html.j2").render(
        found=grouping, sections=sections, num_hidden=len(grouping.groups) - len(sections), version=__version__
    )
    target = lake.join(out, "groups.html")
    lake.write_bytes(target, page.encode())
    return target


def manifest_url(out: str, group: Group) -> str:
    """Where the manifest of a group stands."""
    return lake.join(lake.absolute_url(out), f"{group.name}.parquet")


def enrol_command(bundle_url: str, out: str, group: Group) -> str:
    """The command that enrols a group; the name of the surface and the new bundle are left to the reader."""
    return _command("enrol", bundle_url, out, group, "NAME")


def extend_command(bundle_url: str, out: str, group: Group) -> str:
    """The command that teaches a group as a new lot of the known surface that is nearest to it."""
    return _command("extend", bundle_url, out, group, shlex.quote(group.nearest[0]))


def _command(verb: str, bundle_url: str, out: str, group: Group, surface: str) -> str:
    bundle, manifest = shlex.quote(bundle_url), shlex.quote(manifest_url(out, group))
    return f"sbdzsl {verb} --bundle {bundle} --manifest {manifest} --surface {surface} --out NEW_BUNDLE"


def _table(grouping: Grouping) -> bytes:
    parts: list[tuple[str, tuple[Member, ...]]] = [(group.name, group.members) for group in grouping.groups]
    return rows_csv(
        COLUMNS,
        (
            (name, member.sample.image_id, member.sample.uri, member.unseen_score, member.nearest)
            for name, members in [*parts, ("", grouping.single)]
            for member in members
        ),
    )


def _pictures(group: Group, settings: ImageSettings) -> tuple[tuple[str, str], ...]:
    pictures = []
    for member in group.members[:MAX_PICTURES]:
        sample = member.sample
        image = load_image(sample.image_id, sample.uri, settings, sample.bit_depth).image
        if image is not None:
            tone = np.rint(np.clip(image.grey(), 0, 1) * 255).astype(np.uint8)
            data = encode_thumbnail(np.repeat(tone[:, :, None], 3, axis=2), 240, 240)
            pictures.append((f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}", sample.uri))
    return tuple(pictures)
