"""A local classifier as the judge, through transformers.

A *sequence* classifier has its labels in its configuration and reads prompt and answer as a pair of texts. A
*causal* classifier reads both in a template and writes its label as the first word of its reply. HarmBench's
writes yes or no (give its template with `template`); Llama Guard writes safe or unsafe and has its template
as its chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from inferaligner.errors import InputError, ModelLoadError
from inferaligner.judges import Judge, Judgement, JudgeOptions, Pair

NAME = "classifier"
OPTION = "a model: --classifier MODEL, or --judge classifier=MODEL"

_PROMPT_FIELDS, _ANSWER_FIELDS = ("{prompt}", "{behavior}"), ("{answer}", "{generation}")
_FIELD = re.compile("|".join(map(re.escape, (*_PROMPT_FIELDS, *_ANSWER_FIELDS))))


class ClassifierJudge(Judge):
    """One classifier with its labels."""

    kinds = ("harmful", "jailbreak")

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
        """Loads the classifier.

        Args:
            spec: a folder or a hub id.
            template: the text for a causal classifier, with `{prompt}` and `{answer}`; without one its chat
                template is used.
            labels: the labels of a causal classifier.
            positive: the labels whose detection is measured; by default the first label.

        Raises:
            ModelLoadError: there is no such model, or it is not one that transformers loads.
            InputError: labels are missing, unknown or begin with the same token.
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
        except Exception as error:  # of transformers, or of the HTTP library that it uses
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelLoadError(f"The classifier {spec} cannot be loaded ({reason[:200]}).") from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._sequence = sequence
        if sequence:
            self._labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        else:
            self._labels = list(labels)
            self._tokens = self._first_tokens()
        self.positive = tuple(positive) or tuple(self._labels[:1])
        unknown = set(self.positive) - set(self._labels)
        if unknown:
            raise InputError(f"{spec} has the labels {self._labels}, not {sorted(unknown)}.")

    def judge(self, prompt: str, answer: str) -> Judgement:
        """Judges one answer; the label's probability is the reason."""
        return self.judge_all([(prompt, answer)])[0]

    def judge_each(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Judgement]]:
        """Judges the answers in order, a batch in one pass."""
        import torch

        for start in range(0, len(pairs), self._batch_size):
            batch = pairs[start : start + self._batch_size]
            with torch.no_grad():
                logits = self._logits(batch)
            for index, probabilities in enumerate(logits.float().softmax(-1), start=start):
                best = int(probabilities.argmax())
                yield index, Judgement(self._labels[best], f"probability {float(probabilities[best]):.3f}")

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
        return _FIELD.sub(lambda match: prompt if match[0] in _PROMPT_FIELDS else answer, self._template)

    def _first_tokens(self) -> list[int]:
        tokens = [self._tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in self._labels]
        if len(tokens) < 2 or len(set(tokens)) < len(tokens):
            raise InputError(
                "A causal classifier needs two or more labels that begin with different tokens, such as "
                "--label yes --label no."
            )
        return tokens


def make(option: str, options: JudgeOptions) -> Judge:
    """Makes the judge of the classifier `option`, a folder or a hub id. Raises as `ClassifierJudge`."""
    return ClassifierJudge(option, template=options.template, labels=options.labels)
