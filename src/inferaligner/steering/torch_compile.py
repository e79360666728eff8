"""Makes `torch.compile` respect hooks.

Compiled code is kept per function, not per model, and is not checked for hooks that are added or removed
later. Code that was compiled without hooks would run unprotected; code that was compiled with them would keep
steering.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def forget_compiled(model: Any) -> None:
    """Discards compiled code when hooks are added or removed, so that the next call compiles again.

    This holds for the whole process: other compiled models pay for one compilation too.
    """
    if getattr(model, "_compiled_call", None) is not None:
        del model._compiled_call  # the decoding step that `generate` compiles for fixed-size caches
    dynamo = sys.modules.get("torch._dynamo")  # if absent, nothing was compiled, and importing it is slow
    if dynamo is not None:
        dynamo.reset()


def never_compiled(function: Function) -> Function:
    """Returns `function` such that it and its callees run as plain Python, inside of compiled code too."""
    disabled: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled
