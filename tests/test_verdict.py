"""The verdict in words, as an engineer reads it, and as plain JSON."""

from dataclasses import replace

import pytest

from sbdzsl.verdict import VERDICT_SCHEMA, Region, Verdict, nearness, phrase, verdict_table

UNSEEN = Verdict(
    image_id="1",
    uri="a.png",
    verdict="unseen",
    bundle="b",
    surface="leather",
    unseen_score=3.6,
    unseen_threshold=2.0,
    unseen_p_value=0.004,
    attributes=("texture: grainy", "background: black", "texture: strip"),
    nearest_surfaces=("leather", "sandpaper"),
    nearest_scores=(3.6, 4.8),
    extrapolated=True,
)


def test_an_unseen_surface_in_one_line() -> None:
    assert UNSEEN.describe() == (
        "UNSEEN (p = 0.004); nearest: leather (1.80× the limit), sandpaper (2.40×); "
        "looks: texture grainy, strip; background black (extrapolated)"
    )
    bare = replace(UNSEEN, attributes=())
    assert bare.describe().endswith("looks: nothing stands out (extrapolated)")


def test_a_defect_says_places_first_and_then_what_the_surface_looks_like() -> None:
    defect = replace(
        UNSEEN,
        verdict="defect",
        defect_score=5.0,
        defect_threshold=1.0,
        regions=(Region(1, 2, 30, 40, 900, 5.0),),
        extrapolated=False,
    )
    assert defect.describe() == (
        "DEFECT leather, score 5.00 against threshold 1.00; 30x40 px at (1, 2); "
        "looks: texture grainy, strip; background black"
    )
    assert replace(defect, verdict="good").describe() == "GOOD leather, score 5.00 against threshold 1.00"


@pytest.mark.parametrize(
    ("scores", "threshold", "said"),
    [
        ((0.5, 2.0), 1.0, "a (0.50× the limit), b (2.00×)"),
        ((0.5, 2.0), 0.0, "a (score 0.50), b (score 2.00)"),
        ((0.5, 2.0), None, "a (score 0.50), b (score 2.00)"),
        ((), 1.0, "a, b"),
    ],
)
def test_a_margin_is_measured_by_the_limit_where_there_is_one(
    scores: tuple[float, ...], threshold: float | None, said: str
) -> None:
    assert nearness(("a", "b"), scores, threshold) == said


def test_attributes_of_any_form_are_a_phrase() -> None:
    assert phrase(("shiny", "blue", "edge: sharp")) == "shiny, blue; edge sharp"
    assert phrase(()) == "nothing stands out"


def test_row_and_json_hold_the_margins() -> None:
    (row,) = verdict_table([UNSEEN]).to_pylist()
    assert row["nearest_scores"] == [3.6, 4.8]
    assert row["extrapolated"] is True
    assert set(UNSEEN.to_json()) == {*VERDICT_SCHEMA.names, "result_evaluation"}
    (error,) = verdict_table([Verdict("1", "a.png", "error", "b")]).to_pylist()
    assert error["extrapolated"] is None
