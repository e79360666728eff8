"""Local classifiers as judges, through transformers.

A *sequence* classifier has its labels in its configuration and reads prompt and answer as a pair of texts. A
*causal* one is asked with a template and says its label as the first word: HarmBench's says yes or no to a
template of its own (give it with `template`), Llama Guard says safe or unsafe to its chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inferaligner.errors import InputError, ModelLoadError
from inferaligner.judges.pair_judge import Label, Pair

_NAMES = {
    "{prompt}": "{prompt}",
    "{behavior}": "{prompt}",
    "{answer}": "{answer}",
    "{generation}": "{answer}",
}


class ClassifierJudge:
    """One classifier with its labels."""

    agreement = ""

    def __init__(
        self,
        spec: str,
        *,
        template: str | None = None,
        labels: Sequence[str] = (),
        positive: Sequence[str] = (),
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        """`labels` are the words of a causal classifier, `positive` those for which it is asked.

        Raises:
            ModelLoadError: nothing usable there.
            InputError: a causal classifier without labels, or labels that it cannot tell apart.
        """
        import transformers

        self.name = f"classifier {spec}"
        self._template = template
        self._batch_size = batch_size
        try:
            config = transformers.AutoConfig.from_pretrained(spec)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(spec, padding_side="left")
            sequence = any("SequenceClassification" in name for name in config.architectures or ())
            auto: Any = (
                transformers.AutoModelForSequenceClassification
                if sequence
                else transformers.AutoModelForCausalLM
            )
            self._model: Any = auto.from_pretrained(spec).eval().to(device)
        except Exception as error:  # its own errors, and whatever the HTTP library of the day raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelLoadError(f"The classifier {spec} cannot be loaded ({reason[:200]}).") from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._sequence = sequence
        if sequence:
            self._labels = [
                str(self._model.config.id2label[at]) for at in range(self._model.config.num_labels)
            ]
        else:
            self._labels = list(labels)
            self._tokens = self._first_tokens()
        self.positive = tuple(positive) or tuple(self._labels[:1])
        unknown = set(self.positive) - set(self._labels)
        if unknown:
            raise InputError(f"{spec} has the labels {self._labels}, not {sorted(unknown)}.")

    def judge_pairs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Label]]:
        """Labels in order, batch by batch; the probability of the label is its reason."""
        import torch

        for start in range(0, len(pairs), self._batch_size):
            batch = pairs[start : start + self._batch_size]
            with torch.no_grad():
                logits = self._logits(batch)
            shares = logits.float().softmax(-1)
            for at, share in enumerate(shares):
                best = int(share.argmax())
                yield start + at, Label(self._labels[best], reason=f"probability {float(share[best]):.3f}")

    def _logits(self, batch: Sequence[Pair]) -> Any:
        """`[rows, labels]`."""
        if self._sequence:
            prompts, answers = [p for p, _ in batch], [a for _, a in batch]
            inputs = self._tokenizer(prompts, answers, padding=True, truncation=True, return_tensors="pt")
            return self._model(**inputs.to(self._model.device)).logits
        texts = [self._question(prompt, answer) for prompt, answer in batch]
        inputs = self._tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        return self._model(**inputs.to(self._model.device)).logits[:, -1, self._tokens]

    def _question(self, prompt: str, answer: str) -> str:
        if self._template is None:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        import re

        fields = {"{prompt}": prompt, "{answer}": answer}
        pattern = "|".join(re.escape(name) for name in _NAMES)
        return re.sub(pattern, lambda match: fields[_NAMES[match[0]]], self._template)

    def _first_tokens(self) -> list[int]:
        tokens = [self._tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in self._labels]
        if len(tokens) < 2 or len(set(tokens)) < len(tokens):
            raise InputError(
                "A causal classifier needs two or more labels that begin with different tokens, such as "
                "--label yes --label no."
            )
        return tokens
