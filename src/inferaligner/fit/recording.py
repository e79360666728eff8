"""Activations of prompts, by the model itself or by the engine that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.errors import InputError
from inferaligner.fit.context import FitContext, FitModel
from inferaligner.method.activations import Activations, record_activations
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.encoding import has_pictures
from inferaligner.prompts.images import Prompt


def record_prompts(
    context: FitContext, model: FitModel, prompts: Sequence[Prompt], stage: str, **places: Any
) -> Activations:
    """Renders prompts in the model's chat template and records them.

    Args:
        stage: the name of the stage in the progress display.
        places: `layers` and `offsets`, as `record_activations` takes them; all layers, last token by default.

    Raises:
        InputError: prompts with pictures for an engine that serves the model.
    """
    limit = context_length(model.model.config)
    ids = encode_chats(model.tokenizer, prompts, system=context.options.system, max_length=limit)
    return record_tokens(context, model, ids, stage, **places)


def record_tokens(
    context: FitContext, model: FitModel, ids: Sequence[Sequence[int]], stage: str, **places: Any
) -> Activations:
    """The same for prompts that are token ids already."""
    with context.progress.stage(stage, len(ids)) as advance:
        if model.recorder is not None:
            if any(map(has_pictures, ids)):
                raise InputError(
                    "An engine that serves the target cannot record prompts with pictures; let transformers "
                    "record them, or fit without pictures."
                )
            return model.recorder(ids, advance=advance, **places)
        # Half of all tokens are the template's beginning or a wrapper's, which many prompts share.
        return record_activations(model.model, ids, share_prefixes=True, advance=advance, **places)
