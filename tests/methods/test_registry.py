"""Methods by name: what is said of an unknown one, and where a package is missing."""

from __future__ import annotations

import sys

import pytest

from kdedge.errors import MissingPackage, RecipeError
from kdedge.methods.registry import load_method


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all() -> None:
    with pytest.raises(RecipeError, match=r'no method "promtkd"\.\n  Did you mean promptkd\?'):
        load_method("promtkd")
    with pytest.raises(RecipeError, match=r"There are: atprompt, clip_pr, cocoop, coop"):
        load_method("xyzzy")


@pytest.mark.parametrize(
    ("package", "error", "message"),
    [
        ("torch", MissingPackage, r"The method promptsrc needs torch(.|\n)*kdedge\[train\]"),
        ("pydantic", ModuleNotFoundError, "pydantic"),
    ],
)
def test_a_package_of_the_extra_is_named_with_it_and_any_other_is_a_bug(
    package: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_method("promptsrc")
    monkeypatch.delitem(sys.modules, "kdedge.methods.promptsrc")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=message) as caught:
        load_method("promptsrc")
    assert type(caught.value) is error
