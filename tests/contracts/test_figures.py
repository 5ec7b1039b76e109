"""The names of figures in the JSON of `sbdzsl evaluate`: others read them. Growing the lists is a decision."""

from pathlib import Path

from sbdzsl import evaluation
from tests.conftest import SEEN, Trained

#: Figures with an interval under the same name in `intervals`.
ESTIMATED = {
    "ap",
    "ap_trapezoid",
    "auroc",
    "f1",
    "fp",
    "fn",
    "best_f1_on_test",
    "false_alarms_at_full_recall",
    "calibration_error",
}
PIXELS = {"pixel_ap", "aupro"}
IN_SAMPLE = {"fp_at_best_f1_on_test", "fn_at_best_f1_on_test"}

SURFACE = {
    "seen",
    "num_images",
    "num_good",
    "num_defect",
    "intervals",
    "threshold",
    "threshold_policy",
    "promised_false_alarm_rate",
    "false_alarm_rate",
    "false_alarm_range",
    "miss_rate",
    "miss_range",
    "threshold_of_best_f1_on_test",
    "pixels",
    "robustness",
} | (ESTIMATED | PIXELS | IN_SAMPLE)

POOLED = {"surfaces", "left_out", "num_good", "num_defect", "intervals"} | ESTIMATED | IN_SAMPLE
MEAN = {"intervals"} | (ESTIMATED | PIXELS) - {"fp", "fn", "false_alarms_at_full_recall"}

TOP = {
    "bundle",
    "num_images",
    "num_errors",
    "errors",
    "s",
    "u",
    "h",
    "naming",
    "unseen_false_alarms",
    "unseen_auroc",
    "routed_right",
    "budgets",
    "end_to_end",
    "surfaces",
    "pooled",
    "mean",
}


def test_the_figures_are_those_promised(trained: Trained) -> None:
    figures = evaluation.evaluate(trained.bundle, trained.manifest, with_robustness=True).figures
    surface = figures["surfaces"][SEEN[0]]
    assert set(figures) == TOP
    assert set(surface) == SURFACE
    assert set(figures["pooled"]) == POOLED
    assert set(figures["mean"]) == MEAN
    assert set(surface["pixels"]) == {"num_images", "num_regions", "mask_kinds", "mask_errors"}
    expected = {"change", "amount", "unit", "ap", "auroc", "fp", "fn", "num_good", "num_defect"}
    assert set(surface["robustness"][0]) == expected


def test_each_figure_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    assert [name for name in sorted(ESTIMATED | PIXELS) if f"`{name}`" not in manual] == []
