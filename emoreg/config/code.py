"""Fingerprints of a user's own code: they change when it does something else, not when the study around it changes."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emoreg.errors import ConfigError

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_fingerprint(obj: Callable[..., Any]) -> str:
    """The SHA-256 of the code that a function or a class is defined by.

    That is its module, with every module that this imports from its own folder or package. Comments and docstrings do not
    count, nor does a module's study: ``study``, ``if __name__ == "__main__":`` and what is imported from emoreg. Of a notebook,
    the function or the class alone counts.

    Raises:
        ConfigError: where there is no source, as in an interpreter's prompt.
    """
    obj = inspect.unwrap(obj)
    try:
        path = _file(obj)
        if path is None:
            trees = [ast.parse(_source(obj))]
        else:
            trees = [_without_study(ast.parse(file.read_bytes())) for file in _family(path)]
    except (OSError, TypeError) as error:
        raise ConfigError(f"Define {obj!r} in a file or in a notebook's cell: its source must be there, but {error}") from error
    return hashlib.sha256("\n\n".join(ast.unparse(_without_docstrings(tree)) for tree in trees).encode()).hexdigest()


def _file(obj: Callable[..., Any]) -> Path | None:
    """The file that defines ``obj``; None for a notebook's cell, whose file has a name and does not exist."""
    if inspect.isclass(obj) and obj.__module__ == "__main__":
        obj = _method(obj)
    path = Path(inspect.getfile(obj))
    return path.resolve() if path.is_file() else None


def _source(obj: Callable[..., Any]) -> str:
    """The source of what a notebook's cell defines. Python finds a function there, and not a class."""
    if not inspect.isclass(obj):
        return textwrap.dedent(inspect.getsource(obj))
    cell = ast.parse("".join(linecache.getlines(inspect.getfile(_method(obj)))))
    return next(
        (ast.unparse(node) for node in ast.walk(cell) if isinstance(node, ast.ClassDef) and node.name == obj.__name__), ""
    )


def _method(cls: type) -> Callable[..., Any]:
    for value in vars(cls).values():
        if inspect.isfunction(value):
            return value
    raise TypeError(f"{cls!r} has no method, by which its source is found")


def _family(path: Path) -> list[Path]:
    """A module, and then those of its own folder and package that it imports, and they in turn."""
    found = [path]
    for module in found:  # which grows meanwhile
        found += sorted({imported.resolve() for imported in _imported(module)} - set(found))
    return found


def _imported(path: Path) -> Iterator[Path]:
    """The files of the modules that one imports, wherever in its code, as far as they lie in its folder or package."""
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    package = path.relative_to(top).parts[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            level, names = 0, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            level, names = node.level, [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in names if level or not _is_ours(name)):
            if level:
                roots = [path.parents[level - 1]]
            else:
                roots = [path.parent] * (path.parent.name != "site-packages") + [top] * (parts[0] == package)
            for place in (root.joinpath(*parts[:depth]) for root in roots for depth in range(1, len(parts) + 1)):
                yield from (file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file())


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "emoreg"


def _without_study(tree: ast.Module) -> ast.Module:
    def belongs_to_study(node: ast.stmt) -> bool:
        match node:
            case ast.Import(names=names):
                return all(_is_ours(alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                return _is_ours(module)
            case ast.FunctionDef(name="study") | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                return True
            case ast.Assign(targets=[ast.Name(id="study")]) | ast.AnnAssign(target=ast.Name(id="study")):
                return True
        return False

    tree.body = [node for node in tree.body if not belongs_to_study(node)]
    return tree


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
