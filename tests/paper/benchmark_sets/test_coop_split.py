import json

import pytest

from kdedge.errors import DataError
from kdedge.paper.benchmark_sets import read_split

SPLIT = {
    "train": [["c/a.jpg", 1, "church"], ["a/b.jpg", 0, "abbey"]],
    "val": [["a/c.jpg", 0, "abbey"]],
    "test": [["a/d.jpg", 0, "abbey"], ["c/e.jpg", 1, "church"]],
}
REMEDY = "Get another."


def write(folder, value):
    path = folder / "split.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_split_file_gives_names_in_label_order_and_rows_in_file_order(tmp_path):
    split = read_split(write(tmp_path, SPLIT), remedy=REMEDY)
    assert split.class_names == ("abbey", "church")
    assert split.parts["train"] == (("c/a.jpg", 1), ("a/b.jpg", 0))


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        ("test", ["../../etc/passwd", 0, "abbey"], "is outside of the image folder"),
        ("test", ["/etc/passwd", 0, "abbey"], "is outside of"),
        ("test", ["a/../../x", 0, "abbey"], "is outside of"),
        ("test", ["a\\..\\x", 0, "abbey"], "is outside of"),
        ("val", ["n.jpg", 0, "church"], r"val\[1\]: label 0 is 'church', was 'abbey'"),
        ("val", ["n.jpg", 3, "dock"], "labels from 0 to 3, expected 0 to 2"),
        ("val", ["n.jpg", -1, "dock"], "labels from -1"),
        ("val", ["n.jpg", 2, "abbey"], "each with a name of its own"),
        ("val", ["n.jpg", "0", "abbey"], r"val\.1\.1: .*, got '0'"),
        ("val", ["n.jpg", True, "church"], r"val\.1\.1: .*, got True"),
        ("val", ["n.jpg", 0], r"val\.1\.2: "),
        ("val", "n.jpg", r"val\.1: .*, got 'n\.jpg'"),
        ("val", ["n.jpg", 1, "\x1b[31mchurch"], r"val\[1\]: label 1 is '\\x1b"),
        ("val", ["\ud800.jpg", 0, "abbey"], "is not valid JSON"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_what_to_do(tmp_path, part, row, message):
    value = {**SPLIT, part: [*SPLIT[part], row]}
    with pytest.raises(DataError, match=rf"(?s){message}.*\n  {REMEDY}$"):
        read_split(write(tmp_path, value), remedy=REMEDY)


@pytest.mark.parametrize("value", ["{", "[]", {"train": []}, {**SPLIT, "val": {}}])
def test_what_is_no_split_file_is_refused(tmp_path, value):
    with pytest.raises(DataError, match=rf"split\.json.*\n  {REMEDY}$"):
        read_split(write(tmp_path, value), remedy=REMEDY)
