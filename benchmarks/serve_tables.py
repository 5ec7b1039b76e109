"""The online service's figures as rows."""

from __future__ import annotations

from typing import Any

Row = tuple[str, str, str]


def same(figures: dict[str, Any]) -> list[Row]:
    """Verdicts over HTTP beside the audit's."""
    shapes = figures["shapes"]
    files = max(one["files"] for one in shapes.values())
    found = ", ".join(f"{name} {sum(one['fields_that_differ'].values())}" for name, one in shapes.items())
    return [(f"{files} files over HTTP and by an audit: fields that differ", "0", found)]


def latency(figures: dict[str, Any]) -> list[Row]:
    """What each server adds, and what it carries."""
    rows = []
    image, goals = figures["image"], figures["goals"]
    for number, (name, one) in enumerate(figures["servers"].items()):
        goal = goals.get(name.partition("-")[0]) if "-" not in name else None
        what = f"`{name}`: added to the inspector's median; 99 % over median"
        if number == 0:
            what = (
                f"One client, {image['side_px']}x{image['side_px']} {image['form'].upper()} ({image['kB']} kB), {what}"
            )
        times = f"{one['added_p50_ms']:+.1f} ms (of {one['latency_ms']['p50']:.1f}); {one['p99_to_p50']:.1f}"
        limits = f"≤ {goal['added_p50_ms']:.0f} ms; ≤ {goal['p99_to_p50']:.0f}" if goal else ""
        rows.append((("– " if number else "") + what, limits, times))
    carried = "; ".join(f"{name} {one['throughput']:.2f}" for name, one in figures["servers"].items())
    limits = ", ".join(f"{name} ≥ {goal['throughput']:.2f}" for name, goal in goals.items())
    what = f"– {figures['clients']} clients: images/s as a share of the in-process loop's"
    return [*rows, (what, limits, carried)]


def load(figures: dict[str, Any]) -> list[Row]:
    """Three times as much as it can carry."""
    rows = []
    for name, one in figures["shapes"].items():
        statuses = ", ".join(f"{status}: {number:,}" for status, number in sorted(one["statuses"].items()))
        halves = one["peak_own_mb"]
        grew = max(halves["both_halves"][who] - halves["first_half"].get(who, 0) for who in halves["both_halves"])
        rows.append(
            (
                f"`{name}`, three times its rate for {one['minutes']:g} min: statuses; accepted, 99 %; recovery; "
                "memory, second half over first",
                "200 and 429; bounded; ≤ 10 s; flat",
                f"{statuses}; {one['accepted_ms']['p99']:,.0f} ms; {one['recovery_s']:.1f} s; {grew:+.0f} MB",
            )
        )
    return rows


def faults(figures: dict[str, Any]) -> list[Row]:
    """Deaths and a change of bundle under load."""
    names = ("detectors killed", "routers killed", "bundle changed")
    answered = sum(figures[name]["answered"] for name in names)
    wrong = sum(figures[name]["wrong_verdicts"] for name in names)
    lost = sum(sum(figures[name]["lost"].values()) for name in names)
    killed = ", ".join(f"{number} of {name}" for name, number in figures["killed"].items())
    slowest = "; ".join(f"{name} {figures[name]['ms_with_retries']['max'] / 1e3:.1f} s" for name in names)
    return [
        (
            f"`routed` under load, SIGKILLs ({killed}) and a new bundle: {answered:,} answers; wrong verdicts; lost "
            "after retries",
            "0; 0",
            f"{wrong}; {lost}",
        ),
        ("– slowest answer, retries included", "", slowest),
    ]


def hostile(figures: dict[str, Any]) -> list[Row]:
    """Hostile requests."""
    wrong = sum(sum(found.values()) for found in figures["wrong_status"].values())
    return [
        (
            f"{figures['requests']} hostile requests: answered by 5xx; by another wrong status; peak memory",
            "0; 0",
            f"{figures['server_errors']}; {wrong}; {figures['peak_mb'] / 1e3:.1f} GB",
        )
    ]


def watch(figures: dict[str, Any]) -> list[Row]:
    """A watched folder under kills."""
    return [
        (
            f"{figures['images']:,} files into a watched folder, {figures['asked_for']} SIGKILLs of watch and service: "
            "verdicts; lost; doubled",
            "one a file; 0; 0",
            f"{figures['lines']:,}; {figures['lost']}; {figures['doubled']}",
        )
    ]


def log(figures: dict[str, Any]) -> list[Row]:
    """The verdict log under kills."""
    return [
        (
            f"{figures['kills']} SIGKILLs of a service, {figures['answers']:,} answers: alarms lost; rows doubled; "
            "good answers lost of one kill",
            "0; 0; some ms of them",
            f"{figures['alarms_lost']}; {figures['rows_doubled']}; at most {figures['good_lost_of_one_kill_at_most']}",
        )
    ]


def alerts(figures: dict[str, Any]) -> list[Row]:
    """Alerts under kills, by sink."""
    kills = figures["kills"]
    total, accepted = (sum(one[name] for one in kills.values()) for name in ("kills", "accepted"))
    lost = "; ".join(f"{name} {one['lost']}" for name, one in kills.items())
    again = sum(one["arrived_again"] for one in kills.values())
    return [
        (
            f"{total} SIGKILLs while alerts are sent, {accepted:,} accepted: lost, by sink; arrived twice",
            "0; at least once",
            f"{lost}; {again}",
        )
    ]


def page(figures: dict[str, Any]) -> list[Row]:
    """From a camera's request to the operator's eyes."""
    return [
        (
            "Operator page: from the request to the verdict on the page, median; 99 %",
            "≤ 2 s",
            f"{figures['verdict']['p50_ms']:.0f} ms; {figures['verdict']['p99_ms']:.0f} ms",
        )
    ]


STUDIES = {
    "serve_same": same,
    "serve_latency": latency,
    "serve_load": load,
    "serve_faults": faults,
    "serve_hostile": hostile,
    "watch_kills": watch,
    "log_crash": log,
    "alert_delivery": alerts,
    "page_latency": page,
}
