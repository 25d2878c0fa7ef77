"""Options of the commands that train: `--set` and its shorthands."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kdedge.api.recipe import SHORTHANDS, shorthand_keys
from kdedge.cli._output import set_option
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
