"""Checks statements about vLLM's source code, without importing it.

`Sources` reads a `vllm` package: a folder, an installed package, or a wheel as it was downloaded. Each class
here is one kind of statement, such as "this method can be called like this"; its `misses` lists what is not
so in the sources at hand. `contract.py` holds the statements that the plugin relies on.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from inferaligner.errors import InputError

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Sources:
    """The modules of one version of vLLM, parsed when asked for.

    `place` is the folder `vllm` itself, a folder that holds it, or a wheel (`.whl`). Raises `InputError` for
    anything else.
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
        """As the package says it of itself."""
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
        """The module `vllm.x.y`; None for one that is not there, or not of vLLM."""
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
        """Whether `from module import name` can work: the name is bound there, or is a module below."""
        if self.module(f"{module}.{name}") is not None:
            return True
        tree = self.module(module)
        return tree is not None and any(name == bound for bound, _ in _bound(tree))

    def definition(self, module: str, name: str) -> tuple[str, Definition] | None:
        """The class or function, and the module that defines it; imports are followed."""
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
                if origin != module and (found := self.definition(origin, original)) is not None:
                    return found
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
        """A function, or the method `Class.method`, the nearest definition of it."""
        holder, _, name = qualified.rpartition(".")
        if not holder:
            found = self.definition(module, name)
            return found[1] if found is not None and isinstance(found[1], _FUNCTIONS) else None
        for node in self.lineage(module, holder):
            # The last one: overloads come before it.
            for each in reversed(node.body):
                if isinstance(each, _FUNCTIONS) and each.name == name:
                    return each
        return None

    def attributes(self, module: str, name: str) -> set[str]:
        """What instances of a class have: fields, methods, and whatever a method assigns to `self`."""
        found: set[str] = set()
        for node in self.lineage(module, name):
            for each in node.body:
                found |= _assigned(each)
            for inner in ast.walk(node):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                ):
                    found.add(inner.attr)
        return found


def _bound(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Names that a module binds, inside of `if` and `try` as well, and what binds them; the last one wins, so
    it comes first."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for name in _assigned(node):
                yield name, node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ExceptHandler):
            pending.extend(ast.iter_child_nodes(node))


def _assigned(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names: set[str] = set()
    for target in targets:
        items = target.elts if isinstance(target, ast.Tuple) else [target]
        names |= {item.id for item in items if isinstance(item, ast.Name)}
    return names


class Statement(Protocol):
    """One thing that is relied on; `module` in the statements below is vLLM's."""

    def misses(self, sources: Sources) -> list[str]:
        """What is not so, one sentence each; empty if all of it holds."""
        ...


@dataclass(frozen=True)
class Names:
    """`from module import names`, names separated by blanks."""

    module: str
    names: str

    def misses(self, sources: Sources) -> list[str]:
        return [
            f"{self.module} has no {name}"
            for name in self.names.split()
            if not sources.binds(self.module, name)
        ]


@dataclass(frozen=True)
class Attributes:
    """Instances of a class have these attributes, methods or fields; an enum has these members."""

    module: str
    owner: str
    names: str

    def misses(self, sources: Sources) -> list[str]:
        if not sources.lineage(self.module, self.owner):
            return [f"{self.module} has no class {self.owner}"]
        there = sources.attributes(self.module, self.owner)
        return [
            f"{self.module}.{self.owner} has no attribute {name}"
            for name in self.names.split()
            if name not in there
        ]


@dataclass(frozen=True)
class Call:
    """The plugin calls `function` like this; `given` is written as in the call, without `self`."""

    module: str
    function: str
    given: str

    def misses(self, sources: Sources) -> list[str]:
        found = sources.function(self.module, self.function)
        where = f"{self.module}.{self.function}"
        if found is None:
            return [f"{where} does not exist"]
        call = ast.parse(f"f({self.given})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments = found.args
        positional = _positional(found, method="." in self.function)
        keywords = [item.arg for item in call.keywords if item.arg is not None]
        problems = []
        if len(call.args) > len(positional) and arguments.vararg is None:
            problems.append(
                f"{where} takes {len(positional)} positional arguments, {len(call.args)} are given"
            )
        named = {*positional[len(call.args) :], *(each.arg for each in arguments.kwonlyargs)}
        problems += [
            f"{where} takes no argument {name}"
            for name in keywords
            if name not in named and arguments.kwarg is None
        ]
        optional = len(arguments.defaults)
        required = positional[len(call.args) : len(positional) - optional]
        required += [
            each.arg
            for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if default is None
        ]
        problems += [
            f"{where} wants an argument {name} that is not given" for name in required if name not in keywords
        ]
        return problems


@dataclass(frozen=True)
class Override:
    """vLLM calls `function`, and the plugin stands in its place with the parameters `ours` (without `self`).

    Every argument that vLLM's own takes must find its place in them.
    """

    module: str
    function: str
    ours: str

    def misses(self, sources: Sources) -> list[str]:
        found = sources.function(self.module, self.function)
        where = f"{self.module}.{self.function}"
        if found is None:
            return [f"{where} does not exist"]
        made = ast.parse(f"def f({self.ours}): ...").body[0]
        assert isinstance(made, ast.FunctionDef)
        ours, theirs = _positional(made, method=False), _positional(found, method="." in self.function)
        problems = []
        for number, name in enumerate(ours):
            if number >= len(theirs):
                problems.append(f"{where} does not give the argument {name} any more")
            elif theirs[number] != name:
                problems.append(f"{where} has {theirs[number]} where {name} is expected")
        # vLLM may hand the others on by place or by name.
        passes_all = made.args.vararg is not None and made.args.kwarg is not None
        rest = [] if passes_all else theirs[len(ours) :]
        if made.args.kwarg is None:
            rest = rest + [each.arg for each in found.args.kwonlyargs]
        problems += [f"{where} may be given {name}, which the plugin does not take on" for name in rest]
        return problems


@dataclass(frozen=True)
class Code:
    """The source of a class, a function or (without `name`) a module contains each of these texts.

    A text may give alternatives, `one || another`, where versions differ. Compared as `ast.unparse` writes
    them, so spaces and line breaks make no difference.
    """

    module: str
    name: str
    texts: tuple[str, ...]

    def misses(self, sources: Sources) -> list[str]:
        node: ast.AST | None
        if not self.name:
            node = sources.module(self.module)
        else:
            node = sources.function(self.module, self.name)
            if node is None and (found := sources.definition(self.module, self.name)) is not None:
                node = found[1]
        where = f"{self.module}.{self.name}".rstrip(".")
        if node is None:
            return [f"{where} does not exist"]
        source = ast.unparse(node)
        return [
            f"{where} does not say `{text}` any more"
            for text in self.texts
            if not any(each.strip() in source for each in text.split("||"))
        ]


@dataclass(frozen=True)
class OneOf:
    """At least one of several statements holds, where versions differ."""

    statements: tuple[Statement, ...]

    def misses(self, sources: Sources) -> list[str]:
        found = [each.misses(sources) for each in self.statements]
        return [] if [] in found else [miss for several in found for miss in several]


@dataclass(frozen=True)
class Reviewed:
    """All that a class has today; what comes anew must be looked at before it is let through.

    Attributes:
        kind: `methods` (public ones), or `fields`.
        names: what is known, in any supported version.
        question: what to ask about a new one.
    """

    module: str
    owner: str
    kind: str
    names: str
    question: str

    def misses(self, sources: Sources) -> list[str]:
        line = sources.lineage(self.module, self.owner)
        if not line:
            return [f"{self.module} has no class {self.owner}"]
        there: list[str] = []
        for node in line:
            for each in node.body:
                if self.kind == "methods" and isinstance(each, _FUNCTIONS):
                    there.append(each.name)
                elif self.kind == "fields" and isinstance(each, ast.AnnAssign):
                    there += _assigned(each)
        known = set(self.names.split())
        return [
            f"{self.module}.{self.owner}.{name} is new: {self.question}"
            for name in dict.fromkeys(there)
            if not name.startswith("_") and name not in known
        ]


@dataclass(frozen=True)
class Carrier:
    """A message of the plugin can ride on instances of this class as one more attribute."""

    module: str
    owner: str

    def misses(self, sources: Sources) -> list[str]:
        line = sources.lineage(self.module, self.owner)
        where = f"{self.module}.{self.owner}"
        if not line:
            return [f"{where} does not exist"]
        for node in line:
            texts = [*map(ast.unparse, node.decorator_list), *map(ast.unparse, node.bases)]
            texts += map(ast.unparse, node.keywords)
            slots = any("__slots__" in _assigned(each) for each in node.body)
            if slots or any("slots=True" in text or "Struct" in text for text in texts):
                return [f"{where} takes no other attributes than its own"]
            if any("frozen=True" in text for text in texts):
                return [f"{where} is frozen"]
        return []


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer that returns `(hidden, residual)` if `pair`, else the residual stream alone; which one
    shows in whether `forward` takes `residual`."""

    module: str
    owner: str
    pair: bool

    def misses(self, sources: Sources) -> list[str]:
        found = sources.function(self.module, f"{self.owner}.forward")
        where = f"{self.module}.{self.owner}"
        if found is None:
            return [f"{where}.forward does not exist"]
        takes = "residual" in _positional(found, method=True)
        returns = [node.value for node in ast.walk(found) if isinstance(node, ast.Return)]
        pairs = [isinstance(value, ast.Tuple) and len(value.elts) == 2 for value in returns]
        if takes != self.pair:
            return [f"{where} {'does not take' if self.pair else 'takes'} the residual stream as an argument"]
        if self.pair and not all(pairs):
            return [f"{where} does not return (hidden, residual)"]
        return []


def _positional(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> list[str]:
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    static = any(ast.unparse(each) == "staticmethod" for each in function.decorator_list)
    return names[1:] if method and not static else names
