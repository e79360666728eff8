"""Cross-entropy of given answers under a steered model: one forward pass per candidate.

It measures how likely the steered target makes the *aligned* model's answers. Two parts of the pass are the
same for every candidate, and are run once: the layers below the first steered one, and, where steering begins
at the last prompt token, the whole prompt before it, whose keys and values are kept.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from inferaligner.models.anatomy import dissect, input_device, residual, with_residual
from inferaligner.models.generation import answer_end_token
from inferaligner.models.kv_cache import cache_argument, cache_in
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.encoding import Reader, tokenizer_of

# Nats per answer token by which the pass on a kept prompt may differ from the pass over everything. Rounding
# in bfloat16 makes some hundredths of it; a cache that works differently than assumed makes whole nats.
_ROUNDING = 0.05


@dataclass(frozen=True)
class _Pass:
    """One batch for the model: its inputs, which tokens are steered, and which predict an answer token."""

    inputs: dict[str, Any]
    steered: Tensor  # [rows, tokens] bool
    predicts: Tensor  # [rows, tokens] bool
    labels: Tensor  # [rows, tokens], the token after each
    prompts: Any = None  # the KV cache of the tokens before

    def take(self, rows: Sequence[int]) -> _Pass:
        """Some rows of the batch; for passes without a cache."""
        inputs = {name: v[list(rows)] if isinstance(v, Tensor) else v for name, v in self.inputs.items()}
        return _Pass(inputs, self.steered[list(rows)], self.predicts[list(rows)], self.labels[list(rows)])


class TeacherForcing:
    """Prompts with answers, ready to be scored under many steering settings of one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Reader,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        system: str | None = None,
        whole_prompt: bool = False,
    ) -> None:
        """Encodes prompts and answers, and runs the bare model on them once.

        Args:
            model, tokenizer: the target.
            prompts, answers: texts, one answer per prompt.
            ended: whether each answer is whole. The token that ends an answer follows a whole one, and is
                scored like its other tokens. None: no answer is whole.
            system: the system prompt.
            whole_prompt: steer every token, and not only those from the last prompt token on.
        """
        self._model: Any = model
        self._layers = dissect(model).layers
        starts = encode_chats(tokenizer, prompts, system=system)
        ends = [
            tokenizer_of(tokenizer)(answer, add_special_tokens=False)["input_ids"]
            for _, answer in zip(starts, answers, strict=True)
        ]
        end = answer_end_token(model, tokenizer) if ended is not None and any(ended) else None
        if ended is not None and end is not None:
            ends = [[*ids, end] if whole else ids for ids, whole in zip(ends, ended, strict=True)]
        device = input_device(model)
        self._pass = whole = _whole(starts, ends, device, whole_prompt)
        self._bare: list[Any] = []
        self.keeps_prompts = False
        if not whole_prompt and min(map(len, starts)) > 1:
            self._try_kept_prompts(starts, ends, device, whole)
        self._record()

    @property
    def tokens(self) -> int:
        """Answer tokens that are scored."""
        return int(self._pass.predicts.sum())

    def cross_entropy(self, additions: Mapping[int, Tensor]) -> float:
        """Mean over answer tokens, in nats, with α·θ_l `[width]` added at the given layers (may be none)."""
        with torch.no_grad():
            return float(self.loss(additions))

    def loss(self, additions: Mapping[int, Tensor]) -> Tensor:
        """The cross-entropy as a tensor that carries gradients to the additions."""
        first = min(additions, default=len(self._layers) - 1)
        with self._frozen(), self._from_layer(first), self._adding(additions):
            return self._losses(self._pass).mean()

    def spread(self, layer: int) -> float:
        """Root mean square of the bare stream's components after `layer`, where answers are predicted."""
        stream = residual(self._bare[layer]).float()
        return float(stream[self._pass.predicts.to(stream.device)].square().mean().sqrt())

    def _try_kept_prompts(
        self, starts: list[list[int]], ends: list[list[int]], device: torch.device, whole: _Pass
    ) -> None:
        """Keeps the prompts' cache if the model supports that and gives the same result with it."""
        kept = _after_kept_prompts(self._model, starts, ends, device)
        if kept is None:
            return
        # The shortest and the longest prompt: one is mostly padding, the other has none.
        order = sorted(range(len(starts)), key=lambda row: len(starts[row]))
        some = sorted({order[0], order[-1]})
        with torch.no_grad():
            expected = self._losses(whole.take(some)).mean()
            rows = kept.predicts.nonzero()[:, 0]
            with_cache = self._losses(kept)[torch.isin(rows, torch.tensor(some)).to(device)].mean()
        if abs(float(expected) - float(with_cache)) < _ROUNDING:
            self._pass, self.keeps_prompts = kept, True

    def _losses(self, batch: _Pass) -> Tensor:
        """`[answer tokens]` float32."""
        inputs = dict(batch.inputs)
        if batch.prompts is not None:
            inputs[cache_argument(self._model)] = _untouched(batch.prompts)
        logits = self._model(**inputs).logits
        chosen = logits[batch.predicts.to(logits.device)].float()
        labels = batch.labels[batch.predicts].to(logits.device)
        return nn.functional.cross_entropy(chosen, labels, reduction="none")

    @torch.no_grad()
    def _record(self) -> None:
        handles = [
            layer.register_forward_hook(lambda module, inputs, output: self._bare.append(output))
            for layer in self._layers
        ]
        try:
            self._losses(self._pass)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """No gradient to the weights: it would cost more than everything else."""
        if not torch.is_grad_enabled():
            yield
            return
        trained = [p for p in self._model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextmanager
    def _from_layer(self, first: int) -> Iterator[None]:
        """Layers below `first` return their output of the bare pass, without computing it again."""
        skipped = list(self._layers)[:first]
        # accelerate puts a forward of its own on the instance; it must come back as it was.
        before = [layer.__dict__.get("forward") for layer in skipped]
        for layer, output in zip(skipped, self._bare, strict=False):
            layer.forward = _constant(output)
        try:
            yield
        finally:
            for layer, own in zip(skipped, before, strict=True):
                del layer.forward
                if own is not None:
                    layer.forward = own

    @contextmanager
    def _adding(self, additions: Mapping[int, Tensor]) -> Iterator[None]:
        handles = [self._layers[at].register_forward_hook(self._hook(add)) for at, add in additions.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, addition: Tensor) -> Any:
        def add(module: nn.Module, inputs: object, output: object) -> object:
            stream = residual(output)
            mask = self._pass.steered.to(stream.device)[:, :, None]
            return with_residual(output, torch.where(mask, stream + addition.to(stream), stream))

        return add


def _whole(
    starts: Sequence[list[int]], ends: Sequence[list[int]], device: torch.device, whole_prompt: bool
) -> _Pass:
    """Prompts and answers in one, padded on the right."""
    ids, mask = _padded([start + end for start, end in zip(starts, ends, strict=True)])
    lengths = mask.sum(1)
    columns = torch.arange(ids.shape[1])
    last = torch.tensor([len(start) for start in starts]) - 1
    steered = torch.ones_like(ids, dtype=torch.bool) if whole_prompt else columns >= last[:, None]
    # Token t is predicted at t - 1: answer tokens are last + 1 … length - 1.
    predicts = (columns >= last[:, None]) & (columns < lengths[:, None] - 1)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    return _Pass(inputs, steered, predicts, ids.roll(-1, dims=1))


@torch.no_grad()
def _after_kept_prompts(
    model: Any, starts: Sequence[list[int]], ends: Sequence[list[int]], device: torch.device
) -> _Pass | None:
    """From the last prompt token on, with the rest of each prompt in a cache; None where that cannot be."""
    before, padding = _padded([start[:-1] for start in starts], left=True)
    ids, mask = _padded([start[-1:] + end for start, end in zip(starts, ends, strict=True)])
    placed = "position_ids" in inspect.signature(model.forward).parameters
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {"input_ids": before.to(device), "attention_mask": padding.to(device)}
    if placed:
        inputs["position_ids"] = positions.to(device)
    try:
        cache = DynamicCache(config=model.config)
        made = cache_in(model(**inputs, **{cache_argument(model): cache}, use_cache=True))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None  # a model with a cache of its own kind, or with none
    plain = made is cache and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    if not plain or not cache.layers or cache.get_seq_length() != before.shape[1]:
        return None
    inputs = {
        "input_ids": ids.to(device),
        "attention_mask": torch.cat([padding, mask], dim=1).to(device),
        "use_cache": True,
    }
    if placed:
        inputs["position_ids"] = (padding.sum(1, keepdim=True) + torch.arange(ids.shape[1])).to(device)
    predicts = torch.arange(ids.shape[1]) < mask.sum(1, keepdim=True) - 1
    return _Pass(inputs, torch.ones_like(predicts), predicts, ids.roll(-1, dims=1), cache)


def _padded(rows: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask `[rows, tokens]`."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return ids, mask


def _untouched(cache: Any) -> Any:
    """A shallow copy of a cache. It grows without the original, because its layers replace their tensors."""
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh


def _constant(output: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return output

    return forward
