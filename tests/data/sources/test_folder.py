import pickle
from pathlib import Path

import pytest
from PIL import Image

from kdedge.data.sources.folder import open_source
from kdedge.errors import DataError
from kdedge.runtime.preprocess import ImageError

NAMES = ("cat", "hot dog", "scratch (deep)")


def add(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def keys(folder: Path, **options: object) -> list[str]:
    source = open_source(folder, class_names=NAMES, labeled=False, **options)
    return [item.key for item in source.items]


def test_images_are_found_at_any_depth_sorted_by_path(tmp_path):
    add(tmp_path, "b.png", "a/z.JPG", "a/b/c.webp", "a.tiff")
    assert keys(tmp_path) == ["a.tiff", "a/b/c.webp", "a/z.JPG", "b.png"]


def test_hidden_and_other_files_are_left_out(tmp_path):
    add(tmp_path, "a.png", ".b.png", ".hidden/c.png", ".DS_Store", "Thumbs.db", "d.txt", "f")
    add(tmp_path, "__MACOSX/a.png", "x/desktop.ini", "x/y.mp4")
    assert keys(tmp_path) == ["a.png"]
    left_out = open_source(tmp_path, class_names=NAMES, labeled=False).left_out
    assert left_out == {".txt": 1, ".mp4": 1, "other": 1}


def test_every_kind_that_pillow_reads_here_is_an_image(tmp_path):
    names = ("a.gif", "b.AVIF", "c.heic", "d.jfif", "e.jp2", "f.tga")
    add(tmp_path, *names)
    assert keys(tmp_path) == list(names)


def test_the_bytes_are_the_files_own(tmp_path):
    add(tmp_path, "a.png", "b.png")
    source = pickle.loads(pickle.dumps(open_source(tmp_path, class_names=(), labeled=False)))
    assert source.read(1) == (tmp_path / "b.png").read_bytes()


def test_a_link_back_into_the_tree_adds_nothing(tmp_path):
    add(tmp_path, "z/a.png")
    (tmp_path / "z" / "loop").symlink_to(tmp_path)
    (tmp_path / "a-link").symlink_to(tmp_path / "z")
    (tmp_path / "zz-link").symlink_to(tmp_path / "z")
    assert keys(tmp_path) == ["z/a.png"]


def test_a_linked_folder_outside_is_followed(tmp_path):
    add(tmp_path / "elsewhere", "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    assert keys(tmp_path / "images") == ["link/a.png"]


@pytest.mark.parametrize("target", ["gone.png", "b.png"])
def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path, target):
    add(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / target)
    source = open_source(tmp_path, class_names=(), labeled=False)
    assert [item.key for item in source.items] == ["a.png", "b.png"]
    with pytest.raises(ImageError, match="cannot be read"):
        source.read(1)


def test_a_name_that_is_not_utf8_gets_a_key_that_can_be_written(tmp_path):
    raw = bytes(tmp_path) + b"/\xff.png"
    with open(raw, "wb") as file:  # noqa: PTH123 - the name is bytes
        file.write(b"x")
    source = open_source(tmp_path, class_names=(), labeled=False)
    assert source.items[0].key == "\\xff.png"
    assert source.read(0) == b"x"


def test_an_empty_folder_is_refused_with_what_was_found(tmp_path):
    add(tmp_path, "a.svg", "b.svg", "c.txt")
    with pytest.raises(DataError, match=r"no image files; found 2 \.svg, 1 \.txt\.\n"):
        keys(tmp_path)


def test_of_a_folder_of_tables_it_is_said_how_they_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000-of-00001.parquet").touch()
    with pytest.raises(DataError) as caught:
        open_source(tmp_path, class_names=(), labeled=False)
    assert "found 1 .parquet.\n" in str(caught.value)
    assert str(caught.value).endswith(f'parquet: "{tmp_path}/**/*.parquet".')


@pytest.mark.parametrize("kind", ["gone", "file"])
def test_what_is_no_folder_is_refused(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="does not exist" if kind == "gone" else "not a folder"):
        keys(tmp_path / kind)


def test_the_first_folder_is_the_class_whatever_its_case_and_blanks(tmp_path):
    add(tmp_path, "Cat/a.png", "hot_dog/x/b.png", "scratch (deep)/c.png")
    source = open_source(tmp_path, class_names=NAMES, labeled=True)
    assert [item.label for item in source.items] == [0, 1, 2]


def test_an_exact_name_goes_before_one_with_spaces(tmp_path):
    add(tmp_path, "a b/x.png", "a_b/x.png")
    source = open_source(tmp_path, class_names=("a_b", "a b"), labeled=True)
    assert [item.label for item in source.items] == [1, 0]


def test_missing_and_unknown_folders_are_named_with_the_nearest_class(tmp_path):
    add(tmp_path, "cat/a.png", "hot dog/b.png", "scratch (depp)/c.png")
    with pytest.raises(DataError) as caught:
        open_source(tmp_path, class_names=NAMES, labeled=True)
    message = str(caught.value)
    assert "3 class folders with images, the class list has 3 names" in message
    assert 'Missing: "scratch (deep)".' in message
    assert 'Unknown: "scratch (depp)" (nearest: "scratch (deep)").' in message


def test_classes_without_images_and_images_without_a_class_are_accepted(tmp_path):
    add(tmp_path, "cat/a.png", "hot dog/b.png", "loose.png")
    (tmp_path / "scratch (deep)").mkdir()
    source = open_source(tmp_path, class_names=NAMES, labeled=True)
    assert [item.label for item in source.items] == [0, 1, None]


def test_images_that_are_all_outside_of_class_folders_are_an_error(tmp_path):
    add(tmp_path, "a.png", "loose.png")
    with pytest.raises(DataError, match=r"2 images, but none .* a\.png"):
        open_source(tmp_path, class_names=NAMES, labeled=True)


def test_a_file_that_went_away_is_an_unreadable_image(tmp_path):
    add(tmp_path, "a.png")
    source = open_source(tmp_path, class_names=(), labeled=False)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.read(0)
