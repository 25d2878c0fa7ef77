"""Files of probabilities by image key, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdedge.data.probabilities import read_probabilities
from kdedge.errors import DataError

NAMES = ("red fox", "cat, black", "dog", "pizza")
KEYS = ("a/1.jpg", "a/2.jpg")
HEADER = 'image,red fox,"cat, black",dog,pizza'
FIRST, SECOND = "a/1.jpg,0.7,0.1,0.1,0.1", "a/2.jpg,0,0,0,1"


def read(path: Path, text: str | bytes, **changes: object) -> Any:
    file = path / "p.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    given = {"keys": KEYS, "class_names": NAMES} | changes
    return read_probabilities(file, **given)  # type: ignore[arg-type]


def test_rows_are_those_of_the_images_and_columns_those_of_the_class_list(tmp_path: Path) -> None:
    header = 'image,pizza,dog,"cat, black",red fox'
    other = "b/9.jpg,0.25,0.25,0.25,0.25"
    text = f"\ufeff{header}\n{other}\n\na/2.jpg,1,0,0,0\r\na/1.jpg,0.1,0.1,0.1,0.7\n"
    found = read(tmp_path, text)
    assert found[KEYS.index("a/1.jpg")] == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert found[KEYS.index("a/2.jpg")].tolist() == [0, 0, 0, 1]
    assert (read(tmp_path, f"{HEADER}\n{FIRST}\n{SECOND}\n") == found).all()


def test_rounded_probabilities_are_made_to_sum_to_one(tmp_path: Path) -> None:
    found = read(tmp_path, f"{HEADER}\na/1.jpg,0.3333,0.3333,0.3333,0\n{SECOND}\n")
    assert found.sum(axis=1) == pytest.approx([1, 1], abs=1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"p.csv:1: expected 'image' and each of the 4 class names once, got ''"),
        ("key,red fox\n", r"p.csv:1: expected 'image' and .* got 'key,red fox'"),
        (
            HEADER.replace("dog", "dogs"),
            r'p.csv:1: .*Not in the class list: "dogs" \(nearest: "dog"',
        ),
        (f"{HEADER},dog\n", r"p.csv:1: expected 'image' and each of the 4 class names once"),
        ("image,red fox,dog\n", r'p.csv:1: .*\. Missing: "cat, black", "pizza"\.\n'),
        (f"{HEADER}\n", r"has no line for 2 of 2 images, first 'a/1.jpg'"),
        (f"{HEADER}\n{FIRST}\n", r"has no line for 1 of 2 images, first 'a/2.jpg'"),
        (f"{HEADER}\n{FIRST}\n{SECOND}\n{FIRST}\n", r"p.csv:4: .*'a/1.jpg' is .*, first in line 2"),
        (f"{HEADER}\na/1.jpg,1,0,0\n", r"p.csv:2: expected 4 probabilities .*, got 3"),
        (f"{HEADER}\na/1.jpg\n", r"p.csv:2: .*, got 0"),
        (f"{HEADER}\na/1.jpg,1,0,0,x\n", r"p.csv:2: .*the sum nan: '1,0,0,x'"),
        (f"{HEADER}\na/1.jpg,1,0,0,\n", r"p.csv:2: .*the sum nan"),
        (f"{HEADER}\na/1.jpg,nan,0,0,1\n", r"p.csv:2: .*the sum nan"),
        (f"{HEADER}\na/1.jpg,inf,0,0,1\n", r"p.csv:2: .*the sum inf"),
        (f"{HEADER}\na/1.jpg,-0.1,0.1,0.5,0.5\n", r"p.csv:2: .*'-0.1,0.1,0.5,0.5'"),
        (f"{HEADER}\na/1.jpg,0,0,0,0\n", r"p.csv:2: .*the sum 0"),
        (f"{HEADER}\na/1.jpg,90,4,3,3\n", r"p.csv:2: .*the sum 100"),
        (f"{HEADER}\nx.jpg,9,4,3,3\n", r"p.csv:2: .*the sum 19"),
        (b"image,\xff\xfe\n", r"p.csv cannot be read as CSV text in UTF-8"),
        (f'{HEADER}\n"a/1.jpg,1,0,0,0\n', r"p.csv cannot be read .*: unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_images_that_share_a_name_cannot_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Several images have the same name, such as 'a'"):
        read(tmp_path, f"{HEADER}\na,1,0,0,0\n", keys=("a", "a"))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_probabilities(tmp_path, keys=KEYS, class_names=NAMES)
