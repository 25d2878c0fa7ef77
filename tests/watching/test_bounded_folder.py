"""A folder that stays below its limit, in which nothing of the user's is touched."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.errors import DataError, InUseError, RecipeError, ResourceError
from kdedge.watching.bounded_folder import STATE, Limit, bounded_folder


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def fill(folder: Path, limit: Limit, *ranks: float, size: int = 10) -> None:
    with bounded_folder(folder, limit) as bounded:
        for rank in ranks:
            bounded.write(f"{rank:g}.jpg", rank, b"x" * size)


def test_the_highest_ranks_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "k", Limit(3), 5, 1, 9, 7, 2, 8)
    assert pictures(tmp_path / "k") == ["1.jpg", "2.jpg", "5.jpg"]


def test_a_size_is_a_limit_too(tmp_path: Path) -> None:
    fill(tmp_path / "k", Limit(None, 35), 5, 1, 9, 7)
    assert pictures(tmp_path / "k") == ["1.jpg", "5.jpg", "7.jpg"]
    with bounded_folder(tmp_path / "k", Limit(None, 35)) as bounded:
        assert bounded.write("large.jpg", 0, b"x" * 36) is None
        assert bounded.write("two.jpg", 3, b"x" * 25) is not None
    assert pictures(tmp_path / "k") == ["1.jpg", "two.jpg"]


def test_the_next_watch_goes_on_with_the_same_limit(tmp_path: Path) -> None:
    fill(tmp_path / "k", Limit(2), 5, 6)
    fill(tmp_path / "k", Limit(2), 1)
    assert pictures(tmp_path / "k") == ["1.jpg", "5.jpg"]


def test_files_of_others_stay_and_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "2.jpg").write_text("mine")
    (tmp_path / "z.jpg").write_text("mine, too")
    fill(tmp_path, Limit(1), 3, 2)
    assert pictures(tmp_path) == ["2-2.jpg", "2.jpg", "z.jpg"]
    assert (tmp_path / "2.jpg").read_text() == "mine"


def test_a_written_picture_that_the_user_has_replaced_is_the_users(tmp_path: Path) -> None:
    fill(tmp_path, Limit(1), 9, size=4)
    (tmp_path / "9.jpg").write_text("mine")  # as large
    os.utime(tmp_path / "9.jpg", (1, 1))
    fill(tmp_path, Limit(1), 1)
    assert (tmp_path / "9.jpg").read_text() == "mine"


def test_a_picture_that_the_user_has_moved_away_makes_room(tmp_path: Path) -> None:
    fill(tmp_path / "k", Limit(2), 1, 2)
    (tmp_path / "k/1.jpg").rename(tmp_path / "labeled.jpg")
    fill(tmp_path / "k", Limit(2), 8)
    assert pictures(tmp_path / "k") == ["2.jpg", "8.jpg"]


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "{",
        '{"pictures": {"../x": [1, 2, 3]}}',
        '{"pictures": {"a.jpg": 1}}',
        '{"pictures": {".bashrc": [1, 2, 3]}}',
    ],
)
def test_a_damaged_state_file_is_named_and_nothing_is_removed(tmp_path: Path, state: str) -> None:
    victim = tmp_path / "x"
    victim.write_text("mine")
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / STATE).write_text(state)
    with pytest.raises(DataError, match=STATE):
        fill(tmp_path / "k", Limit(1), 1, 2)
    assert victim.read_text() == "mine"


def test_two_watches_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with (
        bounded_folder(tmp_path, Limit()),
        pytest.raises(InUseError, match="folder of its own"),
        bounded_folder(tmp_path, Limit()),
    ):
        pass


def test_a_full_disk_leaves_what_was_there(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(256)
    with bounded_folder(disk, Limit(2)) as bounded:
        bounded.write("1.jpg", 5, b"x" * 60_000)
        bounded.write("2.jpg", 6, b"x" * 60_000)
        with pytest.raises(ResourceError, match="the disk is full"):
            bounded.write("3.jpg", 1, b"x" * 200_000)
        assert pictures(disk) == ["1.jpg", "2.jpg"]
        assert bounded.write("4.jpg", 2, b"x" * 60_000) is not None
    assert pictures(disk) == ["1.jpg", "4.jpg"]
    assert not [path for path in disk.iterdir() if path.name.startswith(".3.jpg")]


def test_a_full_disk_without_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, Limit(1), 5)
    before = (tmp_path / STATE).read_bytes()

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with bounded_folder(tmp_path, Limit(1)) as bounded:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_room)
            with pytest.raises(ResourceError, match="the disk is full"):
                bounded.write("new.jpg", 1, b"x")
        assert pictures(tmp_path) == ["5.jpg"]
        assert (tmp_path / STATE).read_bytes() == before
        bounded.write("new.jpg", 1, b"x")
    assert pictures(tmp_path) == ["new.jpg"]


def test_after_a_kill_between_list_and_picture_the_list_is_right_again(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"pictures": {"gone.jpg": [0.0, 5, None]}}))
    fill(tmp_path, Limit(1), 7)
    assert pictures(tmp_path) == ["7.jpg"]


@given(ranks=st.lists(st.floats(0, 100), max_size=30), limit=st.integers(1, 6))
def test_the_lowest_ranks_stay_whatever_their_order(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[float], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    fill(folder, Limit(limit), *ranks)
    state = json.loads((folder / STATE).read_text()) if ranks else {"pictures": {}}
    kept = sorted(rank for rank, _, _ in state["pictures"].values())
    assert kept == sorted(ranks)[:limit]
    assert pictures(folder) == sorted(state["pictures"])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (500, Limit(500)),
        ("20", Limit(20)),
        ("2GB", Limit(None, 2 * 10**9)),
        ("1.5 mb", Limit(None, 1_500_000)),
    ],
)
def test_a_limit_is_a_number_or_a_size(text: int | str, limit: Limit) -> None:
    assert Limit.parse("keep_max", text) == limit


@pytest.mark.parametrize("text", [0, "0", "0GB", "-1", "1.5", "many", "2TB", "", "\u0661"])
def test_another_limit_is_refused(text: int | str) -> None:
    with pytest.raises(RecipeError, match="keep_max is"):
        Limit.parse("keep_max", text)
