"""The script that prints published counts beside those on the disk."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdedge.data.benchmarks import list_benchmarks, load_benchmark

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "set_counts.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_counts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list_benchmarks())
def test_the_halves_of_the_published_test_images_add_up(name: str, script: ModuleType) -> None:
    counts = script.published(load_benchmark(name))
    if counts["base"] is not None:
        assert counts["base"] + counts["novel"] == counts["test"]


@pytest.mark.parametrize("name", list_benchmarks())
def test_a_miniature_has_the_counts_that_it_is_made_with(
    name: str, script: ModuleType, miniature: Callable[[str], Any]
) -> None:
    mini = miniature(name)
    (_, counts), *more = script.found(mini.benchmark, mini.folder.parent)
    assert more == []
    assert counts["classes"] == len(mini.names)
    assert {part: counts[part] for part in mini.n_images} == mini.n_images
    per_class = mini.n_images["test"] // len(mini.names)
    n_base = (len(mini.names) + 1) // 2
    if name != "fgvc_aircraft":  # whose classes have 4, 3 and 3 images
        assert counts["base"] == n_base * per_class
    assert counts["base"] + counts["novel"] == mini.n_images["test"]


def test_a_count_that_is_not_the_published_one_is_marked(
    script: ModuleType, miniature: Callable[[str], Any]
) -> None:
    mini = miniature("dtd")
    root = mini.folder.parent
    names = [f"{name}/{i}.jpg" for name in mini.names for i in range(2)]
    rows = [[path, i // 2, mini.names[i // 2]] for i, path in enumerate(names)]
    split = {"train": rows[:2], "val": rows[2:3], "test": rows[3:]}
    (mini.folder / mini.split_file).write_text(json.dumps(split))
    paper, ours, rule = script.rows_of(replace(mini.benchmark, name="dtd"), root)
    assert paper == ["dtd", "paper", "2", "10", "4", "6", "864", "828"]
    assert ours == ["", "split file", "2", "2!", "1!", "1!", "0!", "1!"]
    assert rule == ["", "own rule", "2", "10", "4", "6", "3!", "3!"]


def test_a_set_that_is_not_here_has_the_papers_row_alone(
    script: ModuleType, tmp_path: Path
) -> None:
    assert len(list(script.rows_of(load_benchmark("ucf101"), tmp_path))) == 1
