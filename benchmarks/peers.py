"""Other libraries' own extraction, called as their users would call it; nothing of theirs is copied here.

A peer is found where Python finds it, or in a folder given with `--peers`. Such a folder comes last on the
import path, so that every library, ours and theirs, runs on the same torch and transformers. What a peer
prints is swallowed: a terminal is slower than a small model.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Pairs = Sequence[tuple[str, str]]
Extract = Callable[[Any, Any, Pairs, int], Tensor]
"""`(model, tokenizer, pairs of rendered prompts, batch size)` to activations `[prompts, layers, width]`;
the prompts are first, second, first, second, ..."""


@dataclass(frozen=True)
class Peer:
    """A library that is here, and its extraction.

    `own_batch` is the batch size of its default; `normed_last` tells that its last layer is the one after
    the model's final norm, so it is no residual stream and is left out of the comparison of values.
    """

    name: str
    version: str
    own_batch: int
    normed_last: bool
    extract: Extract


def find_peers(folders: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that are here, and for each of the others why not."""
    sys.path.extend(str(Path(folder).resolve()) for folder in folders)
    found: list[Peer] = []
    missing: dict[str, str] = {}
    for name, load in _LOADERS.items():
        try:
            with quiet():
                found.append(load())
        except ModuleNotFoundError as error:
            missing[name] = f"not installed ({error})"
        except Exception as error:  # a peer that is broken here must not stop the others
            missing[name] = f"cannot be imported: {type(error).__name__}: {error}"
    return found, missing


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses output, and sets an empty working folder for libraries that write log files into it."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)


def _steering_vectors() -> Peer:
    module = importlib.import_module("steering_vectors.train_steering_vector")

    def extract(model: Any, tokenizer: Any, pairs: Pairs, batch: int) -> Tensor:
        with quiet():
            sides = module.extract_activations(model, tokenizer, pairs, batch_size=batch)
        first, second = (
            torch.stack([torch.cat(parts) for _, parts in sorted(side.items())], 1) for side in sides
        )
        return torch.stack([first, second], dim=1).flatten(0, 1)

    return Peer("steering-vectors", _version("steering-vectors", module), 1, False, extract)


def _repeng() -> Peer:
    if not hasattr(np, "float_"):
        # Named in a type annotation of 0.4.0; numpy 2 has dropped the alias.
        np.float_ = np.float64  # type: ignore[attr-defined]
    module = importlib.import_module("repeng.extract")
    return Peer("repeng", _version("repeng", module), 32, True, _hidden_states_of(module))


def _activation_steering() -> Peer:
    module = importlib.import_module("activation_steering.steering_vector")
    version = _version("activation-steering", module)
    return Peer("activation-steering", version, 32, True, _hidden_states_of(module))


def _hidden_states_of(module: Any) -> Extract:
    """Both descend from one function, `batched_get_hiddens`, which their `train` calls."""

    def extract(model: Any, tokenizer: Any, pairs: Pairs, batch: int) -> Tensor:
        prompts = [prompt for pair in pairs for prompt in pair]
        layers = list(range(model.config.num_hidden_layers))
        with quiet():
            hidden = module.batched_get_hiddens(model, tokenizer, prompts, layers, batch)
        return torch.stack([torch.from_numpy(hidden[layer]) for layer in layers], dim=1)

    return extract


def _version(distribution: str, module: Any) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"


_LOADERS: dict[str, Callable[[], Peer]] = {
    "steering-vectors": _steering_vectors,
    "repeng": _repeng,
    "activation-steering": _activation_steering,
}
