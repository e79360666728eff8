"""What the model's own generation configuration asks of every answer, by transformers' own processors.

The same as the model's `generate` does: scores are processed in float32, for each row with its prompt and its
answer so far. What `generate` does in another way than token by token (beams, contrastive search) is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from inferaligner.models.generation import end_tokens
from inferaligner.models.generation_settings import PROCESSORS, SAMPLING, WARPERS, check_heeded, in_force
from inferaligner.server.engine.sampling import Sampling

_CONFIGURATION: Any = GenerationConfig  # whose initialiser has no types


class RowProcessors:
    """The processors of one row: `before` the temperature, and `after` it."""

    def __init__(
        self, prompt: Sequence[int], before: LogitsProcessorList, after: LogitsProcessorList
    ) -> None:
        self._prompt = tuple(prompt)
        self._before = before
        self._after = after

    def before(self, logits: Tensor, said: Sequence[int]) -> Tensor:
        """Scores `[vocabulary]` of the next token after `said`, before the temperature."""
        return self._run(self._before, logits, said)

    def after(self, logits: Tensor, said: Sequence[int]) -> Tensor:
        """The same after the temperature."""
        return self._run(self._after, logits, said)

    def _run(self, processors: LogitsProcessorList, logits: Tensor, said: Sequence[int]) -> Tensor:
        if not processors:
            return logits
        ids = torch.tensor([[*self._prompt, *said]], device=logits.device)
        run: Any = processors  # its annotations name classes of tensors that nobody makes any more
        scores: Tensor = run(ids, logits[None].float().clone())
        return scores[0]


class GenerationDefaults:
    """Of one model, read when the server starts."""

    def __init__(self, model: Any) -> None:
        """Raises `InputError` for a setting that this server cannot heed, with its name."""
        self._model = model
        self._config: GenerationConfig = model.generation_config
        settings = self._config.to_dict()
        check_heeded(
            settings,
            SAMPLING | PROCESSORS | WARPERS,
            "this server",
            "Take the setting out of the file, if the answers shall be without it.",
        )
        asked = in_force(settings, SAMPLING)
        self.temperature = float(asked.get("temperature", 1.0))
        self.top_k = int(asked.get("top_k", 0))
        self.top_p = float(asked.get("top_p", 1.0))
        self.min_p = float(asked.get("min_p", 0.0))
        self.repetition_penalty = float(settings.get("repetition_penalty") or 1.0)
        self.max_new_tokens: int | None = settings.get("max_new_tokens")
        self._processed = bool(in_force(settings, PROCESSORS - {"repetition_penalty"}))
        self._warped = in_force(settings, WARPERS)

    def row(self, prompt: Sequence[int], longest: int, sampling: Sampling) -> RowProcessors | None:
        """The processors of a row that answers `prompt` with at most `longest` tokens; None for none."""
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
            # A temperature of 1 and no limits: this server draws with those of the request itself.
            config = _CONFIGURATION(do_sample=drawn, temperature=1.0, top_k=0, top_p=1.0, **self._warped)
            config.min_p = sampling.min_p or None
            after = self._made(config, prompt)
        return RowProcessors(prompt, before, after) if before or after else None

    def _made(self, config: GenerationConfig, prompt: Sequence[int]) -> LogitsProcessorList:
        device = self._model.device
        ends = end_tokens(self._model)
        # As `generate` prepares it; None where the model has no end.
        config._eos_token_tensor = torch.tensor(ends, device=device) if ends else None
        made: LogitsProcessorList = self._model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([list(prompt)], device=device),
            logits_processor=LogitsProcessorList(),
            device=device,
        )
        return made
