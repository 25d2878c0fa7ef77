"""Which models a cell trains, so that no two processes train one at the same time.

Two jobs of the same weights go on with each other's run or use it (`training.job.Job.key`), which
they cannot while another process works in it. That key needs the weights and the images. What is
hashed here is what a recipe says of them: equal where the keys may be.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from kdedge._files import sha256_json
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.recipe import ModelSpec
from kdedge.errors import KdedgeError
from kdedge.runs.find import runs_in
from kdedge.setup.method import Role, choose_method, model_spec, settings_record
from kdedge.training.loop.train import decisive_settings


def models_of(loaded: LoadedRecipe, role: Role) -> tuple[str, ...]:
    """Hashes of the models that a recipe's command trains where they are not there: its own last.

    Args:
        loaded: with the seed.
        role: what the command is for; a student's trains its teacher too, unless the recipe names
            that one's run.
    """
    own = _model(loaded, role)
    teacher = loaded.recipe.teacher
    if role != "student" or teacher is None:
        return (own,)
    if teacher.run is not None:
        return (sha256_json([own, str(teacher.run)]),)
    taught_by = _model(loaded, "teacher")
    return taught_by, sha256_json([own, taught_by])


def _model(loaded: LoadedRecipe, role: Role) -> str:
    recipe, choice = loaded.recipe, choose_method(loaded, role)
    sees = choice.module.METHOD.sees
    has_pseudo = sees.labels and recipe.data.pseudo_labels is not None
    seen = {
        "labeled": sees.labels,
        "pseudo_labels": has_pseudo,
        "unlabeled": sees.unlabeled_images or has_pseudo,
    }
    data = {"split", "root", *(key for key, is_seen in seen.items() if is_seen)}
    return sha256_json(
        {
            "role": role,
            **settings_record(choice),
            "optim": decisive_settings(choice.optim),
            "frozen": frozen_clip(model_spec(recipe, role)),
            "classes": recipe.classes.model_dump(mode="json"),
            "data": recipe.data.model_dump(mode="json", include=data),
            "seed": recipe.seed,
        }
    )


def frozen_clip(spec: ModelSpec) -> dict[str, Any]:
    """What decides which frozen CLIP a model is on."""
    return spec.model_dump(mode="json", include={"backbone", "weights", "config", "quick_gelu"})


class FinishedModels:
    """The models of the finished runs in a folder.

    Args:
        root: folder of all runs.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[Path, str | None] = {}

    def have(self, model: str) -> bool:
        """Whether a finished run has a model, as `models_of` names it; looks at new runs."""
        for run, record in runs_in(self._root):
            if record.is_finished and run.path not in self._found:
                self._found[run.path] = None
                with contextlib.suppress(KdedgeError):  # a recipe of another version, or damaged
                    self._found[run.path] = models_of(load_recipe(run.recipe), run.kind)[-1]
        return model in self._found.values()
