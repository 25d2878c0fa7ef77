"""Measures how many small changes of the code (mutants) the tests catch.

    pip install mutmut libcst coverage
    python tests/mutation FOLDER [--mutants 360] [--seed 0]

FOLDER takes a copy of the project, which is what gets changed, and everything measured; running
the command again goes on where it stopped. Steps:

1. `map.json`: one run of the tests with coverage says which tests run which lines.
2. `sample.json`: the mutants. They are spread over the modules of `methods`, `clip`, `training`,
   `fold` and `runtime` by the number of lines that can be changed (at least 24 a package).
   Lines are drawn first, then one change of each line: mutmut's changes, a call that is left out,
   a condition that is negated. Values replaced by None and missing arguments, which are easily
   caught, are drawn only where a line has nothing else. Left out are changes of strings,
   messages, types, decorators and imports.
3. `results.jsonl`: each mutant is tested by the tests that run its statement, the quickest and
   those of its own folder first, until one fails or `--seconds` of them have passed. A mutant
   that hangs or crashes is caught. The tests of the command line are slow: they are mapped later
   and for the survivors only, with `--again --tests tests/cli`. What new tests catch is seen
   with `--again --new-tests --tests PATH ...`.
4. The survivors, and the score: caught mutants of all mutants, by package. Whether a survivor is
   equivalent, that is whether it changes nothing that anyone could see, is for a person to judge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import coverage
from draw import PACKAGES, Mutant, draw
from execute import in_fork, load_big_packages, pytest_in
from lines import Trace

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "methods", "clip", "training", "deploy", "runtime", "attacks", "inference", "evaluation",
    "compat", "config", "targets/onnx", "targets/engines",
)  # fmt: skip
FIRST_S = 8.0  # of tests of its own folder that a mutant is given before all others


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=int, default=360)
    parser.add_argument("--least", type=int, default=24, help="mutants of a package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of tests that a mutant gets")
    parser.add_argument("--again", action="store_true", help="test the survivors again")
    parser.add_argument("--tests", nargs="*", help="tests to map beside those of the folders")
    parser.add_argument("--new-tests", action="store_true", help="copy the tests again first")
    options = parser.parse_args()
    # A kill puts the changed file back too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Work(options.folder.resolve())
    load_big_packages()
    work.copy_tree()
    if options.new_tests:
        work.copy_tests()
    work.map_lines(options.tests)
    work.draw_sample(options.mutants, options.least, options.seed)
    work.test_mutants(options.seconds, again=options.again)
    work.print_survivors()
    work.print_score()


class Work:
    """The folder of one measurement."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._tree = folder, folder / "tree"
        self._map, self._sample = folder / "map.json", folder / "sample.json"
        self._results, self._log = folder / "results.jsonl", folder / "log.txt"
        os.environ["TMPDIR"] = str(folder / "tmp")
        (folder / "tmp").mkdir(exist_ok=True)

    def copy_tree(self) -> None:
        """Copies what git knows, or would know, of the project."""
        if self._tree.exists():
            return
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self._tree / name)

    def copy_tests(self) -> None:
        """Copies the tests as they are now; the tree that gets changed stays as it was."""
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests", self._tree / "tests", ignore=ignored, dirs_exist_ok=True)

    def map_lines(self, more: list[str] | None) -> None:
        """Writes which tests run which lines: of all folders once, and of `more`."""
        groups = [more] if more else []
        if not self._map.exists():
            self._map.write_text(json.dumps({"tests": {}, "seconds": {}}))
            groups = [[f"tests/{name}"] for name in FOLDERS] + groups
        for group in groups:
            print("maps", *group, flush=True)
            code = in_fork(partial(self._map_tests, group), log=self._log, limit_s=None)
            if code not in (0, 1):
                raise SystemExit(f"these tests do not run: see {self._log}")
            if code:
                print(f"some of them fail before anything is changed: see {self._log}")

    def _map_tests(self, tests: list[str]) -> int:
        cov = coverage.Coverage(data_file=None, source=[str(self._tree / "kdedge")])
        trace = Trace(cov)
        cov.start()
        code = pytest_in(self._tree, [*tests, "-m", "not gpu and not network"], [trace])
        cov.stop()
        known = json.loads(self._map.read_text())
        for file, lines in trace.tests_of_lines(cov.get_data()).items():
            own = known["tests"].setdefault(str(Path(file).relative_to(self._tree)), {})
            for line, tests in lines.items():
                own[str(line)] = sorted({*own.get(str(line), ()), *tests})
        known["seconds"].update(trace.seconds)
        self._map.write_text(json.dumps(known))
        return code

    def draw_sample(self, n_mutants: int, n_least: int, seed: int) -> None:
        if not self._sample.exists():
            sample = draw(self._tree, n_mutants=n_mutants, n_least=n_least, seed=seed)
            self._sample.write_text(json.dumps([asdict(mutant) for mutant in sample]))

    def mutants(self) -> list[Mutant]:
        return [Mutant(**values) for values in json.loads(self._sample.read_text())]

    def results(self) -> dict[int, dict[str, Any]]:
        """The latest result of each tested mutant, by its number."""
        if not self._results.exists():
            return {}
        lines = map(json.loads, self._results.read_text().splitlines())
        return {result["number"]: result for result in lines}

    def test_mutants(self, limit_s: float, *, again: bool) -> None:
        """Tests the mutants that have no result yet, and `again` those that were not caught."""
        tests_of = json.loads(self._map.read_text())
        done = {n for n, result in self.results().items() if result["caught"] or not again}
        # What runs at import concerns many tests: last, so that a score shows early
        for number, mutant in sorted(enumerate(self.mutants()), key=lambda one: one[1].first == 1):
            if number in done:
                continue
            began = time.monotonic()
            groups = [*_groups(mutant, tests_of["tests"], tests_of["seconds"], limit_s)]
            how = next((how for group in groups if (how := self._test(mutant, group))), None)
            result = {
                "number": number,
                "caught": how,
                "n_tests": sum(len(group) for group in groups),
                "seconds": round(time.monotonic() - began, 1),
            }
            with self._results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{number} {mutant.path}:{mutant.line} {result}", flush=True)

    def _test(self, mutant: Mutant, tests: dict[str, float]) -> str | None:
        """How the tests catch a mutant, or None; the tree is afterwards as before."""
        file = self._tree / mutant.path
        original, times = file.read_bytes(), file.stat()
        log = self._folder / "mutant.txt"
        log.unlink(missing_ok=True)
        file.write_text(mutant.source, encoding="utf-8")
        try:
            code = in_fork(
                lambda: self._run_tests(tests), log=log, limit_s=60 + 5 * sum(tests.values())
            )
        finally:
            file.write_bytes(original)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            shutil.rmtree(self._tree / ".hypothesis", ignore_errors=True)
            shutil.rmtree(self._folder / "tmp", ignore_errors=True)
            (self._folder / "tmp").mkdir(exist_ok=True)
        if code == 0:
            return None
        if code is None:
            return "hangs"
        failed = [
            line
            for line in log.read_text(errors="replace").splitlines()
            if "FAILED " in line or "ERROR " in line
        ]
        return failed[0][:200] if failed else f"exit code {code}"

    def _run_tests(self, tests: dict[str, float]) -> int:
        sys.dont_write_bytecode = True
        return pytest_in(self._tree, ["-x", "--tb=line", *tests])

    def print_survivors(self) -> None:
        mutants = self.mutants()
        for number, result in sorted(self.results().items()):
            if not result["caught"]:
                mutant = mutants[number]
                print(f"\n{number} {mutant.path}:{mutant.line}\n{mutant.diff}")

    def print_score(self) -> None:
        results = self.results()
        mutants = [one.package for one in self.mutants()]
        caught = Counter(mutants[n] for n, one in results.items() if one["caught"])
        tested = Counter(mutants[n] for n in results)
        for package in PACKAGES:
            print(f"{package:12} {caught[package]:4} of {tested[package]:4}")
        n_caught, n_tested = sum(caught.values()), sum(tested.values())
        print(f"{'all':12} {n_caught:4} of {n_tested:4}: {100 * n_caught / max(n_tested, 1):.1f} %")


def _groups(
    mutant: Mutant,
    tests_of: dict[str, dict[str, list[str]]],
    seconds: dict[str, float],
    limit_s: float,
) -> Iterator[dict[str, float]]:
    """The tests of a mutant with their seconds: first the quickest of its own folder, then others.

    What runs at import concerns all tests of its module, and all of its folder; what no traced
    test runs, such as a line that another process runs, all tests of its module.
    """
    lines = tests_of.get(mutant.path, {})
    tests = {
        test
        for line, own in lines.items()
        if mutant.first <= int(line) <= mutant.end
        for test in own
    }
    tests = tests or {test for own in lines.values() for test in own}
    folder = f"tests/{mutant.package.split('/')[0]}/"
    if mutant.first == 1:
        tests |= {test for test in seconds if test.startswith(folder)}
    file = f"{folder}test_{Path(mutant.path).stem.strip('_')}.py"
    order = sorted(
        tests,
        key=lambda test: (not test.startswith(file), not test.startswith(folder), seconds[test]),
    )
    first = _within([test for test in order if test.startswith(folder)], seconds, FIRST_S)
    rest = _within([test for test in order if test not in first], seconds, limit_s)
    yield from (group for group in (first, rest) if group)


def _within(tests: list[str], seconds: dict[str, float], limit_s: float) -> dict[str, float]:
    """The first of these tests, as many as fit into a time."""
    fitting: dict[str, float] = {}
    for test in tests:
        if sum(fitting.values()) + seconds[test] > limit_s:
            break
        fitting[test] = seconds[test]
    return fitting


if __name__ == "__main__":
    main()
