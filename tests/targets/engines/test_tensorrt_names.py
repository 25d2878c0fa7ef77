"""TensorRT 10's names, as its type stubs have them, against those that the code uses."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[3]
IMPORT = re.compile(r"^ +import tensorrt\b", re.MULTILINE)
SOURCES = {
    path.relative_to(ROOT / "kdedge").as_posix(): path
    for path in sorted((ROOT / "kdedge").rglob("*.py"))
    if IMPORT.search(path.read_text(encoding="utf-8"))
}
ENGINE, LOG = "targets/engines/builder.py", "targets/engines/package.py"

# What the code calls Any, since tensorrt has no types of its own
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "images": "ITensor",
}

# The stubs know nothing of what pybind11 converts: tuples are shapes, and shapes can be iterated
CONFIG = """
[mypy]
check_untyped_defs = True
python_version = 3.10
follow_imports = skip
disable_error_code = arg-type, var-annotated

[mypy-tensorrt.*,tensorrt_bindings.*]
ignore_errors = True
"""

NAME = "@property\n    def name(self) -> str:"

CheckNames = Callable[[dict[str, str]], "subprocess.CompletedProcess[str]"]


def repaired(stub: str) -> str:
    """A stub whose definitions that are no Python take any argument.

    The generator took the names of enums that have a `__str__` of their own for functions.
    """
    stub = stub.replace("@staticmethod\n    def name(*args, **kwargs):", NAME)
    lines = stub.splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
        else:
            return "\n".join(lines) + "\n"
        start, name = lines[number].partition("(")[0].split("def ")
        lines[number] = f"{start}def {name}(self, *args, **kwargs):"


def typed(source: str) -> str:
    """A source whose parameters have TensorRT's classes; its lines keep their numbers."""
    for name, kind in CLASSES.items():
        source = re.sub(rf"\b{name}: Any\b", f'{name}: "tensorrt.{kind}"', source)
    return source.replace("annotations\n", "annotations; import tensorrt\n", 1)


@pytest.fixture
def check_names(tmp_path: Path) -> CheckNames:
    """Runs mypy on the sources; takes texts in place of some of them."""
    try:
        stubs = distribution("tensorrt-stubs")
    except PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed")
    for file in stubs.files or ():
        if file.suffix == ".pyi":
            copy = tmp_path / "path" / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(repaired(Path(str(file.locate())).read_text(encoding="utf-8")))
    (tmp_path / "mypy.ini").write_text(CONFIG)

    times = itertools.count(1_000_000_000)

    def check(texts: dict[str, str]) -> subprocess.CompletedProcess[str]:
        # mypy takes a file of the same size and second for the one that it has read
        now = next(times)
        command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini")]
        command += ["--cache-dir", str(tmp_path / "cache")]
        for name, path in SOURCES.items():
            shadow = tmp_path / name.replace("/", ".")
            shadow.write_text(typed(texts.get(name) or path.read_text(encoding="utf-8")))
            os.utime(shadow, (now, now))
            command += ["--shadow-file", str(path), str(shadow)]
        return subprocess.run(
            [*command, *map(str, SOURCES.values())],
            cwd=ROOT,
            env={**os.environ, "MYPYPATH": str(tmp_path / "path")},
            capture_output=True,
            text=True,
            check=False,
        )

    return check


def test_the_sources_and_what_they_call_any_are_found() -> None:
    assert {ENGINE, LOG} <= SOURCES.keys()
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.values())
    assert [name for name in CLASSES if f"{name}: Any" not in text] == []


WRONG = {
    ENGINE: {
        "parser.parse_from_file(": "parser.parse_file(",
        "config.get_timing_cache(": "config.timing_cache(",
        "config.progress_monitor =": "config.monitor =",
        "profile.set_shape(": "profile.set_shapes(",
    },
    LOG: {"trt.ILogger.Severity": "trt.ILogger.Level"},
}


def test_every_name_of_tensorrts_is_one_of_tensorrt_10_and_others_are_found(
    check_names: CheckNames,
) -> None:
    done = check_names({})
    expected = f"Success: no issues found in {len(SOURCES)} source files\n"
    assert (done.stdout, done.returncode) == (expected, 0)
    places, texts = set(), {}
    for file, changes in WRONG.items():
        lines = SOURCES[file].read_text(encoding="utf-8").splitlines()
        for right, other in changes.items():
            number = next(index for index, line in enumerate(lines) if right in line)
            lines[number] = lines[number].replace(right, other)
            places.add(f"{file}:{number + 1}: error: ")
        texts[file] = "\n".join(lines) + "\n"
    done = check_names(texts)
    assert done.returncode == 1, done.stdout
    unknown = [
        line for line in done.stdout.splitlines() if "attribute" in line or "not def" in line
    ]
    assert {place for place in places if not any(place in line for line in unknown)} == set()
