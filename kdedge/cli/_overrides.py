"""Options of the commands that train: `--set` and its shorthands."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kdedge.api.recipe import SHORTHANDS, shorthand_keys, with_size
from kdedge.cli._output import set_option
from kdedge.config.student_sizes import SIZES
from kdedge.config.suite import override_texts

if TYPE_CHECKING:
    from kdedge.setup.method import Role


def set_options(role: Role) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set` and its shorthands, given to the command as the tuple `overrides`.

    Args:
        role: the model that the command trains; the shorthands set its `optim`.
    """
    keys = shorthand_keys(role)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*arguments: Any, overrides: tuple[str, ...], **values: Any) -> Any:
            numbers = {name: values.pop(name) for name in keys}
            given = {name: number for name, number in numbers.items() if number is not None}
            known = {text.partition("=")[0] for text in overrides}
            texts = override_texts({keys[name]: number for name, number in given.items()})
            for name, text in zip(given, texts, strict=True):
                if keys[name] in known:
                    raise click.UsageError(
                        f"{_option(name)} and --set {keys[name]} set the same key: give only one"
                        " of them."
                    )
                logging.getLogger(__name__).info("%s sets %s.", _option(name), text)
            return function(*arguments, overrides=(*overrides, *texts), **values)

        for name, (kind, what) in reversed(SHORTHANDS.items()):
            text = f"{what}: short for --set {keys[name]}=N."
            command = click.option(_option(name), metavar="N", type=kind, help=text)(command)
        return set_option(command)

    return decorate


def size_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--size`, turned into overrides of the student; `--set` may change them again."""

    @functools.wraps(function)
    def command(
        *arguments: Any, size: str | None, overrides: tuple[str, ...], **values: Any
    ) -> Any:
        texts = with_size(None, size)
        if texts:
            logging.getLogger(__name__).info("--size %s sets %s.", size, ", ".join(texts))
        return function(*arguments, overrides=(*texts, *overrides), **values)

    return click.option("--size", type=click.Choice(list(SIZES)), help=SIZE_HELP)(command)


SIZE_HELP = (
    "Student by size, in place of the recipe's: "
    + "; ".join(
        f"{name} is {one.backbone} ({one.n_parameters:g} million parameters, {one.gflops:g} GFLOPs)"
        for name, one in SIZES.items()
    )
    + "."
)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
