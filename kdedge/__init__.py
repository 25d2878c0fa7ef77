"""kdedge: trains small image classifiers from large ones, for devices, and measures what is lost.

The names of the Python API are those that `__init__.pyi` imports. Importing this module loads none
of them: each is loaded when it is first used.
"""

import functools

__version__ = "0.2.0"


@functools.cache
def _modules() -> dict[str, str]:
    """Maps each name of the API to the module that defines it."""
    # Imported here so that `kdedge --help` starts at once
    import ast
    from pathlib import Path

    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = (node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> object:
    """Imports the module of an API name when the name is first used."""
    from importlib import import_module

    if name == "__all__":
        return __dir__()
    if name not in _modules():
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    try:
        globals()[name] = value = getattr(import_module(_modules()[name]), name)
    except ModuleNotFoundError as error:  # classes that need torch or uvicorn
        raise AttributeError(f"kdedge.{name} needs {error.name}, which is missing") from error
    return value


def __dir__() -> list[str]:
    """Lists the names of the API, without classes whose packages are missing."""
    from importlib.util import find_spec

    needs = {"kdedge.training.": "torch", "kdedge.serving.": "uvicorn"}
    missing = tuple(prefix for prefix, package in needs.items() if find_spec(package) is None)
    names = [name for name, module in _modules().items() if not module.startswith(missing)]
    return sorted(["__version__", *names])
