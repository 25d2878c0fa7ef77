"""The option that these commands share."""

from pathlib import Path

from kdedge.cli.options import folder_option

data_option = folder_option(
    "--data",
    default=Path("data"),
    envvar="KDEDGE_DATA",
    help="Folder of the benchmark sets. The environment variable KDEDGE_DATA sets it too; in a"
    " recipe it is data.root.",
)
