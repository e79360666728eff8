"""Reads vLLM's source code without importing it: from a folder, the installed package or a wheel."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Sources:
    """The modules of one version of vLLM, parsed on demand.

    Args:
        place: the folder `vllm`, a folder that holds it, or a wheel (`.whl`).

    Raises:
        InputError: `place` is none of these.
    """

    def __init__(self, place: Path) -> None:
        root: Any = zipfile.Path(place) if place.is_file() and zipfile.is_zipfile(place) else place
        if not (root / "__init__.py").is_file():
            root = root / "vllm"
        if not (root / "__init__.py").is_file():
            raise InputError(
                f"{place} holds no vLLM: expected the folder of the package, a folder with it, or a wheel."
            )
        self._root = root
        self.module = lru_cache(maxsize=None)(self._module)

    @cached_property
    def version(self) -> str:
        """The version in `_version.py`; "unknown" if there is none."""
        try:
            text = (self._root / "_version.py").read_text(encoding="utf-8")
        except (FileNotFoundError, KeyError):
            return "unknown"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if "__version__" in names:
                    return str(node.value.value)
        return "unknown"

    def _module(self, name: str) -> ast.Module | None:
        """The module `vllm.x.y`; None if it does not exist or is not part of vLLM."""
        package, *parts = name.split(".")
        if package != "vllm":
            return None
        files = [self._file(*parts, "__init__.py")]
        if parts:
            files.append(self._file(*parts[:-1], f"{parts[-1]}.py"))
        for file in files:
            if file.is_file():
                text: str = file.read_text(encoding="utf-8")
                return ast.parse(text)
        return None

    def _file(self, *parts: str) -> Any:
        place = self._root
        for part in parts:
            place = place / part
        return place

    def binds(self, module: str, name: str) -> bool:
        """Whether `from module import name` works: the name is bound in it, or is a submodule."""
        if self.module(f"{module}.{name}") is not None:
            return True
        tree = self.module(module)
        return tree is not None and any(name == bound for bound, _ in _bound(tree))

    def definition(self, module: str, name: str) -> tuple[str, Definition] | None:
        """The module that defines a class or function, and the definition; imports are followed."""
        tree = self.module(module)
        if tree is None:
            return None
        for bound, node in _bound(tree):
            if bound != name:
                continue
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                return module, node
            if isinstance(node, ast.ImportFrom):
                origin = self._origin(module, node)
                original = next(a.name for a in node.names if (a.asname or a.name) == name)
                if origin != module and (definition := self.definition(origin, original)) is not None:
                    return definition
        return None

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self._file(*parts[1:], "__init__.py").is_file()
        base = parts[: len(parts) - node.level + (1 if is_package else 0)]
        return ".".join([*base, *([node.module] if node.module else [])])

    def lineage(self, module: str, name: str) -> list[ast.ClassDef]:
        """A class and its bases inside vLLM, nearest first."""
        home, node = self.definition(module, name) or (module, None)
        if not isinstance(node, ast.ClassDef):
            return []
        line = [node]
        for base in node.bases:
            origin = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(origin, ast.Name):
                line += self.lineage(home, origin.id)
        return line

    def function(self, module: str, qualified: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """A function, or the method `Class.method` of the class or its nearest base that defines it."""
        holder, _, name = qualified.rpartition(".")
        if not holder:
            _, node = self.definition(module, name) or (module, None)
            return node if isinstance(node, FUNCTIONS) else None
        for node in self.lineage(module, holder):
            # The last definition: overloads come before it.
            for each in reversed(node.body):
                if isinstance(each, FUNCTIONS) and each.name == name:
                    return each
        return None

    def attributes(self, module: str, name: str) -> set[str]:
        """Attributes of a class's instances: fields, methods, and attributes that a method sets on `self`."""
        names: set[str] = set()
        for node in self.lineage(module, name):
            for each in node.body:
                names |= assigned(each)
            for inner in ast.walk(node):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                ):
                    names.add(inner.attr)
        return names


def _bound(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Names that a module binds, also inside `if` and `try`, with the node that binds them, last node first
    (it wins)."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for name in assigned(node):
                yield name, node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ExceptHandler):
            pending.extend(ast.iter_child_nodes(node))


def assigned(node: ast.AST) -> set[str]:
    """Names that a definition or an assignment binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names: set[str] = set()
    for target in targets:
        items = target.elts if isinstance(target, ast.Tuple) else [target]
        names |= {item.id for item in items if isinstance(item, ast.Name)}
    return names
