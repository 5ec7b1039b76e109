"""Figures of training and sweeping on a cluster, as rows."""

from __future__ import annotations

from typing import Any

Row = tuple[str, str, str]


def trained(figures: dict[str, Any]) -> list[Row]:
    """A training spread over two nodes, undisturbed and disturbed."""
    single, spread = figures["single"]["wall_s"], figures["cluster"]["wall_s"]
    lost, naive = figures["lost_node"], figures["naive"]
    again = len(lost["trained_again"]) + len(lost["files_of_kept_ones_written_again"])
    same = "the undisturbed bundle's nets" if lost["same_nets_as_undisturbed"] else "other nets"
    return [
        (
            f"{figures['surfaces']} drawn surfaces trained on {figures['nodes']} nodes of one core, over one process "
            "with two threads",
            f"≤ 1.10 + 45 s: {figures['goal_s']:.0f} s",
            f"{spread:.0f} s over {single:.0f} s: {figures['ratio_of_wall_times']:.2f}",
        ),
        (
            f"– by a run a surface, in proportion to {naive['surfaces']} of them",
            "",
            f"{naive['for_all_in_proportion_s']:.0f} s",
        ),
        (
            "– a node killed half-way, then the driver, run again: surfaces in the bundle; trained again",
            f"{figures['surfaces']}; 0",
            f"{lost['surfaces_in_the_bundle']}; {again}; {same}",
        ),
    ]


def wide(figures: dict[str, Any]) -> list[Row]:
    """One surface trained by several workers."""
    found = figures["summary"]
    aps = "; ".join(f"{who}: {one['ap_mean']:.3f} ± {one['ap_std']:.3f}" for who, one in found.items())
    return [
        (
            f"One surface ({figures['source']}) by two workers together: AP, three seeds; seconds over one worker's",
            "the same AP",
            f"{aps}; {figures['ratio_of_train_s']:.2f}",
        )
    ]


def sweep(figures: dict[str, Any]) -> list[Row]:
    """Sweeps that are killed and gone on with, and what they found."""
    rows = [row for name, title in SWEEPS.items() if name in figures for row in one_sweep(title, figures[name])]
    unpruned, pruned = (figures["gate"][name]["trial_seconds"] for name in ("unpruned", "pruned"))
    return [*rows, ("– seconds of the gate's trials without pruning; with it", "", f"{unpruned:.0f} s; {pruned:.0f} s")]


SWEEPS = {
    "gate": "Sweep of the gate",
    "gate-in-postgresql": "Sweep of the gate, its study in PostgreSQL",
    "vaegan": "Sweep of CE-VAE and VAEGAN under the paper's score",
}


def one_sweep(title: str, found: dict[str, Any]) -> list[Row]:
    """How a killed sweep ended, and what its best settings are worth beside those given."""
    search, given, best = found["pruned"], found["test, given"], found["test, found"]
    counts = search["trials"]
    return [
        (
            f"{title}, {found['seen']} seen real surfaces, driver killed at {search['finished_at_kill']} "
            "trials: distinct finished or pruned ones in the end; lost or changed",
            "40; 0",
            f"{search['distinct_finished_or_pruned']} ({counts['complete']} finished, {counts['pruned']} pruned); "
            f"{search['finished_at_kill'] - search['finished_at_kill_and_unchanged']}",
        ),
        (
            f"– H on pseudo-unseen surfaces, and on {len(found['unseen'])} truly unseen ones: found; by the defaults",
            "",
            f"{search['best']['value']:.3f}, {best['h']:.3f}; {search['given']['value']:.3f}, {given['h']:.3f}",
        ),
    ]


STUDIES = {"train_cluster": trained, "train_wide": wide, "sweep": sweep}
