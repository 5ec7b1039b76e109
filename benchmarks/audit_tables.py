"""The audit's figures as rows and as the tables of `docs/scale.md`."""

from __future__ import annotations

from typing import Any

import sbdd_tables

Row = tuple[str, str, str]


def efficiency(figures: dict[str, Any]) -> list[Row]:
    """An audit beside bare loops and a plain program."""
    repeats, goals = figures["repeats"], figures["goals"]

    def over(name: str) -> str:
        values = [repeat[name] for repeat in repeats]
        return f"{figures['medians'][name]:.2f} ({min(values):.2f} to {max(values):.2f})"

    what = f"Audit of {figures['images']:,} images of {figures['side']}x{figures['side']}"
    rate = sorted(repeat["audit"]["images_per_second"] for repeat in repeats)[len(repeats) // 2]
    return [
        (
            f"{what}, {figures['actors']} actors of one thread: rate as a share of a bare loop's of as many threads",
            f"≥ {goals['audit_to_loop']}",
            f"{over('audit_to_loop')}; {rate:.0f} images/s",
        ),
        ("– of as many bare loops side by side", f"≥ {goals['audit_to_loops']}", over("audit_to_loops")),
        (
            "– times as fast as `read_images().map_batches()`, as written; with all CPUs to judge",
            f"≥ {goals['audit_to_program']}",
            f"{over('audit_to_program')}; {over('audit_to_packed_program')}",
        ),
        ("– start-up beyond `ray.init`", f"≤ {goals['start_up_s']:.0f} s", f"{figures['medians']['start_up_s']:.1f} s"),
    ]


def scale(figures: dict[str, Any]) -> list[Row]:
    """Time a row and memory at the smallest and the largest size."""
    runs = sorted(figures.values(), key=lambda run: run["images"])
    from_ten_thousand = [run for run in runs if run["images"] >= 10_000]
    times = [f"{run['ms_a_row']:.2f} ms at {run['images']:,}" for run in from_ten_thousand]
    driver, actor = (
        [f"{run['peak_mb'][name]['own']:.0f}" for run in from_ten_thousand] for name in ("driver", "actor")
    )
    return [
        (f"{runs[-1]['images']:,} small images: time a row, by size of the archive", "flat", ", ".join(times)),
        ("– peak memory of driver; of an actor, MB", "flat", f"{', '.join(driver)}; {', '.join(actor)}"),
    ]


def faults(figures: dict[str, Any]) -> list[Row]:
    """Kills and a bad store."""
    rows = []
    if (found := figures.get("kills")) is not None:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in found["kills"].items())
        total = sum(found["kills"].values())
        rows.append(
            (
                f"{total} SIGKILLs at random ({kinds}): rows lost, doubled, different; parts written twice",
                "0, 0, 0; 0",
                f"{found['lost']}, {found['doubled']}, {found['different']}; {found['parts_rewritten']} "
                f"of {found['rows']:,} rows; {found['shards_repeated']} of {found['shards']} shards judged again",
            )
        )
    if (found := figures.get("store")) is not None:
        num_faults = sum(found["faults"].values())
        rows.append(
            (
                f"Store that spoils {found['share']:.0%} of answers (`--store`): wrong rows of {found['images']}",
                "0",
                f"{found['different']}; {found['error_rows']} error rows, {num_faults} faults",
            )
        )
    return rows


def hostile(figures: dict[str, Any]) -> list[Row]:
    """Mutated images and bombs."""
    peak, without = (figures[name]["actor"]["own"] for name in ("peak_mb", "peak_mb_without_bombs"))
    return [
        (
            f"{figures['files']:,} mutated images and bombs: rows; processes that died; peak memory of an actor",
            f"{figures['files']:,}; 0; bounded",
            f"{figures['rows']:,}; {figures['processes_that_died']}; {peak:.0f} MB, without bombs {without:.0f}",
        )
    ]


def s3(figures: dict[str, Any]) -> list[Row]:
    """The whole path on S3."""
    audit = figures["steps"]["audit"]
    return [
        (
            f"Ingest, train, audit, report on S3 (moto), {figures['objects']:,} objects: rows; error rows",
            "all; 0",
            f"{audit['rows']:,}; {audit['error_rows']} ({audit['rows_per_second']:.0f} rows/s)",
        )
    ]


def report_at_scale(figures: dict[str, Any]) -> list[Row]:
    """The report alone."""
    largest = max(figures["runs"], key=lambda run: run["rows"])
    return [
        (
            f"Report on {largest['rows']:,} made-up rows: time, memory, page",
            "a minute, a few MB",
            f"{largest['report_in_all_s']:.0f} s, {largest['peak_mb']} MB more, {largest['page_kb'] / 1000:.1f} MB",
        )
    ]


def listing(figures: dict[str, Any]) -> list[Row]:
    """How fast lakes are listed."""
    rates = [f"{one['lake']} {one['images_per_second']:,}" for one in figures["lakes"]]
    return [("Listing, images a second", "", ", ".join(rates))]


STUDIES = {
    "audit_efficiency": efficiency,
    "audit_scale": scale,
    "audit_faults": faults,
    "audit_hostile": hostile,
    "audit_s3": s3,
    "audit_listing": listing,
    "report_scale": report_at_scale,
}


def scale_command(figures: dict[str, Any]) -> str:
    """What measures all recorded sizes, which may have been measured by several commands."""
    return f"python benchmarks/audit_scale.py {' '.join(map(str, sorted(run['images'] for run in figures.values())))}"


def scale_section() -> str:
    """The measured part of `docs/scale.md`."""
    found = sbdd_tables.result("audit_scale")
    if found is None:
        return "Not measured yet."
    runs = sorted(found["figures"].values(), key=lambda run: run["images"])
    lines = [
        f"`{scale_command(found['figures'])}`, {found['date']}, on {found['machine']['cpus']} shared cores: images of "
        f"64x64 pixels in TAR files, judged by {runs[-1]['runtime']}. Times move with the machine's other work.",
        "",
        "| images | listed a second | start to first shard | a row | after the last | driver, peak | actor, peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        driver, actor = (f"{run['peak_mb'][name]['own']:.0f} MB" for name in ("driver", "actor"))
        lines.append(
            f"| {run['images']:,} | {run['listed_per_second']:,} | {run['until_first_shard_s']} s "
            f"| {run['ms_a_row']:.2f} ms | {run['after_last_shard_s']} s | {driver} | {actor} |"
        )
    return "\n".join([*lines, "", "![Time a row and peak memory over the number of images](images/audit_scale.png)"])
