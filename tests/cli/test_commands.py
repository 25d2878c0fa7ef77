"""init, schema, methods and doctor."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from kdedge.api import about
from kdedge.cli import doctor, init, methods, schema
from kdedge.config.export_spec import ExportSpec, GatesSpec
from kdedge.config.load import check_paths, load_recipe, parse_overrides
from kdedge.errors import DataError, RecipeError
from kdedge.methods import registry

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("benchmarks/mini/*.yaml")])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cams", "labeled", "my test: #1"):
        for sub in ("cat", "dog"):
            Path(name, sub).mkdir(parents=True)
            Image.new("RGB", (12, 8)).save(Path(name, sub, "a.png"))
    Path("classes.txt").write_text("cat\ndog\n")
    return tmp_path


def run_init(*arguments: str) -> str:
    result = CliRunner().invoke(init.command, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


BASE = ("--images", "cams", "--classes", "classes.txt")


def test_init_writes_a_recipe_that_loads_and_whose_paths_are_there(folder):
    output = run_init("line3", *BASE, "--labeled", "labeled", "--test", "my test: #1")
    loaded = load_recipe("line3.yaml")
    check_paths(loaded)
    assert loaded.recipe.data.labeled.shots is None
    assert loaded.recipe.data.test.folder == folder / "my test: #1"
    assert (loaded.recipe.teacher.method, loaded.recipe.student.method) == ("ridge", "ridge")
    assert output.startswith(
        "classes  2 in classes.txt\n"
        "images   2, of 12x8\n"
        "         1 of 2 are copies of others\n"
        "labeled  2, of 12x8\n"
        "         1 of 2 are copies of others\n"
        "         1 image per class, 2 classes\n"
        "test     2, of 12x8\n"
        "         1 of 2 are copies of others\n"
        "         1 image per class, 2 classes\n"
    )
    assert output.endswith("\nWrote line3.yaml\nNext: kdedge check line3.yaml\n")


def test_init_tunes_all_weights_and_says_how_to_tune_prompts(folder):
    run_init("line3", *BASE)
    student = load_recipe("line3.yaml").recipe.student
    assert student.settings["tune"] == "full"
    assert (student.optim.algorithm, student.optim.ema_decay) == ("adamw", 0.999)
    text = " ".join(Path("line3.yaml").read_text().replace("#", " ").split())
    said = re.search(r"--set (\S+=prompts) --set (student.optim=null)", text)
    student = load_recipe("line3.yaml", overrides=parse_overrides(said.groups())).recipe.student
    assert (student.settings["tune"], student.optim) == ("prompts", None)


def test_init_asks_for_fp16_and_writes_the_gates_out(folder):
    run_init("line3", *BASE)
    recipe = load_recipe("line3.yaml").recipe
    assert recipe.export == ExportSpec(precisions=("fp16",))
    assert recipe.gates == GatesSpec()
    assert "int8: 98%" in Path("line3.yaml").read_text()


def test_init_never_overwrites_nor_writes_through_a_dangling_link(folder):
    Path("line3.yaml").write_text("mine")
    Path("linked.yaml").symlink_to("elsewhere.yaml")
    for name in ("line3", "linked"):
        with pytest.raises(RecipeError, match="nothing is overwritten"):
            run_init(name, *BASE)
    assert Path("line3.yaml").read_text() == "mine"
    assert not Path("elsewhere.yaml").exists()


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a b", ".hidden", "", "a\nb", "x" * 101, "检" * 34]
)
def test_init_refuses_names_that_are_no_plain_words(folder, name):
    with pytest.raises(RecipeError, match="cannot be the name of a recipe"):
        run_init(name, *BASE)
    assert not list(folder.glob("*.yaml"))


@pytest.mark.parametrize("name", ["prüf1", "pru\u0308f1", "检测线", "линия_3"])
def test_a_name_may_have_letters_of_every_language(folder, name):
    run_init(name, *BASE)
    assert load_recipe(f"{name}.yaml").recipe.name == name


@pytest.mark.parametrize("missing", ["cams", "classes.txt"])
def test_init_refuses_inputs_that_are_not_there(folder, missing):
    arguments = ["nowhere" if argument == missing else argument for argument in BASE]
    with pytest.raises(DataError, match="nowhere"):
        run_init("line3", *arguments)
    assert not list(folder.glob("*.yaml"))


def test_methods_lists_the_folder_with_labels_first_lines_and_what_they_see():
    pytest.importorskip("torch")
    listed = json.loads(CliRunner().invoke(methods.command, ["--json"]).output)
    assert {"promptkd", "promptsrc", "zeroshot"} <= set(listed)
    assert not {"registry", "base", "supervised", "losses", "__init__"} & set(listed)
    assert listed["promptkd"]["about"].startswith("PromptKD: ")
    assert listed["promptkd"]["unlabeled_images"]
    assert {"kl", "feature"} <= listed["promptkd"]["losses"].keys()
    found = about.list_methods()
    assert found.to_dict() == listed
    assert re.search(r"^promptsrc +PromptSRC +yes +- +- ", str(found), re.MULTILINE)
    assert listed["promptsrc"] == {
        "label": "PromptSRC",
        "paper": "arXiv:2307.06948",
        "about": listed["promptsrc"]["about"],
        "labels": True,
        "unlabeled_images": False,
        "novel_class_names": False,
    }


def test_methods_are_listed_by_name_where_torch_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None;"
        "from kdedge.cli.main import run; raise SystemExit(run(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"^promptkd +\? +\? +\? +\?", done.stdout, re.MULTILINE)
    assert "cannot be loaded; only the names are listed" in done.stderr
    assert "pip install 'kdedge[train]'" in done.stderr


def test_schema_explains_every_key_of_a_recipe_and_of_the_methods():
    pytest.importorskip("torch")
    text = CliRunner().invoke(schema.command).output
    for key in ("name", "data.labeled.shots", "teacher.run", "optim.schedule"):
        assert f"\n  {key}  (" in text
    assert "optim.lr  (number more than 0, at most 10, default 0.005)" in text
    assert "\n  export.precisions  (list of fp16 | int8, default [])" in text
    assert "\n  gates.agreement.int8  (text, default 98%)" in text
    assert "settings of the method promptkd" in text
    assert "n_ctx_vision  (whole number" in text


def test_schema_as_json_is_a_json_schema_with_the_methods():
    pytest.importorskip("torch")
    values = json.loads(CliRunner().invoke(schema.command, ["--json"]).stdout)
    assert "optim" in values["properties"]
    promptkd = values["methods"]["promptkd"]
    assert "losses" in promptkd["properties"]
    assert any("temperature" in one["properties"] for one in promptkd["$defs"].values())


def test_doctor_names_each_package_with_its_version_or_the_way_to_get_it():
    report = about.doctor()
    assert report.machine.cpu_cores >= 1
    for package in report.packages.values():
        assert (package.version is None) == (package.install is not None)
    assert re.search(r"^package +version +for +install with$", str(report), re.MULTILINE)
    result = CliRunner().invoke(doctor.command, ["--all"])
    assert result.exit_code == 0
    for name in ("torch", "onnxruntime", "tensorrt_rtx", "GPU", "disk free"):
        assert name in result.output


@pytest.fixture
def two_installed(tmp_path, monkeypatch):
    """Of the optional packages, only onnxruntime and matplotlib are installed."""
    str(about.doctor())  # imports kdedge's own needs, which are hidden next, too
    for package in about.optional_packages():
        monkeypatch.delitem(sys.modules, package.module, raising=False)
    for name, version in {"onnxruntime": "1.24.4", "matplotlib": "3.9.1"}.items():
        metadata = tmp_path / f"{name}-{version}.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    others = [place for place in sys.path if "site-packages" not in place]
    monkeypatch.setattr(sys, "path", [*others, str(tmp_path)])


@pytest.mark.usefixtures("two_installed")
def test_doctor_lists_the_packages_of_the_extras_that_are_installed():
    output = CliRunner().invoke(doctor.command).output
    listed = output.partition("package ")[2].partition("\n\n")[0].splitlines()[1:]
    assert [line.split()[:2] for line in listed] == [
        ["matplotlib", "3.9.1"],
        ["jinja2", "missing"],
        ["onnxruntime", "1.24.4"],
    ]


@pytest.mark.usefixtures("two_installed")
def test_doctor_names_the_extras_that_are_not_installed():
    output = CliRunner().invoke(doctor.command).output
    assert "\nNot installed: train, shards, data, heif, efficientnet, power, video, " in output
    assert "jinja2" not in output.partition("Not installed: ")[2]


@pytest.mark.usefixtures("cudart")
def test_doctor_sees_the_gpu_and_why_torch_does_not():
    pytest.importorskip("torch")
    output = CliRunner().invoke(doctor.command).output
    assert re.search(r"^GPU +name Orin, memory 1\.1 GB, compute capability 8\.7", output, re.M)
    assert re.search(
        r"^torch +(the installed torch was built without CUDA|torch sees no)", output, re.M
    )


@pytest.mark.usefixtures("cudart")
def test_doctor_sees_the_gpu_of_a_device_where_torch_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    output = CliRunner().invoke(doctor.command).output
    assert re.search(r"^GPU +name Orin, memory 1\.1 GB, compute capability 8\.7$", output, re.M)


@pytest.mark.usefixtures("no_gpu")
def test_doctor_says_why_there_is_no_gpu():
    output = CliRunner().invoke(doctor.command).output
    assert (
        "none: There is no NVIDIA driver on this machine: libcuda.so.1 cannot be loaded\n" in output
    )


@pytest.mark.usefixtures("jetson")
def test_doctor_names_a_jetsons_tensorrt_that_pip_installed(monkeypatch, tmp_path):
    assert about.doctor().problems == ()
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)  # an empty one, of type stubs
    output = CliRunner().invoke(doctor.command).output
    assert f"tensorrt was installed by pip, in {tmp_path}. On a Jetson" in output


def test_doctor_looks_for_every_package_that_an_extra_brings_and_names_that_extra():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {**project["optional-dependencies"], "dev": [], "docs": []}
    brought = {re.split(r"[\[>]", one)[0] for extra in extras.values() for one in extra}
    known = {name for package in about.optional_packages() for name in package.distributions}
    assert brought - known == set()
    for package in about.optional_packages():
        named = extras[package.extra] if package.extra else package.distributions
        assert {re.split(r"[\[>]", one)[0] for one in named} & set(package.distributions), package


def test_a_run_that_may_not_be_written_costs_eval_no_result(trained, kdedge, small_disk):
    disk = small_disk(20_000)
    run = shutil.copytree("runs/tiny/02", disk / "run")
    for name in ("eval.json", "eval_details.json"):
        (run / name).unlink()
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    done = kdedge("eval", str(run)).succeeds()
    assert re.search(r"^student +\d", done.out, re.M)
    assert "could not be written: the disk is full" in done.err
    assert not list(run.glob("eval*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_of_the_project_has_settings_that_its_methods_know(path):
    pytest.importorskip("torch")
    recipe = load_recipe(path).recipe
    for spec in filter(None, (recipe.teacher, recipe.student)):
        registry.load_method(spec.method).Settings.model_validate(spec.settings)
