"""Image sources, one file per kind, and their common parts."""

from kdedge.data.sources._protocol import (
    IMAGE_EXTENSIONS,
    FileSource,
    InFiles,
    Item,
    Joined,
    LabelIndex,
    Location,
    Source,
    Stamp,
    WithoutLabels,
    describe_mismatch,
    is_file,
    name_some,
    printable,
    read_file,
)

__all__ = [
    "IMAGE_EXTENSIONS",
    "FileSource",
    "InFiles",
    "Item",
    "Joined",
    "LabelIndex",
    "Location",
    "Source",
    "Stamp",
    "WithoutLabels",
    "describe_mismatch",
    "is_file",
    "name_some",
    "printable",
    "read_file",
]
