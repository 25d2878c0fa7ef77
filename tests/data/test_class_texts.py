import json

import pytest

from kdedge.data.classes import read_class_texts
from kdedge.errors import DataError

NAMES = ("cat", "red fox", "naïve 'art'")
GOOD = {"red fox": ["fur  of\n red."], "naïve 'art'": ["bold.", "{flat}."], "cat": ['"it" purrs.']}


@pytest.fixture
def read(tmp_path):
    def write_and_read(data, names=NAMES):
        path = tmp_path / "texts.json"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_class_texts(path, names)

    return write_and_read


@pytest.mark.parametrize("options", [{}, {"ensure_ascii": False}, {"indent": 2}])
def test_sentences_come_in_class_list_order_with_single_blanks(read, options):
    expected = (('"it" purrs.',), ("fur of red.",), ("bold.", "{flat}."))
    assert read(json.dumps(GOOD, **options)) == expected
    assert read(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": ["a."],\n "red fix": ["b."]}', r"texts.json: \"red fix\" is not in the class"),
        ('{"cat": ["a."],\n "red fix": ["b."]}', "Did you mean red fox"),
        ('{"cat": ["a."],\n "qqqq": ["b."]}', "Keys must be names of the class list"),
        ('{"cat": ["a."],\n\n "red fox": []}', "texts.json: red fox: List should have at least 1"),
        ('{"cat": "a."}', "texts.json: cat: Input should be a valid array"),
        ('{"cat": ["a.", 5]}', "texts.json: cat, sentence 2: Input should be a valid string"),
        ('{"cat": ["a.", " \\n"]}', "sentence 2: Value error, expected printable text"),
        ('{"cat": ["\\ud800"]}', "texts.json: it: Invalid JSON: unexpected end of hex escape"),
        ('{"cat": ["a."]}', 'has no sentences for 2 of 3 classes, first "red fox"'),
        ("{}", "has no sentences for 3 of 3 classes"),
        ('{"cat": ["a."]\n "red fox": ["b."]}', "texts.json: it: Invalid JSON: .* at line 2"),
        ("", "texts.json: it: Invalid JSON"),
        ('["cat"]', "texts.json: it: Input should be an object"),
        ('{"cat": ' + "[" * 100_000, "Invalid JSON: recursion limit"),
        ('{"cat": [' + "1" * 5000 + "]}", "texts.json: .*"),
        (b'{"cat":\n["\xff"]}', "texts.json:2: not UTF-8"),
    ],
)
def test_what_is_no_file_of_class_texts_is_refused_with_its_place(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)
