"""The key of a job. Equal keys mean equal weights, so a run is found and resumed by its key."""

from __future__ import annotations

from collections.abc import Mapping

from kdedge.config.recipe import Recipe
from kdedge.files import sha256_json
from kdedge.setup.method import MethodChoice, Role, settings_record
from kdedge.training.loop.optim import decisive_settings


def job_key(role: Role, recipe: Recipe, choice: MethodChoice, hashes: Mapping[str, str]) -> str:
    """Hash of everything that decides a run's final weights, and the offsets of its logits.

    Args:
        role: what is trained.
        recipe: gives seed, template, split and views.
        choice: the method, its settings and how it is optimized.
        hashes: of backbone, class list, image lists and teacher, by name.
    """
    # A teacher's answers are not balanced: one teacher serves recipes with balance and without
    balance = {}
    if recipe.balance is not None and role != "teacher":
        balance = {"balance": recipe.balance.model_dump(mode="json")}
    return sha256_json(
        {
            "role": role,
            **settings_record(choice),
            "optim": decisive_settings(choice.optim),
            "template": recipe.classes.template,
            "split": recipe.data.split,
            "seed": recipe.seed,
            **balance,
            **(_views(recipe, choice, hashes) if role == "student" else {}),
            **hashes,
        }
    )


def _views(recipe: Recipe, choice: MethodChoice, hashes: Mapping[str, str]) -> dict[str, int]:
    """The settings of views that differ from the default."""
    seed = own_view_seed(recipe)
    return {
        **({} if seed is None else {"view_seed": seed}),
        **({"views": n_stored_views(recipe, choice)} if "teacher_store" in hashes else {}),
    }


def own_view_seed(recipe: Recipe) -> int | None:
    """The seed of the student's crops and flips; None if it is the recipe's seed."""
    spec = recipe.student
    seed = None if spec is None else spec.view_seed
    return None if seed == recipe.seed else seed


def n_stored_views(recipe: Recipe, choice: MethodChoice) -> int:
    """Views per image in a student's teacher store; at most the number of epochs."""
    assert recipe.student is not None  # its method was chosen
    if choice.is_solved:
        return 1
    return min(recipe.student.views, choice.optim.epochs)
