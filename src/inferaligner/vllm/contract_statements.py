"""Kinds of statements about vLLM's source code, such as "this method accepts these arguments".

`violations` checks a statement against sources. `contract.py` holds the statements that the plugin relies on.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Protocol

from inferaligner.vllm.vllm_source import FUNCTIONS, Sources, assigned


class Statement(Protocol):
    """A statement about vLLM. In the classes below, `module` is one of vLLM's modules."""

    def violations(self, sources: Sources) -> list[str]:
        """How the sources contradict the statement, one sentence each; empty if it holds."""
        ...


@dataclass(frozen=True)
class Names:
    """`from module import names`, names separated by blanks."""

    module: str
    names: str

    def violations(self, sources: Sources) -> list[str]:
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

    def violations(self, sources: Sources) -> list[str]:
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
    """The plugin calls `function` with the arguments `given`, written as in the call, without `self`."""

    module: str
    function: str
    given: str

    def violations(self, sources: Sources) -> list[str]:
        function = sources.function(self.module, self.function)
        where = f"{self.module}.{self.function}"
        if function is None:
            return [f"{where} does not exist"]
        call = ast.parse(f"f({self.given})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments = function.args
        positional = _positional(function, method="." in self.function)
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
            f"{where} needs an argument {name} that is not given" for name in required if name not in keywords
        ]
        return problems


@dataclass(frozen=True)
class Override:
    """The plugin replaces `function`, which vLLM calls, by one with the parameters `ours` (without `self`).

    It must accept every argument that vLLM's own function accepts.
    """

    module: str
    function: str
    ours: str

    def violations(self, sources: Sources) -> list[str]:
        function = sources.function(self.module, self.function)
        where = f"{self.module}.{self.function}"
        if function is None:
            return [f"{where} does not exist"]
        made = ast.parse(f"def f({self.ours}): ...").body[0]
        assert isinstance(made, ast.FunctionDef)
        ours, theirs = _positional(made, method=False), _positional(function, method="." in self.function)
        problems = []
        for number, name in enumerate(ours):
            if number >= len(theirs):
                problems.append(f"{where} no longer has the argument {name}")
            elif theirs[number] != name:
                problems.append(f"{where} has {theirs[number]} where {name} is expected")
        # vLLM may pass the remaining arguments by position or by name.
        passes_all = made.args.vararg is not None and made.args.kwarg is not None
        rest = [] if passes_all else theirs[len(ours) :]
        if made.args.kwarg is None:
            rest = rest + [each.arg for each in function.args.kwonlyargs]
        problems += [f"{where} may be given {name}, which the plugin does not accept" for name in rest]
        return problems


@dataclass(frozen=True)
class Code:
    """The source of a class, a function or (without `name`) a module contains each of these texts.

    A text may list alternatives for different versions: `one || another`. The sources are compared as
    `ast.unparse` writes them, so spaces and line breaks make no difference.
    """

    module: str
    name: str
    texts: tuple[str, ...]

    def violations(self, sources: Sources) -> list[str]:
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
            f"{where} no longer contains `{text}`"
            for text in self.texts
            if not any(each.strip() in source for each in text.split("||"))
        ]


@dataclass(frozen=True)
class OneOf:
    """At least one of several statements holds, because versions differ."""

    statements: tuple[Statement, ...]

    def violations(self, sources: Sources) -> list[str]:
        found = [each.violations(sources) for each in self.statements]
        return [] if [] in found else [violation for several in found for violation in several]


@dataclass(frozen=True)
class Reviewed:
    """All fields or methods of a class have been reviewed; a new one must be reviewed before it is accepted.

    Attributes:
        kind: `methods` (public ones), or `fields`.
        names: the reviewed ones, of all supported versions.
        question: the question to answer about a new one.
    """

    module: str
    owner: str
    kind: str
    names: str
    question: str

    def violations(self, sources: Sources) -> list[str]:
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
    """Instances of this class accept one more attribute, which holds a message of the plugin."""

    module: str
    owner: str

    def violations(self, sources: Sources) -> list[str]:
        line = sources.lineage(self.module, self.owner)
        where = f"{self.module}.{self.owner}"
        if not line:
            return [f"{where} does not exist"]
        for node in line:
            texts = [*map(ast.unparse, node.decorator_list), *map(ast.unparse, node.bases)]
            texts += map(ast.unparse, node.keywords)
            slots = any("__slots__" in assigned(each) for each in node.body)
            if slots or any("slots=True" in text or "Struct" in text for text in texts):
                return [f"{where} accepts no additional attributes"]
            if any("frozen=True" in text for text in texts):
                return [f"{where} is frozen"]
        return []


@dataclass(frozen=True)
class DecoderLayer:
    """A decoder layer returns `(hidden, residual)` if `pair`, else the residual stream alone, and its
    `forward` takes `residual` as an argument in the first case only."""

    module: str
    owner: str
    pair: bool

    def violations(self, sources: Sources) -> list[str]:
        forward = sources.function(self.module, f"{self.owner}.forward")
        where = f"{self.module}.{self.owner}"
        if forward is None:
            return [f"{where}.forward does not exist"]
        takes = "residual" in _positional(forward, method=True)
        returns = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
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
