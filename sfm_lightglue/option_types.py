"""Types and ranges of options, from the sources of their dataclasses.

The sources are parsed and not imported, because most of them import torch, and help must be quick.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sfm_lightglue.execution import EXECUTORS
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.pairs import PAIR_SOURCES
from sfm_lightglue.ranges import described
from sfm_lightglue.training import TRAININGS

PLUGINS = {
    "features": EXTRACTORS,
    "pairs": PAIR_SOURCES,
    "matches": MATCHERS,
    "execution": EXECUTORS,
    "training": TRAININGS,
}
"""Group -> `package.module:Class` of each plug-in. The options of the other groups are fields of `RunOptions`."""
RUN_OPTIONS = "sfm_lightglue.run_options", "RunOptions"


@dataclass(frozen=True)
class Field:
    """One option in a dataclass."""

    type: str
    """In words: `int`, `float or null`."""
    about: str
    """Its docstring; empty if it has none."""
    range: str
    """In words: `at least 0 and at most 1`; empty if there is no simple one."""


@dataclass(frozen=True)
class _Class:
    module: str
    node: ast.ClassDef


def fields_of(group: str, plugin: str) -> dict[tuple[str, ...], Field]:
    """The options of a plug-in by their path below the group; empty if the source cannot be found.

    Args:
        group: Config group.
        plugin: Name of the plug-in in the YAML file, or `package.module:Class`. Groups without plug-ins do not need it.
    """
    if group not in PLUGINS:
        options = _find(*RUN_OPTIONS)
        annotation = next((each for name, each, _ in _annotations(options) if name == group), None) if options else None
        found = _of_annotation(options.module, annotation) if options and annotation is not None else None
    else:
        module, _, name = PLUGINS[group].get(plugin, plugin).partition(":")
        created = _find(module, name) if name else None
        found = _options_class(created) if created else None
    return dict(_fields(found, ())) if found else {}


def _options_class(plugin: _Class) -> _Class | None:
    """The annotation of `options` in `create`, as `config.options_class` finds it."""
    for created in _with_bases(plugin):
        for item in created.node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "create":
                arguments = {argument.arg: argument.annotation for argument in item.args.args}
                return _of_annotation(created.module, arguments.get("options"))
    return None


def _fields(options: _Class, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Field]]:
    for each in reversed(_with_bases(options)):
        ranges = _ranges(each.node)
        for name, annotation, about in _annotations(each):
            inner = _of_annotation(each.module, annotation)
            if inner is not None:
                yield from _fields(inner, (*path, name))
            else:
                yield (*path, name), Field(_spell(annotation), about, ranges.get(name, ""))


def _annotations(options: _Class) -> Iterator[tuple[str, ast.expr, str]]:
    """Name, annotation and docstring of each field."""
    body = options.node.body
    for item, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if has_text else ""  # type: ignore[union-attr]
            yield item.target.id, item.annotation, " ".join(text.split())


def _ranges(node: ast.ClassDef) -> dict[str, str]:
    """Ranges in words, from the calls of `check_ranges` and `check_at_least` in the class."""
    found: dict[str, list[str]] = {}
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            for keyword in call.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg is None or not isinstance(value, (str, int, float)):
                    continue
                if call.func.id == "check_ranges":
                    found.setdefault(keyword.arg, []).append(str(value))
                elif call.func.id == "check_at_least":
                    found.setdefault(keyword.arg, []).append(f">= {value}")
    return {name: described(", ".join(conditions)) for name, conditions in found.items()}


def _with_bases(options: _Class) -> list[_Class]:
    """The class and its bases, the class first."""
    bases = [_of_annotation(options.module, base) for base in options.node.bases]
    return [options, *(each for base in bases if base is not None for each in _with_bases(base))]


def _of_annotation(module: str, annotation: ast.expr | None) -> _Class | None:
    """The class that a name means in a module; None for built-in types and everything that is no single name."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return _find(module, annotation.id) if isinstance(annotation, ast.Name) else None


@functools.cache
def _find(module: str, name: str) -> _Class | None:
    """The class, in this module or in the one that it is imported from."""
    for item in _source(module).body:
        if isinstance(item, ast.ClassDef) and item.name == name:
            return _Class(module, item)
        if isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
            for alias in item.names:
                if (alias.asname or alias.name) == name:
                    return _find(item.module, alias.name)
    return None


@functools.cache
def _source(module: str) -> ast.Module:
    """The parsed source of a module; empty if it cannot be found. No package is imported."""
    path: list[str] | None = None
    spec = None
    for part in module.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        path = list(spec.submodule_search_locations or []) if spec else []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ast.Module([], [])
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _spell(annotation: ast.expr) -> str:
    """A type in words."""
    if isinstance(annotation, ast.BinOp):
        return f"{_spell(annotation.left)} or {_spell(annotation.right)}"
    if isinstance(annotation, ast.Constant):
        return "null" if annotation.value is None else repr(annotation.value)
    if isinstance(annotation, ast.Subscript):
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        name = ast.unparse(annotation.value)
        return " or ".join(map(_spell, items)) if name == "Literal" else f"{name} of {_spell(items[0])}"
    return ast.unparse(annotation)
