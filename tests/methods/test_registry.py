"""Methods by name: kdedge's own, those of installed packages, and what is said if one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdedge.errors import MissingPackage, RecipeError, SetupError
from kdedge.methods.registry import list_methods, load_method

WHOLE = """
from kdedge.methods.protocol import MethodSettings
from kdedge.methods.registry import Declaration, DataNeeds

METHOD = Declaration(label="Toy", paper="arXiv:0", data_needs=DataNeeds(labels=True))
class Settings(MethodSettings): "Of the toy."
class Method: "A toy."
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs a package with one method, as pip would: its module, and its entry point."""

    def write(name: str, text: str) -> None:
        (tmp_path / f"outside_{name}.py").write_text(text)
        info = tmp_path / f"outside_{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: outside-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[kdedge.methods]\n{name} = outside_{name}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return write


def test_a_packages_method_is_listed_and_loaded(install: Callable[[str, str], None]) -> None:
    install("toy", WHOLE)
    assert "toy" in list_methods()
    assert load_method("toy").METHOD.label == "Toy"
    assert list_methods() == tuple(sorted(list_methods()))


def test_a_packages_method_does_not_take_the_place_of_an_own_one(
    install: Callable[[str, str], None],
) -> None:
    install("coop", WHOLE)
    assert load_method("coop").METHOD.label == "CoOp"
    assert list_methods().count("coop") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "outside_broken cannot be imported: ModuleNotFoundError: No "),
        ("METHOD = 1", 'method "broken" from outside_broken lacks Settings and Method'),
    ],
)
def test_a_broken_package_is_named_where_its_method_is_chosen(
    install: Callable[[str, str], None], text: str, message: str
) -> None:
    sys.modules.pop("outside_broken", None)
    install("broken", text)
    assert "broken" in list_methods()
    with pytest.raises(SetupError, match=message):
        load_method("broken")


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all() -> None:
    with pytest.raises(RecipeError, match=r'no method "promtkd"\.\n  Did you mean promptkd\?'):
        load_method("promtkd")
    with pytest.raises(RecipeError, match=r"There are: atprompt, clip_pr, cocoop, coop"):
        load_method("xyzzy")


@pytest.mark.parametrize(
    ("package", "error", "message"),
    [
        ("torch", MissingPackage, r"The method coop needs torch(.|\n)*kdedge\[train\]"),
        ("pydantic", ModuleNotFoundError, "pydantic"),
    ],
)
def test_a_package_of_the_extra_is_named_with_it_and_any_other_is_a_bug(
    package: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_method("coop")
    monkeypatch.delitem(sys.modules, "kdedge.methods.coop")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=message) as caught:
        load_method("coop")
    assert type(caught.value) is error
