"""The queue of a training without Ray: who gets what, deaths, deadlines, and what a driver is told."""

from __future__ import annotations

import time

from sbdzsl.cluster.board import MAX_DEATHS, Board, Standing


def test_each_surface_is_given_once_in_order() -> None:
    board = Board(["large", "small"])
    assert [board.take(0, "a"), board.take(1, "a"), board.take(1, "a")] == ["large", "small", None]


def test_what_a_dead_group_had_begun_is_given_to_the_next_one_which_may_be_smaller() -> None:
    board = Board(["x", "y"])
    assert (board.take(0, "a"), board.take(1, "a")) == ("x", "y")
    board.died([1], "killed")
    # The group is started anew as a whole: the other's process has ended as well.
    assert board.take(0, "b") == "x"
    board.finish("x")
    assert board.take(0, "b") == "y"
    assert board.news().lines[0] == "y: its process died (killed); it goes on from its last checkpoint"


def test_a_surface_over_which_processes_keep_dying_is_given_up_and_its_neighbour_is_not() -> None:
    board = Board(["bad", "fine"])
    for number in range(MAX_DEATHS):
        assert board.take(0, f"{number}") == "bad"
        assert board.take(1, f"{number}") == "fine"
        board.died([0], "out of memory")
    assert board.take(1, "last") == "fine"
    assert board.take(0, "last") is None
    board.finish("fine")
    news = board.news()
    assert news.trained == ("fine",)
    assert set(news.failed) == {"bad"}
    assert "3 processes died over it (out of memory)" in news.failed["bad"]
    assert news.unfinished == ()


def test_after_the_time_nothing_is_begun_and_what_was_begun_is_told_to_stop() -> None:
    board = Board(["x", "y"], stop_at=time.time() + 0.2)
    assert board.take(0, "a") == "x"
    assert board.note("x", Standing(1, 4, 0.5, None, 1.0))
    time.sleep(0.25)
    assert not board.note("x", Standing(2, 4, 0.5, None, 2.0))
    board.stop("x")
    assert board.take(0, "a") is None
    assert board.news().unfinished == ("x", "y")


def test_the_table_says_how_far_each_is_and_how_long_it_will_take() -> None:
    board = Board(["x", "y", "z"])
    board.take(0, "a")
    board.take(1, "a")
    board.note("x", Standing(2, 10, 0.5, 0.875, 8.0))
    board.note("x", Standing(5, 10, 0.25, None, 20.0))
    assert board.news().table == (
        "0/3 surfaces trained, 2 training, 1 waiting",
        "  x: epoch 5/10, loss 0.250, validation AP 0.875, 20 s left",
        "  y: reading its images",
    )
    board.finish("x")
    board.fail("y", "too-few-images: found 1")
    news = board.news()
    assert news.lines == (
        "x is trained: 5 epochs, 20 s, validation AP 0.875",
        "y failed: too-few-images: found 1",
    )
    assert board.news().lines == (), "a line is told once"
    assert news.table == ("1/3 surfaces trained, 1 waiting, 1 failed",)
