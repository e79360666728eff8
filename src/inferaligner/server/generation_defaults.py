"""Applies the model's generation configuration to every answer, with transformers' own logits processors.

The result is that of the model's `generate`: scores are processed in float32, for each row with its prompt
and its answer so far. Settings of `generate` that do not work token by token (beams, contrastive search) are
refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from inferaligner.models.generation import end_tokens
from inferaligner.models.generation_settings import (
    PROCESSORS,
    SAMPLING,
    WARPERS,
    in_force,
    refuse_ignored_settings,
)
from inferaligner.server.engine.sampling import Sampling

_CONFIGURATION: Any = GenerationConfig  # whose initialiser has no types


class RowProcessors:
    """The logits processors of one row, before and after the temperature."""

    def __init__(
        self, prompt: Sequence[int], before: LogitsProcessorList, after: LogitsProcessorList
    ) -> None:
        self._prompt = tuple(prompt)
        self._before = before
        self._after = after

    def before(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Scores `[vocabulary]` of the next token after `generated`, before the temperature."""
        return self._run(self._before, logits, generated)

    def after(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Scores `[vocabulary]` of the next token after `generated`, after the temperature."""
        return self._run(self._after, logits, generated)

    def _run(self, processors: LogitsProcessorList, logits: Tensor, generated: Sequence[int]) -> Tensor:
        if not processors:
            return logits
        ids = torch.tensor([[*self._prompt, *generated]], device=logits.device)
        run: Any = processors  # its annotations name legacy tensor classes
        scores: Tensor = run(ids, logits[None].float().clone())
        return scores[0]


class GenerationDefaults:
    """The generation configuration of one model, read when the server starts."""

    def __init__(self, model: Any) -> None:
        """Reads the model's generation configuration.

        Raises:
            InputError: it has a setting that this server does not support.
        """
        self._model = model
        self._config: GenerationConfig = model.generation_config
        settings = self._config.to_dict()
        refuse_ignored_settings(
            settings,
            SAMPLING | PROCESSORS | WARPERS,
            "this server",
            "Remove the setting from the file if the answers are to be generated without it.",
        )
        active = in_force(settings, SAMPLING)
        self.temperature = float(active.get("temperature", 1.0))
        self.top_k = int(active.get("top_k", 0))
        self.top_p = float(active.get("top_p", 1.0))
        self.min_p = float(active.get("min_p", 0.0))
        self.repetition_penalty = float(settings.get("repetition_penalty") or 1.0)
        self.max_new_tokens: int | None = settings.get("max_new_tokens")
        self._processed = bool(in_force(settings, PROCESSORS - {"repetition_penalty"}))
        self._warped = in_force(settings, WARPERS)

    def row(self, prompt: Sequence[int], longest: int, sampling: Sampling) -> RowProcessors | None:
        """The processors of one row; None where it needs none.

        Args:
            prompt: token ids of the prompt.
            longest: highest number of tokens of the answer.
            sampling: settings of the request.
        """
        before, after = LogitsProcessorList(), LogitsProcessorList()
        if self._processed or sampling.repetition_penalty != 1:
            config: Any = copy.deepcopy(self._config)
            config.update(
                do_sample=False,
                watermarking_config=None,
                renormalize_logits=False,
                repetition_penalty=sampling.repetition_penalty,
                max_length=len(prompt) + longest,
            )
            before = self._made(config, prompt)
        drawn = sampling.temperature > 0
        if self._warped or (drawn and sampling.min_p):
            # Temperature 1 and no top_k or top_p: `sampling.draw` applies those of the request.
            config = _CONFIGURATION(do_sample=drawn, temperature=1.0, top_k=0, top_p=1.0, **self._warped)
            config.min_p = sampling.min_p or None
            after = self._made(config, prompt)
        return RowProcessors(prompt, before, after) if before or after else None

    def _made(self, config: GenerationConfig, prompt: Sequence[int]) -> LogitsProcessorList:
        device = self._model.device
        ends = end_tokens(self._model)
        # As `generate` prepares it; None where the model has no end token.
        config._eos_token_tensor = torch.tensor(ends, device=device) if ends else None
        made: LogitsProcessorList = self._model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([list(prompt)], device=device),
            logits_processor=LogitsProcessorList(),
            device=device,
        )
        return made
