"""Keeping hooks and `torch.compile` from passing each other by.

Compiled code is kept per function, not per model, and is not checked for hooks that came or went later.
Code that was compiled without hooks would serve unprotected, code with them would go on steering.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def forget_compiled(model: Any) -> None:
    """Called when hooks come or go: whatever was compiled is compiled anew on its next call.

    This holds for the whole process; other compiled models pay one compilation.
    """
    if getattr(model, "_compiled_call", None) is not None:
        del model._compiled_call  # the decoding step that `generate` compiles for fixed-size caches
    dynamo = sys.modules.get("torch._dynamo")  # not there: nothing was compiled, and importing it is slow
    if dynamo is not None:
        dynamo.reset()


def never_compiled(function: Function) -> Function:
    """`function` and all that it calls run as plain Python, also inside of compiled code."""
    disabled: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled
