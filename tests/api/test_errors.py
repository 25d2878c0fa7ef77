"""A mistake is the same error in Python and on the command line: class, text, exit code."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, get_args

import pytest

import kdedge
from kdedge import errors
from kdedge.cli.main import run
from kdedge.messages import ON_COMMAND_LINE, option
from kdedge.runs.folder import RunFolder

pytest.importorskip("torch")

NO_MISTAKES = {
    *("__version__", "doctor", "list_methods", "schema", "list_runs", "list_sets"),  # take no input
    *("compute_threads", "progress_to"),
}
RECIPE = "nowhere.yaml"

# Name -> the call, and the command line that makes the same mistake
CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "teach": (lambda: kdedge.teach(RECIPE), ("teach", RECIPE)),
    "fill_teacher_store": (lambda: kdedge.fill_teacher_store(RECIPE), ("teach", RECIPE, "--store")),
    "distill": (lambda: kdedge.distill(RECIPE), ("distill", RECIPE)),
    "train": (lambda: kdedge.train(RECIPE, "coop"), ("train", RECIPE, "--method", "coop")),
    "check": (lambda: kdedge.check(RECIPE), ("check", RECIPE)),
    "load_recipe": (lambda: kdedge.load_recipe(RECIPE), ("check", RECIPE)),
    "pseudo_label": (
        lambda: kdedge.pseudo_label(RECIPE, "out", per_class=2),
        ("pseudo-label", RECIPE, "--per-class", "2", "-o", "out"),
    ),
    "demo": (lambda: kdedge.demo(device="tpu"), ("demo", "--device", "tpu")),
    "init": (
        lambda: kdedge.init("a/b", images=".", classes="bad.txt"),
        ("init", "a/b", "--images", ".", "--classes", "bad.txt"),
    ),
    "run_suite": (lambda: kdedge.run_suite("bad.txt"), ("suite", "bad.txt")),
    "import_checkpoint": (
        lambda: kdedge.import_checkpoint("bad.txt", "promptsrc", weights="openai"),
        ("import", "bad.txt", "--as", "promptsrc", "--weights", "openai"),
    ),
    "evaluate": (lambda: kdedge.evaluate("line3"), ("eval", "line3")),
    "export": (lambda: kdedge.export("line3"), ("export", "line3")),
    "bench": (lambda: kdedge.bench("line3"), ("bench", "line3")),
    "report": (lambda: kdedge.report("line3"), ("report", "line3")),
    "open_run": (lambda: kdedge.open_run("line3"), ("show", "line3")),
    "open_artifact": (lambda: kdedge.open_artifact("art"), ("show", "art")),
    "cpu_choice": (lambda: kdedge.cpu_choice("art"), ("show", "art")),
    "load": (lambda: kdedge.load("art"), ("predict", "art", "bad.txt")),
    "predict": (lambda: kdedge.predict("art", "x.jpg"), ("predict", "art", "x.jpg")),
    "compare": (lambda: kdedge.compare("art", "art", "x"), ("compare", "art", "art", "x")),
    "serve": (lambda: kdedge.serve("art"), ("serve", "art")),
    "watch": (lambda: list(kdedge.watch("art", "x")), ("watch", "art", "x")),
    "change_classes": (
        lambda: kdedge.change_classes("art", remove="cat"),
        ("classes", "art", "--remove", "cat"),
    ),
    "verify_client": (lambda: kdedge.verify_client("art", "answers"), ("verify", "art", "answers")),
    "write_smoke_images": (
        lambda: kdedge.write_smoke_images("art", "images"),
        ("verify", "art", "--images", "images"),
    ),
    "open_set": (lambda: kdedge.open_set("sun"), ("data", "show", "sun")),
    "fetch_set": (lambda: kdedge.fetch_set("sun"), ("data", "fetch", "sun")),
    "verify_set": (lambda: kdedge.verify_set("sun"), ("data", "verify", "sun")),
    "scan_images": (lambda: kdedge.scan_images("nowhere"), ("data", "scan", "nowhere")),
}


@pytest.mark.parametrize(
    "error",
    [
        errors.MissingPackage("scipy", extra="watch", purpose="Watching"),
        errors.CellsFailed("failed", exit_code=3),
        errors.Interrupted("stopped", signum=2),
    ],
)
def test_an_error_passes_from_one_process_to_another(error: errors.KdedgeError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_every_name_that_can_be_called_wrongly_is_here() -> None:
    known = {name for name in kdedge.__all__ if not isinstance(getattr(kdedge, name), type)}
    assert known == {*CALLS, *NO_MISTAKES}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_has_the_text_and_the_exit_code_of_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("bad.txt", "bad.json", "art/artifact.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("[]")
    call, arguments = CALLS[name]
    with pytest.raises(kdedge.KdedgeError) as caught:
        call()
    assert type(caught.value).__module__ == "kdedge.errors"
    assert not re.search(r"(^|\s)--\w", re.sub("`.*?`", "", str(caught.value)))
    context = copy_context()
    context.run(ON_COMMAND_LINE.set, True)
    with pytest.raises(kdedge.KdedgeError) as with_flags:
        context.run(call)
    capsys.readouterr()
    assert run(arguments) == caught.value.exit_code
    assert capsys.readouterr().err.endswith(f"kdedge: {with_flags.value}\n")


def test_an_override_from_python_is_named_as_one() -> None:
    """A command line says --set, which no caller of the API has written."""
    with pytest.raises(kdedge.RecipeError, match=r"^overrides: student\.optim\.epochs ") as caught:
        kdedge.load_recipe("sun397", {"student.optim.epochs": "ten"})
    assert "--set" not in str(caught.value)
    with pytest.raises(kdedge.RecipeError, match=r"^overrides: teacher\.optim\.epochs "):
        kdedge.teach("sun397", epochs=0)


def test_a_message_names_arguments_in_python_and_flags_on_a_command_line() -> None:
    context = copy_context()
    context.run(ON_COMMAND_LINE.set, True)
    for one, expected in (
        (("--batch-size",), "batch_size"),
        (("--runs", "root"), "root"),
        (("--device cuda:1",), 'device="cuda:1"'),
    ):
        assert (option(*one), context.run(option, *one)) == (expected, one[0])


def test_a_message_from_python_says_what_to_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        RunFolder.create(tmp_path, "line3", role=role, recipe_text="name: line3\n", provenance={})
        for role in ("student", "teacher")
    ]
    with pytest.raises(kdedge.RecipeError, match="Train on with resume=True, or name a run"):
        kdedge.open_run("line3", root=tmp_path)
    runs[1].finish()
    with pytest.raises(kdedge.RecipeError, match="Finish its training with resume=True, or"):
        kdedge.open_run("line3", root=tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(kdedge.SetupError, match=r'^device="cuda": .*\n  Use device="cpu", or run'):
        kdedge.demo(device="cuda")


# Names


def test_on_a_device_without_torch_all_names_can_be_imported() -> None:
    code = """
import sys
sys.modules.update(torch=None, uvicorn=None)
from kdedge import *
import kdedge
assert load and doctor and not {"Preflight", "Server"} & {*globals(), *dir(kdedge)}
kdedge.Preflight
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("AttributeError: kdedge.Preflight needs torch")


def callables() -> Iterator[Callable[..., object]]:
    """The functions of the API, and the methods of the classes that it defines itself."""
    for name in kdedge.__all__:
        one = getattr(kdedge, name)
        own = vars(one).values() if getattr(one, "__module__", "").startswith("kdedge.api") else ()
        members = [one, *own] if isinstance(one, type) else [one]
        members = [getattr(member, "fget", member) for member in members]
        yield from (inspect.unwrap(one) for one in members if inspect.isfunction(one))


def test_what_a_call_returns_can_be_named() -> None:
    """So that a program can annotate it, and tell results apart with isinstance."""
    for function in callables():
        annotation = str(function.__annotations__.get("return"))
        for name in set(re.findall(r"(?<![.\w])[A-Z]\w+", annotation)) - {"None"}:
            found = function.__globals__.get(name)
            for kind in [found] if isinstance(found, type) else get_args(found):
                is_own = getattr(kind, "__module__", "").startswith("kdedge.")
                assert not is_own or getattr(kdedge, kind.__name__) is kind, (function, name)
            assert found is not None or hasattr(kdedge, name), (function, name)


def test_no_call_has_a_folder_of_runs_of_its_own() -> None:
    """`runs_folder` alone knows it, and reads KDEDGE_RUNS; `benchmark_root` reads KDEDGE_DATA."""
    functions = {name: getattr(kdedge, name) for name in kdedge.__all__}
    defaults = {
        name: root.default
        for name, function in functions.items()
        if inspect.isfunction(function)
        and (root := inspect.signature(function).parameters.get("root"))
    }
    assert {name for name, default in defaults.items() if default is not None} == set()


def test_whatever_takes_the_name_of_a_run_takes_the_folder_of_runs() -> None:
    takes = {"RunOrArtifact", "RunOrArtifact | None"}
    found = {
        name: inspect.signature(getattr(kdedge, name)).parameters
        for name in kdedge.__all__
        if inspect.isfunction(getattr(kdedge, name))
    }
    of_runs = {n: p for n, p in found.items() if takes & {one.annotation for one in p.values()}}
    assert {"load", "predict", "compare", "watch", "verify_client"} <= set(of_runs)
    assert [name for name, parameters in of_runs.items() if "root" not in parameters] == []
