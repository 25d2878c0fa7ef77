"""What a method learns from: declared in its file as `SEES`, and nothing else reaches it.

`SEES = Sees(labels=True, unlabeled_images=False, novel_class_names=False)`, with all three written
out, so that the methods can be listed without importing them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sees:
    """What a method learns from, beside the frozen CLIP.

    Attributes:
        labels: images of `data.labeled` with their labels; under `split: base-to-novel` of the base
            classes alone.
        unlabeled_images: the images of `data.unlabeled`, of all classes and without labels.
        novel_class_names: names of classes without labels take part in training; else training
            knows the labeled classes alone, and other names come with evaluation.
    """

    labels: bool
    unlabeled_images: bool
    novel_class_names: bool

    def __or__(self, other: Sees) -> Sees:
        """What two see together, as a student and its teacher."""
        return Sees(
            labels=self.labels or other.labels,
            unlabeled_images=self.unlabeled_images or other.unlabeled_images,
            novel_class_names=self.novel_class_names or other.novel_class_names,
        )


def read_sees(file: Path) -> Sees:
    """The declaration in a method's file, which is not imported."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="SEES")], value=ast.Call(keywords=given)):
                return Sees(**{str(one.arg): ast.literal_eval(one.value) for one in given})
    raise AssertionError(f"{file} declares no SEES")  # a test reads all of kdedge's own
