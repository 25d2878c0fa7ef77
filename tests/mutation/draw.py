"""Draws mutants: first lines, by module, then one mutation of each drawn line."""

from __future__ import annotations

import ast
import difflib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import (
    mutation_operators,
    operator_arg_removal,
    operator_assignment,
    operator_lambda,
    operator_string,
)

PACKAGES = ("methods", "clip", "training", "fold", "runtime")


@dataclass(frozen=True)
class Mutant:
    """One changed module.

    Attributes:
        path: of the module, below the project.
        line: where the changed part begins.
        first: of the lines whose tests concern it: its statement's; its function's, if it is in
            the head of one; all, if it is in no function.
        end: the last of these.
        package: one of `PACKAGES`.
        diff: the change, as a person reads it.
        source: the whole changed module.
    """

    path: str
    line: int
    first: int
    end: int
    package: str
    diff: str
    source: str


def modules(root: Path) -> dict[str, list[Path]]:
    """Package -> its modules, below `root`."""
    found = {}
    for package in PACKAGES:
        base = root / "kdedge" / package
        files = [*base.parent.glob(f"{base.name}.py"), *base.rglob("*.py")]
        found[package] = sorted(file.relative_to(root) for file in files)
    return found


def draw(root: Path, *, n_mutants: int, n_least: int, seed: int) -> list[Mutant]:
    """A sample of mutants, spread over the modules by their number of lines that can change.

    Args:
        root: the project.
        n_mutants: how many in all, before small packages are filled up.
        n_least: mutants of a package, at least.
        seed: of the draws.
    """
    rng = random.Random(seed)
    found = {
        (package, path): _Module(package, path, (root / path).read_text(encoding="utf-8"))
        for package, paths in modules(root).items()
        for path in paths
    }
    lines = {key: len(module.changes) for key, module in found.items()}
    sample = []
    for package in PACKAGES:
        own = {key: count for key, count in lines.items() if key[0] == package and count}
        share = max(n_least, round(n_mutants * sum(own.values()) / sum(lines.values())))
        for key, n_lines in _shares(own, share).items():
            sample += found[key].draw(n_lines, rng)
    return sample


def _shares(lines: dict[tuple[str, Path], int], total: int) -> dict[tuple[str, Path], int]:
    """How many lines to draw of each module: by its length, at least one, never all twice."""
    whole = sum(lines.values())
    exact = {key: total * count / whole for key, count in lines.items()}
    shares = {key: max(1, int(value)) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: int(exact[key]) - exact[key]):
        if sum(shares.values()) >= total:
            break
        shares[key] += 1
    return {key: min(count, lines[key]) for key, count in shares.items()}


@dataclass(frozen=True)
class _Change:
    node: cst.CSTNode
    replacement: cst.CSTNode
    line: int
    first: int
    end: int
    is_crude: bool


class _Module:
    """One module, and what can be changed in it.

    Attributes:
        changes: line -> the changes that begin there.
    """

    def __init__(self, package: str, path: Path, source: str) -> None:
        self._package, self._path, self._source = package, path, source
        self._wrapper = MetadataWrapper(cst.parse_module(source))
        finder = _Finder()
        self._wrapper.visit(finder)
        self.changes: dict[int, list[_Change]] = {}
        for change in finder.changes:
            self.changes.setdefault(change.line, []).append(change)

    def draw(self, n_lines: int, rng: random.Random) -> list[Mutant]:
        """One mutant of each of so many lines.

        A value replaced by None and a missing positional argument are easily caught: they are
        drawn only where a line has no other change. One that alters nothing is drawn again.
        """
        mutants: list[Mutant] = []
        for line in rng.sample(sorted(self.changes), len(self.changes)):
            if len(mutants) == n_lines:
                break
            choices = rng.sample(self.changes[line], len(self.changes[line]))
            choices.sort(key=lambda change: change.is_crude)
            made = (self._mutant(change) for change in choices)
            mutants += [*islice((mutant for mutant in made if mutant is not None), 1)]
        return sorted(mutants, key=lambda mutant: mutant.line)

    def _mutant(self, change: _Change) -> Mutant | None:
        """The changed module; None if it means the same, or nothing."""
        mutated = self._wrapper.module.deep_replace(change.node, change.replacement).code
        try:
            if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(self._source)):
                return None
        except SyntaxError:
            return None
        texts = (self._source.splitlines(), mutated.splitlines())
        diff = [*difflib.unified_diff(*texts, n=0, lineterm="")][2:]
        text = "\n".join(line for line in diff if not line.startswith("@@"))
        place = (str(self._path), change.line, change.first, change.end)
        return Mutant(*place, self._package, text, mutated)


_STATEMENTS = (
    cst.SimpleStatementLine,
    cst.BaseCompoundStatement,
    cst.ExceptHandler,
    cst.Else,
    cst.Finally,
    cst.Module,
)


class _Finder(cst.CSTVisitor):
    """Finds what can be changed, and leaves out what is text for people or type checkers."""

    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[_Change] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_text(node):
            return False
        for replacement, is_crude in _replacements(node):
            line = self.get_metadata(PositionProvider, node).start.line
            place = (line, *self._statement(node))
            self.changes.append(_Change(node, replacement, *place, is_crude))
        return True

    def _statement(self, node: cst.CSTNode) -> tuple[int, int]:
        """The lines whose tests concern `node`: its statement's, its function's, or all."""
        while not isinstance(node, _STATEMENTS):
            node = self.get_metadata(ParentNodeProvider, node)
        where = self.get_metadata(PositionProvider, node)
        first, end = where.start.line, where.end.line
        if isinstance(node, cst.FunctionDef):  # a default in its head
            return first, end
        body = getattr(node, "body", None)
        if isinstance(body, cst.IndentedBlock):
            end = max(first, self.get_metadata(PositionProvider, body.body[0]).start.line - 1)
        while not isinstance(node, cst.FunctionDef | cst.Module):
            node = self.get_metadata(ParentNodeProvider, node)
        return (1, sys.maxsize) if isinstance(node, cst.Module) else (first, end)


def _is_text(node: cst.CSTNode) -> bool:
    """Whether a part is a message, a type, an import, a decorator, or a check of types only."""
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    if isinstance(node, cst.Arg) and node.keyword is not None:
        return node.keyword.value in {"description", "title"}
    texts = (cst.Annotation, cst.Decorator, cst.Raise, cst.FormattedString, cst.Import)
    if isinstance(node, (*texts, cst.ImportFrom, cst.ConcatenatedString)):
        return True
    if not isinstance(node, cst.Assign):
        return False
    target = node.targets[0].target
    is_export_list = isinstance(target, cst.Name) and target.value == "__all__"
    return is_export_list or _is_of_types(node.value)


def _is_of_types(value: cst.BaseExpression) -> bool:
    """Whether a value is a type variable, a union of types, or a logger."""
    if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.BitOr):
        return all(isinstance(side, cst.Name) for side in (value.left, value.right))
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute):
        return value.func.attr.value == "getLogger"
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Name):
        return value.func.value in {"TypeVar", "ParamSpec", "NewType"}
    if isinstance(value, cst.Subscript) and isinstance(value.value, cst.Name):
        return value.value.value in {"Callable", "Annotated", "Literal", "Union", "Optional"}
    return False


def _replacements(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, bool]]:
    """What can stand in a node's place, and whether that is crude: mutmut's, and two more."""
    for kind, operator in mutation_operators:
        if operator is operator_string or not isinstance(node, kind):
            continue
        for changed in operator(node):
            if operator is operator_arg_removal:
                assert isinstance(node, cst.Call)
                assert isinstance(changed, cst.Call)
                if not _concerns_text(node, changed):
                    yield changed, not _lacks_keyword(node, changed)
            else:
                yield changed, operator in (operator_assignment, operator_lambda)
    if isinstance(node, cst.If | cst.While):
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test)), False
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.Call):
        yield cst.Pass(), False


def _lacks_keyword(node: cst.Call, changed: cst.Call) -> bool:
    """Whether a call lost an argument that has a keyword, so that a default may take its place."""
    n_keywords = [sum(one.keyword is not None for one in call.args) for call in (node, changed)]
    return n_keywords[1] < n_keywords[0]


def _concerns_text(node: cst.Call, changed: cst.Call) -> bool:
    """Whether a changed call differs in its messages or in a cast's type only."""
    name = cst.Module([]).code_for_node(node.func)
    if name == "cast" or name.startswith(("log.", "logging.")):
        return True
    return _code(node.args) == _code(changed.args)


def _code(arguments: Sequence[cst.Arg]) -> list[str]:
    """The arguments that are no messages."""
    kept: Iterable[cst.Arg] = (
        one
        for one in arguments
        if not isinstance(one.value, cst.FormattedString | cst.ConcatenatedString)
        and not (one.keyword is not None and one.keyword.value in {"description", "title"})
        and not (isinstance(one.value, cst.Name) and one.value.value == "None")
    )
    return [
        cst.Module([]).code_for_node(one.with_changes(comma=cst.MaybeSentinel.DEFAULT))
        for one in kept
    ]
