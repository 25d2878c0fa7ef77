"""kdedge: make a big CLIP small enough for the edge, and prove what that cost.

The names of the Python API are those that `__init__.pyi` imports. Importing this module loads none
of them: each is loaded when it is first used.
"""

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Loads a name of the API."""
    # Imported here: `kdedge --help` starts at once
    import ast
    from importlib import import_module
    from pathlib import Path

    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = (node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom))
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    if name == "__all__":
        return sorted([*homes, "__version__"])
    if name not in homes:
        raise AttributeError(f"module 'kdedge' has no attribute {name!r}")
    try:
        globals()[name] = value = getattr(import_module(homes[name]), name)
    except ModuleNotFoundError as error:  # a class that only a call with torch or uvicorn returns
        raise AttributeError(f"kdedge.{name} needs {error.name}, which is missing") from error
    return value


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))  # type: ignore[call-overload]
