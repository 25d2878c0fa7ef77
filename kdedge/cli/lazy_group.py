"""A group of commands that are found by name and imported when they run."""

from __future__ import annotations

from typing import Any

import click

from kdedge.cli.output import summary_of_module
from kdedge.messages import suggestion
from kdedge.plugins import Plugins


def commands_of(package: str, group: str, *, shared: tuple[str, ...] = ()) -> Plugins:
    """Returns the commands of a folder, `<name>.py` with a `command`, and those that join them.

    Args:
        package: the package of the core's own commands.
        group: the group of entry points by which packages add commands.
        shared: files in the package that are not commands.
    """
    return Plugins(
        noun="command",
        package=package,
        group=group,
        parts={"": {"command": "a click.Command; the first line of the module is its summary."}},
        shared=shared,
    )


class LazyGroup(click.Group):
    """A group of such commands.

    Args:
        plugins: the commands.
    """

    def __init__(self, *arguments: Any, plugins: Plugins, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plugins = plugins

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names, sorted."""
        return sorted({*self._plugins.names(), *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command."""
        if cmd_name not in self._plugins.names():
            return super().get_command(ctx, cmd_name)
        command = self._plugins.load(cmd_name).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands, each with the first line of its file; none is imported."""
        with formatter.section("Commands"):
            formatter.write_dl(self.summaries(self.list_commands(ctx)))

    def summaries(self, names: list[str]) -> list[tuple[str, str]]:
        """The names, each with the first line of the command's module, which is not imported."""
        files = {name: self._plugins.file(name) for name in names}
        return [(name, summary_of_module(file) if file else "") for name, file in files.items()]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command as click does; the error for an unknown name suggests the nearest one."""
        name, known = args[0], self.list_commands(ctx)
        if not name.startswith("-") and name not in known:
            ctx.fail(f'No such command "{name}". {suggestion(name, known, "")}'.rstrip())
        return super().resolve_command(ctx, args)
