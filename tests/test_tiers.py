"""Which tests run: nothing is lost between the shards, what takes longest starts first, what is new always runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .support import tiers

DURATIONS = {"a.py": (1.0, 300.0), "b.py": (9.0, 120.0), "c.py": (4.0, 100.0), "d.py": (2.0, 90.0), "e.py": (5.0, 0.0)}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_file_lands_in_exactly_one_shard(count: int) -> None:
    """Whatever the number of shards, one with nothing to do included."""
    seconds = {f"{index}.py": float(index**2) for index in range(5)}
    shards = tiers.deal(seconds, count)
    assert len(shards) == count
    assert sorted(file for shard in shards for file in shard) == sorted(seconds)


def test_shards_are_equally_long_but_for_one_file() -> None:
    """The difference is at most the longest file."""
    seconds = {f"{index}.py": 10.0 + index % 17 for index in range(100)}
    totals = [sum(seconds[file] for file in shard) for shard in tiers.deal(seconds, 3)]
    assert max(totals) - min(totals) <= max(seconds.values())


def test_runs_of_all_shards_leave_nothing_out() -> None:
    """Each file of the second tier runs in one of them; files without such tests are in none."""
    ran = [{"a.py", "b.py", "c.py", "d.py"} - tiers.left_out(DURATIONS, f"{k}/3", None, 2, "0") for k in (1, 2, 3)]
    assert sorted(file for shard in ran for file in shard) == ["a.py", "b.py", "c.py", "d.py"]


def test_a_budget_that_is_enough_leaves_nothing_out() -> None:
    """610 s for two workers are a bit more than five minutes."""
    assert tiers.left_out(DURATIONS, None, 6.0, 2, "ff") == set()
    assert tiers.left_out(DURATIONS, None, 5.0, 2, "ff") != set()


def test_commits_take_turns() -> None:
    """The commit chooses the shard, the same one each time, and a few commits reach all files."""
    left = [tiers.left_out(DURATIONS, None, 3.0, 2, commit) for commit in ("a0", "a1", "a0")]
    assert left[0] == left[2] != left[1]
    assert set.intersection(*left) == set()


@pytest.mark.parametrize("shard", ["0/2", "3/2"])
def test_a_shard_that_does_not_exist_is_refused(shard: str) -> None:
    """It would run nothing, and look as if all had passed."""
    with pytest.raises(pytest.UsageError, match="K from 1 to N"):
        tiers.left_out(DURATIONS, shard, None, 2, "0")


class Item:
    """A test of a file, with marks."""

    def __init__(self, nodeid: str, *marks: str, fixtures: tuple[str, ...] = ()) -> None:
        self.nodeid, self.fixturenames, self.keywords = nodeid, fixtures, dict.fromkeys(marks, True)

    def add_marker(self, mark: str) -> None:
        self.keywords[mark] = True


def collected(monkeypatch: pytest.MonkeyPatch, folder: Path, items: list[Any], **options: Any) -> list[str]:
    """Node ids of the tests that run, in their order, and what is left out is said to pytest."""
    for file in DURATIONS:
        (folder / file).touch()
    (folder / "durations.json").write_text(json.dumps(DURATIONS))
    monkeypatch.setattr(tiers, "ROOT", folder)
    monkeypatch.setattr(tiers, "DURATIONS", folder / "durations.json")
    deselected: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    given = {"shard": None, "budget": None, "measure": None, "numprocesses": 2, **options}
    config: Any = SimpleNamespace(option=SimpleNamespace(**given), hook=hook)
    before = list(items)
    steps = tiers.Tiers(config).pytest_collection_modifyitems(config, items)
    next(steps)
    assert next(steps, None) is None
    assert sorted(map(id, [*items, *deselected])) == sorted(map(id, before))
    return [item.nodeid for item in items]


def test_the_longest_files_start_first_and_a_file_stays_together(monkeypatch, tmp_path) -> None:
    """By what the tests that run take: a.py is the longest of the second tier and the shortest of the first."""
    first = [Item(f"{file}::{name}") for file in DURATIONS for name in ("x", "y")]
    assert collected(monkeypatch, tmp_path, first)[:4] == ["b.py::x", "b.py::y", "e.py::x", "e.py::y"]
    both = [*first, Item("a.py::z", "slow")]
    assert collected(monkeypatch, tmp_path, both)[:3] == ["a.py::x", "a.py::y", "a.py::z"]


def test_a_shard_leaves_out_slow_tests_alone_and_nothing_that_is_new(monkeypatch, tmp_path) -> None:
    """Quick tests of its files run in every shard, and so do files that nobody has measured."""
    items = [Item(f"{file}::{mark}", mark) for file in (*DURATIONS, "new.py") for mark in ("slow", "triton")]
    for shard in ("1/2", "2/2"):
        ran = collected(monkeypatch, tmp_path, list(items), shard=shard)
        assert {f"{file}::triton" for file in DURATIONS} | {"new.py::slow", "new.py::triton"} <= set(ran)
        assert len(ran) < len(items)


def test_marks_follow_fixtures(monkeypatch, tmp_path) -> None:
    """A test that uses Orthanc needs root, whether or not somebody has marked it."""
    item = Item("a.py::x", fixtures=("pacs",))
    collected(monkeypatch, tmp_path, [item])
    assert {"pacs", "root"} <= set(item.keywords)
    assert tiers.is_later(item.keywords)
