"""Kinds of statements about vLLM's source code, such as "this method can be called like this".

The `misses` of a statement list what is not so in the sources at hand. `contract.py` holds the statements
that the plugin relies on.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Protocol

from inferaligner.vllm.sources import FUNCTIONS, Sources, assigned


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
                if self.kind == "methods" and isinstance(each, FUNCTIONS):
                    there.append(each.name)
                elif self.kind == "fields" and isinstance(each, ast.AnnAssign):
                    there += assigned(each)
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
            slots = any("__slots__" in assigned(each) for each in node.body)
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
