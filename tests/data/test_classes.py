import pytest

from kdedge.config.data_spec import ClassesSpec, DataSpec
from kdedge.data.classes import class_list_hash, load_class_names, read_class_file
from kdedge.errors import DataError


def names_of(path, data: bytes):
    path.write_bytes(data)
    return read_class_file(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "classes.txt"


@pytest.mark.parametrize(
    "data", [b"cat\nhot dog\n", b"\xef\xbb\xbfcat\r\n\r\n  hot dog", b"cat\rhot dog\r"]
)
def test_a_class_file_has_one_name_a_line(path, data):
    assert names_of(path, data) == ("cat", "hot dog")


def test_only_blank_lines_are_skipped(path):
    text = "#1 fan\n\n \nnaïve 'art'\n// x\n"
    assert names_of(path, text.encode()) == ("#1 fan", "naïve 'art'", "// x")


def test_a_name_that_is_there_twice_is_named_with_both_lines(path):
    with pytest.raises(DataError, match=r"\(line 2\) are one class name"):
        names_of(path, "Käse\nKa\u0308se\n".encode())
    with pytest.raises(DataError, match=r'"cat" \(line 1\) and "cat" \(line 4\) are one'):
        names_of(path, b"cat\n\ndog\ncat \n")
    for one in ("red_fox", "Red  fox"):
        with pytest.raises(DataError, match=f'"red fox" .* and "{one}" .* are one class name'):
            names_of(path, f"red fox\n{one}\n".encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 class names, expected two or more"),
        (b"cat\n", "has 1 class name,"),
        (b"cat\ndo\xffg\n", "classes.txt:2: not UTF-8"),
        (b"cat\nd\0g\n", "line 2: 'd\\\\x00g' is not a class name"),
        (b"cat\n" + b"x" * 201, "line 2"),
    ],
)
def test_what_is_no_class_list_is_refused(path, data, message):
    with pytest.raises(DataError, match=message):
        names_of(path, data)


@pytest.mark.parametrize("name", ["line3.yaml", "line3.YML", "classes.json"])
def test_a_recipe_is_no_class_list_though_its_lines_would_do(path, name):
    recipe = path.with_name(name)
    recipe.write_text("name: line3\nclasses: {file: classes.txt}\n")
    with pytest.raises(DataError, match=f"{name} is not a class list in plain text"):
        read_class_file(recipe)


def test_names_in_the_recipe_and_in_a_file_are_the_same_classes(path):
    path.write_text("cat\ndog\n")
    data = DataSpec()
    written = load_class_names(ClassesSpec(names=("cat", "dog")), data=data)
    assert written == load_class_names(ClassesSpec(file=path), data=data)


def test_the_hash_depends_on_names_and_order():
    hashes = {class_list_hash(names) for names in (("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""))}
    assert len(hashes) == 4
    assert class_list_hash(["a", "b"]) == class_list_hash(("a", "b"))
