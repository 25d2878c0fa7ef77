"""What an export starts from: a finished run's model, class vectors for a class list, real images.

Class vectors go by name. A run's own names have theirs stored; further names are encoded by the
teacher that taught the run, where it is still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.recipe import ClassesSpec
from kdedge.data.classes import class_list_hash, load_class_names
from kdedge.errors import DataError, RecipeError
from kdedge.methods.protocol import Method
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import StoredTeacher, load_student, load_teacher
from kdedge.setup.backbone import cache_folder
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images, load_images
from kdedge.setup.method import choose_method, settings_record


@dataclass(frozen=True)
class TrainedModel:
    """A finished run, ready to be folded.

    Attributes:
        run: the run.
        loaded: its recipe, perhaps with overrides.
        own: the class list that it was trained with.
        model: in evaluation mode, frozen.
        backbone: the frozen CLIP under it, or an image tower alone.
        vectors: class vectors of the list that is exported, in its order.
    """

    run: RunFolder
    loaded: LoadedRecipe
    own: Classes
    model: Method | StoredTeacher
    backbone: AnyBackbone
    vectors: ClassVectors

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class list that is exported."""
        return self.vectors.class_names

    def images(self, key: str) -> Images | None:
        """The recipe's images under `data.<key>`, `unlabeled` or `test`; None where it has none."""
        assert key in ("unlabeled", "test")
        return load_images(self.loaded.recipe, key, self.own)  # type: ignore[arg-type]

    def exported_labels(self, images: Images) -> list[int | None]:
        """Each image's class as a position in the exported list; None where it is not in it."""
        position = {name: index for index, name in enumerate(self.class_names)}
        labels = [images.source.items[index].label for index in images.indices]
        return [None if label is None else position.get(self.own.names[label]) for label in labels]

    def provenance(self) -> dict[str, Any]:
        """What the exported files were made of, as plain values."""
        record = self.run.read_provenance()
        return {
            "run": self.run.name,
            "kind": self.run.kind,
            "trained_at": record.get("finished_at"),
            "trained_with": record.get("versions"),
            "seed": record.get("seed"),
            **settings_record(choose_method(self.loaded, self.run.kind)),
            "backbone": self.backbone.name,
            "hashes": {
                **record.get("hashes", {}),
                "exported_class_list": class_list_hash(self.class_names),
                "class_vectors": self.vectors.made_by,
            },
            "scale": self.model.scale,
        }


def load_trained_model(
    run: RunFolder,
    *,
    device: torch.device,
    overrides: Sequence[str] = (),
    classes_file: Path | None = None,
) -> TrainedModel:
    """Loads a finished run for export.

    Args:
        run: a student's run, or a teacher's.
        device: where the unfused model runs for comparison.
        overrides: `a.b=c` texts over the run's recipe.
        classes_file: class names, one a line, in place of the run's: fewer, in another order, or
            new ones where the teacher is at hand.

    Raises:
        RecipeError: the run is not finished.
        DataError: a name has no stored class vector, and its teacher is not there or did not make
            the stored ones; files of the run are damaged or do not belong together.
    """
    if not run.is_finished:
        raise RecipeError(
            f"{run.path} is not finished.\n  Go on with it: add --resume to its command."
        )
    loaded = load_recipe(run.recipe, overrides)
    cache = cache_folder(run.path.resolve().parent.parent)
    recipe = loaded.recipe
    stored = load_class_vectors(run.class_vectors)
    own = Classes(stored.class_names, recipe.classes.template, recipe.data.split)
    names = own.names
    if classes_file is not None:
        names = load_class_names(ClassesSpec(file=classes_file), data=recipe.data)
    model: Method | StoredTeacher
    backbone: AnyBackbone
    if run.kind == "student":
        method, backbone = load_student(run, loaded, own, device=device, cache=cache)
        method.module.requires_grad_(False)
        model = method
    else:
        model = load_teacher(run, own, device=device, cache=cache)
        backbone = model.backbone
    if set(names) <= set(stored.class_names):
        vectors = stored.select(names)
    else:
        is_own = choose_method(loaded, run.kind).settings.has_own_class_vectors
        vectors = _encode(
            run, stored, replace(own, names=names), is_own=is_own, device=device, cache=cache
        )
    return TrainedModel(run, loaded, own, model, backbone, vectors)


def _encode(
    run: RunFolder,
    stored: ClassVectors,
    classes: Classes,
    *,
    is_own: bool,
    device: torch.device,
    cache: Path,
) -> ClassVectors:
    """Class vectors of a list with names that have none stored, by the teacher's text tower.

    Args:
        run: a student's or a teacher's.
        stored: the run's class vectors.
        classes: the list.
        is_own: whether the student made the stored vectors in place of its teacher.
        device: where to encode.
        cache: folder of text features.

    Raises:
        DataError: the student made the stored vectors; the teacher is not there, or is not the one
            that made them.
    """
    new = [name for name in classes.names if name not in stored.class_names]
    what = f"{len(new)} of {len(classes.names)} class names have no stored vector, first {new[0]!r}"
    if is_own:
        raise DataError(
            f"{what}, and this student made the stored ones itself (class_vectors: student): the"
            " teacher's would not fit its image features.\n"
            f"  Use names among the {len(stored.class_names)} of {run.class_vectors}, or distill"
            " again with the new list."
        )
    remedy = (
        f"  Use names among the {len(stored.class_names)} of {run.class_vectors}, put the teacher's"
        " run back, or distill again."
    )
    teacher_run = run
    if run.kind == "student":
        name = run.read_provenance().get("teacher_run")
        folder = None if name is None else run.path.resolve().parent.parent / str(name)
        if folder is None or not (folder / "provenance.json").is_file():
            where = "its teacher is no run" if folder is None else f"its teacher is not in {folder}"
            raise DataError(f"{what}, and {where}.\n{remedy}")
        teacher_run = RunFolder.open(folder)
    if load_class_vectors(teacher_run.class_vectors).made_by != stored.made_by:
        raise DataError(
            f"{what}, and the teacher in {teacher_run.path} is not the one that made the stored"
            f" vectors.\n{remedy}"
        )
    return load_teacher(teacher_run, classes, device=device, cache=cache).stored
