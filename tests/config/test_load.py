"""Recipes are read strictly, and every problem is named with its file and line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.config.data_spec import to_count
from kdedge.config.load import dump_recipe, load_recipe, parse_overrides
from kdedge.config.optim_spec import resolve_optim
from kdedge.config.yaml_file import dump_yaml, parse_yaml
from kdedge.errors import RecipeError

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("benchmarks/mini/*.yaml")])

GOOD = """\
name: line3
classes: [cat, dog]
data:
  unlabeled: {folder: cams}
  test: {folder: test}
student:
  method: promptkd
  backbone: ViT-B-16
  weights: openai
  settings:
    losses: {kl: {weight: 1000}}
  optim: {lr: 1, epochs: 4}
optim:
  lr: 1e-3
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), parse_overrides(overrides))
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_of_the_project_loads_and_survives_a_round_trip(path, tmp_path):
    recipe = load_recipe(path).recipe
    assert load_recipe(write(tmp_path, dump_recipe(recipe))).recipe == recipe


def test_a_good_recipe_gives_its_values_with_absolute_paths(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    assert recipe.classes.names == ("cat", "dog")
    assert recipe.data.unlabeled.folder == tmp_path / "cams"
    assert recipe.student.settings == {"losses": {"kl": {"weight": 1000}}}


def test_a_models_own_optim_lies_over_the_shared_one_and_both_over_the_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    settings = resolve_optim(recipe.optim, recipe.student.optim)
    assert (settings.lr, settings.epochs, settings.batch_size) == (1.0, 4, 8)
    assert resolve_optim(recipe.optim, None).lr == 1e-3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("weights:", "wieghts:", "r.yaml:9: student.wieghts is not a known key.\n  Did you mean w"),
        ("lr: 1e-3", "lr: fast", 'r.yaml:14: optim.lr must be a number, got "fast".'),
        ("lr: 1e-3", "lr: true", "r.yaml:14: optim.lr must be a number, got true."),
        ("lr: 1e-3", "lr: -1", "r.yaml:14: optim.lr must be more than 0, got -1."),
        ("lr: 1e-3", "lr: .nan", "r.yaml:14: optim.lr must be a finite number, got nan."),
        ("lr: 1e-3", "lr: '1'", "Write it without quotes."),
        ("lr: 1e-3", "lr:", "r.yaml:14: optim.lr must be a number, got nothing."),
        ("lr: 1e-3", "epochs: 2.5", "r.yaml:14: optim.epochs must be a whole number, got 2.5."),
        ("lr: 1e-3", "epochs: true", "r.yaml:14: optim.epochs must be a whole number, got true."),
        ("lr: 1e-3", "flip: 1", "r.yaml:14: optim.flip must be true or false, got 1."),
        ("lr: 1e-3", "schedule: cosin", "Did you mean cosine?"),
        ("lr: 1e-3", "n_workers: no", "optim.n_workers must be auto or a whole number, got"),
        ("name: line3", "name: a/b", "r.yaml:1: name becomes a folder and may hold letters"),
        ("name: line3", "name: 3", "Put it in quotes."),
        ("name: line3", "seed: 1", "r.yaml: name is missing."),
        ("[cat, dog]", "[cat, cat]", "r.yaml:2: classes.names holds cat more than once"),
        ("[cat, dog]", "[cat]", "classes.names must be at least 2 entries long"),
        ("[cat, dog]", "[cat, 1]", "r.yaml:2: classes.names.1 must be text, got 1."),
        ("[cat, dog]", "{file: a, names: [b, c]}", "exactly one of"),
        ("[cat, dog]", "{file: a, template: a photo}", "r.yaml:2: classes.template must hold {}"),
        ("[cat, dog]", "{file: a, template: 'a }{}'}", "r.yaml:2: classes.template must hold {}"),
        ("{folder: cams}", "{}", "data.unlabeled needs exactly one of folder, webdataset"),
        ("{folder: cams}", "{folder: a, part: val}", "benchmark, synthetic and hf:// have"),
        ("{folder: cams}", '{folder: "caf\\udce9"}', "data.unlabeled.folder is not UTF-8; rename"),
        ("{folder: cams}", "{folder: ''}", "r.yaml:4: data.unlabeled.folder must be a path"),
        ("{folder: cams}", "{webdataset: 'pipe:rm -r x'}", "files on this machine"),
        ("{folder: cams}", "cams", 'r.yaml:4: data.unlabeled must be a mapping (key: value)'),
        ("  test: {folder: test}", "  max_bad_images: 1.5%%", "must be a percentage such as"),
        ("  test: {folder: test}", "  max_bad_images: 101%", "must be a percentage such as"),
        ("  test: {folder: test}", "  max_bad_images: -1", "a count up to 1,000,000,000, got -1"),
        ("  backbone: ViT-B-16\n  weights: openai\n", "", "student needs backbone, config, or"),
        ("  weights: openai\n", "  config: c.json\n", "student has backbone and config"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_line_got_and_expected(tmp_path, old, new, expected):
    assert old in GOOD
    assert expected in problem(tmp_path, GOOD.replace(old, new))


def test_all_problems_of_a_recipe_are_listed_in_file_order(tmp_path):
    text = GOOD.replace("name: line3", "nmae: x").replace("lr: 1e-3", "lr: x\n  epochs: 0")
    lines = problem(tmp_path, text).splitlines()
    starts = [line.split(":")[1] for line in lines if line.startswith("r.yaml:")]
    assert starts == [" name is missing.", "1", "14", "15"]


def test_more_than_ten_problems_are_counted(tmp_path):
    text = GOOD + "".join(f"  zz{number}: 1\n" for number in range(13))
    assert "and 3 more problems in this recipe." in problem(tmp_path, text)


def test_a_recipe_without_models_is_refused(tmp_path):
    text = GOOD[: GOOD.index("student:")]
    assert "has neither teacher nor student" in problem(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "r.yaml is empty."),
        (b"# only a comment\n", "r.yaml is empty."),
        (b"- a\n", "r.yaml:1: a recipe is a mapping (key: value), got a list."),
        (b"hello\n", "r.yaml:1: a recipe is a mapping (key: value), got a single value."),
        (b"name: a\nseed: \xff\n", "r.yaml:2: not UTF-8 (byte 0xff)."),
        ("name: é".encode("utf-16"), "r.yaml:1: UTF-16, not UTF-8."),
        (b"name: a\ndata:\n\tx: 1\n", "r.yaml:3: this is not valid YAML"),
        (b"name: a\nname: b\n", "r.yaml:2: name is given twice, first in line 1."),
        (b"data:\n  split: a\n  split: b\n", "r.yaml:3: data.split is given twice, first in"),
        (b"name: !!python/object:os.system x\n", "r.yaml:1: a recipe has no anchors (&), aliases"),
        (b"a: &x 1\nb: *x\n", "r.yaml:1: a recipe has no anchors"),
        (b"b: *x\n", "r.yaml:1: this is not valid YAML: found undefined alias"),
        (b"a: 1\n---\nb: 1\n", "r.yaml:2: this is not valid YAML: but found another doc"),
        (b"a: [1, 2\nb: 3\n", "this is not valid YAML"),
        (b"a: 'x\n", "this is not valid YAML"),
        (b"a: \x00\n", "this is not valid YAML"),
        (b"{[a]: 1}\n", "a key is not a word"),
        (b"a: " + b"[" * 50_000, "values are nested more than 32 deep"),
        (b"a: " + b"{b: " * 50_000, "values are nested more than 32 deep"),
        (b"a: 1\n" * 200_000, "there are more than 50,000 values"),
        (b"a: [" + b"1, " * 299_999 + b"1]", "r.yaml: there are more than 50,000 values"),
        (b"-\r" * 300_000, "r.yaml: there are more than 50,000 values"),
        ("-\u2028".encode() * 200_000, "r.yaml: there are more than 50,000 values"),
        (b"a: [" + b"[[[[[[]]]]]]," * 70_000 + b"1]", "r.yaml: there are more than 50,000 values"),
    ],
)  # fmt: skip
def test_what_is_no_plain_recipe_is_refused_with_its_place(tmp_path, text, expected):
    start = time.process_time()  # which other processes do not lengthen
    assert expected in problem(tmp_path, text)
    assert time.process_time() - start < 5


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    text = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert load_recipe(write(tmp_path, text)).recipe.name == "line3"


def test_yaml_is_1_2_so_no_and_on_are_text():
    assert parse_yaml("[no, on, 0o17, 017, 1_0, 12:30, true]", name="x")[0] == (
        ["no", "on", 15, 17, "1_0", "12:30", True]
    )


def test_an_override_wins_and_is_read_as_yaml(tmp_path):
    overrides = [
        "student.settings.losses.kl.weight=200",
        "student.optim={lr: 0.1}",
        "seed=1",
        "seed=2",
    ]
    recipe = load_recipe(write(tmp_path, GOOD), parse_overrides(overrides)).recipe
    assert recipe.student.settings == {"losses": {"kl": {"weight": 200}}}
    assert (recipe.student.optim.lr, recipe.student.optim.epochs, recipe.seed) == (0.1, 20, 2)


def test_paths_in_overrides_start_at_the_current_folder_whatever_key_they_are_in(
    tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    paths = {
        "data.test.folder": "x",
        "data.labeled.webdataset": "x/t.tar",
        "student.weights": "w.pt",
    }
    recipe = load_recipe(write(tmp_path, GOOD), paths).recipe
    assert recipe.data.test.folder == here / "x"
    assert recipe.data.labeled.webdataset == str(here / "x/t.tar")
    assert recipe.student.weights == str(here / "w.pt")
    assert recipe.data.unlabeled.folder == tmp_path / "cams"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.epoch=1", "overrides: optim.epoch is not a known key.\n  Did you mean epochs?"),
        ("optim.epochs=x", 'overrides: optim.epochs must be a whole number, got "x".'),
        ("optim={epoch: 1}", "overrides: optim: optim.epoch is not a known key."),
        ("optim.epochs", "--set optim.epochs has no key and value."),
        (
            "logit_adjustment.prior=unifrom",
            'or a mapping (key: value), got "unifrom".\n  Did you mean',
        ),
        (
            "logit_adjustment.prior={cat: 50%}",
            'logit_adjustment.prior.cat must be a number, got "50%".',
        ),
        ("=1", "--set =1 has no key and value."),
        ("a..b=1", "has no key and value."),
        ("name.x=1", "overrides: name.x: name is a single value and has no keys."),
        (
            "classes.x=1",
            "overrides: classes.x: classes is a list and has no keys.\n"
            "  Set it as a whole: classes={x: ...}",
        ),
        ("classes.0=dog", "Set it as a whole: classes=[...]"),
        ("seed=[1", "--set seed:1: this is not valid YAML"),
        ("seed=*x", "--set seed:1: this is not valid YAML: found undefined alias"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(tmp_path, override, expected):
    assert expected in problem(tmp_path, GOOD, override)


def test_a_mistake_beside_an_override_keeps_its_line(tmp_path):
    text = GOOD.replace("  weights: openai", "  wieghts: openai")
    assert "r.yaml:9: student.wieghts" in problem(
        tmp_path, text, "student.settings.losses.kl.weight=2"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sun396", "Did you mean sun397?"),
        ("zzzz", "has no recipe. Write one with: kdedge init"),
        ("line3.yaml", "has no recipe. Write one with: kdedge init"),
        ("x/sun397.yaml", "There is no recipe x/sun397.yaml."),
        ("/", "There is no recipe /."),
    ],
)
def test_a_recipe_that_is_not_there_is_named_with_what_is(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert expected in str(caught.value)


def test_a_recipe_that_is_not_there_is_answered_with_those_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("line3.yaml", "porch.yaml"):
        Path(name).touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe("no-such.yaml")
    listed = f"YAML files in {tmp_path}: line3.yaml, porch.yaml."
    assert str(caught.value) == f"There is no recipe no-such.yaml.\n  {listed}"


def test_a_name_means_the_file_here_before_the_shipped_one(tmp_path, monkeypatch):
    assert load_recipe("demo").recipe.name == "demo"
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(GOOD)
    assert load_recipe("demo").recipe.name == "line3"
    Path("line.3.yaml").write_text(GOOD)
    assert load_recipe("line.3").path == Path("line.3.yaml")


def test_the_limit_of_bad_images_is_a_share_or_a_count(tmp_path):
    def limit(text: str) -> int:
        recipe = load_recipe(
            write(tmp_path, GOOD), parse_overrides([f"data.max_bad_images={text}"])
        ).recipe
        return to_count(recipe.data.max_bad_images, 250)

    assert [limit(text) for text in ("1%", "0.5%", "0%", "7")] == [2, 1, 0, 7]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), plain, min_size=1, max_size=4))
@settings(max_examples=80)
def test_dumped_yaml_reads_back_as_equal_values(values):
    assert parse_yaml(dump_yaml(values), name="x")[0] == values


def test_the_dump_holds_defaults_and_null_where_null_was_given(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), {"student.optim.clip_grad_norm": None}).recipe
    values, _ = parse_yaml(dump_recipe(recipe), name="x")
    assert values["optim"]["momentum"] == 0.9
    assert values["student"]["optim"]["clip_grad_norm"] is None
    assert json.dumps(values["data"]["unlabeled"]) == json.dumps({"folder": str(tmp_path / "cams")})


def test_balance_is_read_as_the_former_name_of_logit_adjustment(tmp_path: Path) -> None:
    former = load_recipe(write(tmp_path, GOOD + "balance: {prior: labels}\n"))
    present = load_recipe(write(tmp_path, GOOD + "logit_adjustment: {prior: labels}\n"))
    assert former.recipe == present.recipe
    assert former.lines == present.lines


def test_an_override_of_balance_is_one_of_logit_adjustment(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, GOOD), {"balance.prior": "labels"})
    assert loaded.recipe.logit_adjustment is not None
    assert loaded.recipe.logit_adjustment.prior == "labels"


def test_a_key_under_its_former_and_its_present_name_is_refused(tmp_path: Path) -> None:
    both = "balance: {prior: auto}\nlogit_adjustment: {prior: labels}\n"
    with pytest.raises(RecipeError, match=r"\.yaml:15: balance is a former name of logit_adj"):
        load_recipe(write(tmp_path, GOOD + both))
