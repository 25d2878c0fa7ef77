"""Writes a recipe for the user's own images."""

from __future__ import annotations

from pathlib import Path

from kdedge.setup.new_recipe import Given, write_new_recipe


def init(
    name: str,
    *,
    images: str | Path,
    classes: str | Path,
    labeled: str | Path | None = None,
    test: str | Path | None = None,
    teacher: str | None = None,
    student: str | None = None,
    size: str | None = None,
) -> Path:
    """Writes `name`.yaml, a commented recipe for your own images, into the current folder.

    It checks the folders first and writes no recipe that cannot work. An existing file is never
    overwritten.

    Args:
        name: the recipe's name.
        images: folder of unlabeled images that the student is trained on.
        classes: text file of class names, one per line.
        labeled: labeled images, one subfolder per class; None for zero-shot CLIP as the teacher.
        test: labeled images for measuring accuracy, one subfolder per class.
        teacher: the teacher's CLIP as `MODEL:WEIGHTS`; None for OpenAI's ViT-L-14.
        student: the student's CLIP, for the device; None for that of `size`.
        size: `nano`, `small` or `base`; None for `base`, OpenAI's ViT-B-16, or for `student`.

    Returns:
        The recipe's file.

    Raises:
        RecipeError: the name cannot be used, the file exists, or a CLIP does not fit.
        DataError: a folder or the class list is missing or wrong.
        SetupError: a CLIP is named and torch is missing.
    """
    given = Given(
        images=Path(images),
        classes=Path(classes),
        labeled=None if labeled is None else Path(labeled),
        test=None if test is None else Path(test),
        teacher=teacher,
        student=student,
        size=size,
    )
    return write_new_recipe(name, given).path
