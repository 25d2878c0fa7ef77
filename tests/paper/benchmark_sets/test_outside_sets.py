"""Benchmark sets join the core by entry points: kdedge's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

import kdedge
from kdedge.config.data_spec import ClassesSpec, DataSpec, SourceSpec
from kdedge.config.yaml_file import parse_yaml
from kdedge.data.classes import load_class_names
from kdedge.data.open import open_source
from kdedge.errors import DataError, SetupError

TABLE = Path(kdedge.__file__).parent / "paper" / "benchmark_sets" / "sets.yaml"
Make = Callable[[str], Any]


def test_every_set_of_the_table_has_an_entry_point() -> None:
    rows, _ = parse_yaml(TABLE.read_text(encoding="utf-8"), name=str(TABLE))
    points = distribution("kdedge").entry_points.select(group="kdedge.benchmark_sets")
    assert {point.name for point in points} == set(rows)


def test_a_recipe_takes_class_names_and_images_from_a_set_of_another_package(
    miniature: Make,
) -> None:
    mini = miniature("dtd")
    name, data = mini.benchmark.name, DataSpec(root=mini.root)
    names = load_class_names(ClassesSpec(benchmark=name), data=data)
    assert names == mini.names
    source = open_source(
        SourceSpec(benchmark=name, part="test"), class_names=names, labeled=True, data=data
    )
    assert len(source.items) == mini.n_images["test"]


def test_the_list_has_the_set_of_another_package(miniature: Make) -> None:
    mini = miniature("dtd")
    listed = kdedge.list_sets(mini.root)
    assert {"dtd", mini.benchmark.name} <= set(listed)
    assert listed[mini.benchmark.name].status == "yes"


@dataclass(frozen=True)
class NoBenchmark:
    """A set that says nothing about its files."""

    name: str


def test_a_set_that_says_nothing_about_its_files_cannot_be_fetched(
    add_benchmark: Callable[[Any], None],
) -> None:
    add_benchmark(NoBenchmark("mute"))
    with pytest.raises(SetupError, match='The benchmark set "mute" is a NoBenchmark, expected'):
        kdedge.fetch_set("mute")


@pytest.mark.parametrize("name", ["sun398", "_coop", "../x", "os"])
def test_an_unknown_set_is_refused_with_the_known_ones(name: str) -> None:
    spec = SourceSpec(benchmark=name)
    with pytest.raises(DataError, match=r"set\.\n  (There are: .*|Did you mean )sun397"):
        open_source(spec, class_names=("cat", "dog"), labeled=True, data=DataSpec())
