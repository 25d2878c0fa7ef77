import pickle

import pytest

from kdedge.data.sources.csv_list import open_source
from kdedge.errors import DataError

NAMES = ("cat", "hot dog", "7")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b, c.jpg", "sub/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def read(folder, text, *, labeled=True, encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return open_source(path, class_names=NAMES, labeled=labeled)


def test_rows_keep_their_order_and_labels(folder):
    source = read(folder, 'path,label\nsub/d.jpg,hot_dog\n"b, c.jpg",0\n\na.jpg,7\nlist.csv\n')
    assert [(item.key, item.label) for item in source.items] == [
        ("sub/d.jpg", 1),
        ("b, c.jpg", 0),
        ("a.jpg", 2),  # the class named 7, not a position
        ("list.csv", None),
    ]
    assert pickle.loads(pickle.dumps(source)).read(1) == b"b, c.jpg"


def test_no_heading_and_no_labels_are_fine_without_labels(folder):
    for rows in ("a.jpg\nsub/d.jpg\n", "a.jpg,nonsense\nsub/d.jpg,\n"):
        items = read(folder, rows, labeled=False).items
        assert [(item.key, item.label) for item in items] == [("a.jpg", None), ("sub/d.jpg", None)]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(folder):
    assert len(read(folder, "path,label\r\na.jpg,cat\r\n", encoding="utf-8-sig").items) == 1


def test_an_empty_first_row_of_a_spreadsheet_is_skipped(folder):
    assert read(folder, ";\npath;label\na.jpg;cat\n").items[0].label == 0


def test_absolute_paths_and_paths_upwards_are_the_users_own(folder):
    (folder / "lists").mkdir()
    path = folder / "lists" / "list.csv"
    path.write_text(f"../a.jpg\n{folder / 'sub' / 'd.jpg'}\n")
    source = open_source(path, class_names=(), labeled=False)
    assert [source.read(0), source.read(1)] == [b"a.jpg", b"sub/d.jpg"]


def test_missing_files_are_named_with_their_lines(folder):
    with pytest.raises(DataError, match=r"names 2 missing files.*\n  line 2: x\.jpg; line 4: sub"):
        read(folder, "path\nx.jpg\na.jpg\nsub\n", labeled=False)


@pytest.mark.parametrize(
    "text",
    [
        "image,class\na.jpg,cat\n",
        "Class Name,Image Path\ncat,a.jpg\n",
        '"filename","label"\n"a.jpg","cat"\n',
        "\nfile;category\na.jpg;cat\n",
        "id\timg\ttarget\n1\ta.jpg\tcat\n",
        "path,split,label,notes\na.jpg,train,cat,\n",
        "path,kind\na.jpg,cat\n",
        "path,label,class_name\na.jpg,1,cat\n",
        "path,label,class_name\na.jpg,cat,animal\n",
        "path,class_name\na.jpg,cat\n",
    ],
)
def test_common_headings_say_which_columns_are_meant(folder, text):
    assert [(item.key, item.label) for item in read(folder, text).items] == [("a.jpg", 0)]


def test_a_file_that_is_called_like_a_heading_is_an_image(folder):
    (folder / "image").write_bytes(b"x")
    assert [item.key for item in read(folder, "image,cat\na.jpg,cat\n").items] == ["image", "a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,dog\n", r':1: "dog" is not a class name \(nearest: "hot dog"\)'),
        ("a.jpg,3\n", ':1: "3" is not a class name'),
        ("a.jpg,-1\n", ':1: "-1" is not a class name'),
        ("a.jpg\n", "has no labels, and labels are needed"),
        ("a.jpg,cat,1\n", ":1: the row has 3 fields"),
        (",cat\n", ":1: the row has 2 fields"),
        ("a.jpg,cat\na.jpg,cat\n", r":2: a\.jpg is already in line 1"),
        ("path,label\n", "lists no images"),
        ("photo,kind\na.jpg,cat\n", r"If line 1 is a heading, call its columns path and label"),
        ("image,kind\na.jpg,cat\n", r"has no labels, .* Its columns: image, kind\."),
        ("", "lists no images"),
        ('"a.jpg', "not a CSV row"),
        ("a\0.jpg,cat\n", "not a CSV row|missing files"),
        ("x" * 5000 + ",cat\n", "missing files"),
        ("a.jpg;cat\nb.jpg;dog\n", "semicolons; separate the columns by commas"),
        ('"' + "x" * 200_000 + '",cat\n', "not a CSV row"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(folder, text, message):
    with pytest.raises(DataError, match=message):
        read(folder, text)


def test_a_list_in_another_encoding_is_refused(folder):
    with pytest.raises(DataError, match="not UTF-8"):
        read(folder, "ä.jpg,cat\n", encoding="latin-1")


def test_a_list_that_is_not_there_is_named(folder):
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: no such file"):
        open_source(folder / "gone.csv", class_names=NAMES, labeled=True)
