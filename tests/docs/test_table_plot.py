"""The pictures of benchmarks/README.md show what its tables say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PICTURES = {
    "photos100.svg": "photos100: real photos, small CLIPs",
    "ablations.svg": "What PromptKD's gain comes from",
    "unlabeled-methods.svg": "The other ways to learn from unlabeled images",
}


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table_plot", BENCHMARKS / "table_plot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_of_its_table(name: str, plot: ModuleType) -> None:
    rows = plot.read_table((BENCHMARKS / "README.md").read_text("utf-8"), PICTURES[name])
    assert plot.draw(rows) == (BENCHMARKS / name).read_text("utf-8")


def test_dots_lie_as_far_apart_as_their_values(plot: ModuleType) -> None:
    table = "## Table\n\n| model | base | novel | harmonic mean |\n|---|---:|---:|---:|\n"
    table += "| one | 12.00 | 14.00 ± 1.00 | **13.00** |\n\n## Next\n"
    picture = plot.draw(plot.read_table(table, "Table"))
    base, novel, mean = (float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="49"', picture))
    assert (novel - base) / (mean - base) == pytest.approx(2, abs=0.01)
    (left, right), *_ = (
        [float(x) for x in ends]
        for ends in re.findall(r'<path d="M([\d.]+) 49H([\d.]+)" stroke="#f59e0b"', picture)
    )
    assert right - left == pytest.approx(novel - base, abs=0.2)
