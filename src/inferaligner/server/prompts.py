"""From messages or raw text to the tokens of a prompt, with the position where the gate reads.

The gate was fitted at the place where the chat template ends a prompt. With a begun answer after that place,
it reads there, and a second gate, fitted on begun answers, reads at the prompt's end; the prompt is open if
either gate is. Raw text has no such place, and is refused unless the operator allows it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InferAlignerError
from inferaligner.prompts.chat import TEMPLATE_ERRORS, context_length, for_template
from inferaligner.prompts.encoding import (
    Reader,
    check_placeholders,
    encode_seen,
    image_tokens,
    sees_images,
    template_of,
    tokenizer_of,
)
from inferaligner.prompts.images import Picture
from inferaligner.prompts.template_ends import TemplateEnds, end_objection
from inferaligner.server.engine.jobs import EnginePrompt
from inferaligner.server.errors import ApiError


class PromptEncoder:
    """Renders and encodes prompts, and checks them. Safe to use from several threads."""

    def __init__(self, reader: Reader, artifact: AlignerArtifact, model: Any, *, any_end: bool) -> None:
        """Prepares the tokenizer.

        Args:
            reader: tokenizer or processor of the model.
            artifact: the aligner's.
            model: the target model.
            any_end: whether raw text is allowed, and begun answers where the aligner has no gate for them.
        """
        self.limit = context_length(model.config)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        # A copy: a fast tokenizer must not encode here while the engine decodes.
        self.reader = copy.deepcopy(reader)
        self.tokenizer = tokenizer_of(self.reader)
        self.sees = sees_images(reader)
        self._image_tokens = frozenset(image_tokens(model.config))
        self._lock = threading.Lock()
        self._any_end = any_end
        self._system = artifact.provenance.system_prompt
        self._shortest = max(artifact.gate.offsets) + 1
        self._judges_begun = artifact.end_gate is not None
        try:
            self._ends = TemplateEnds.of(self.reader)
        except InferAlignerError:
            self._ends = TemplateEnds(())

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Picture] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> EnginePrompt:
        """Renders and encodes a conversation.

        Args:
            messages: the turns.
            pictures: for the placeholders in the messages, in their order.
            add_generation_prompt: whether the template opens the assistant's turn.
            continue_final_message: whether the last message is a begun answer to continue.

        Raises:
            ApiError: the template cannot render the messages, the model does not read pictures, or the prompt
                is not allowed.
        """
        if pictures and not self.sees:
            raise ApiError(
                "This server's model reads text only; leave the images out.",
                param="messages",
            )
        turns = [dict(message) for message in messages]
        if self._system is not None and all(turn["role"] != "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": self._system})
        with self._lock:
            try:
                rendered = self.tokenizer.apply_chat_template(
                    for_template(self.reader, turns),
                    chat_template=template_of(self.reader),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt and not continue_final_message,
                    continue_final_message=continue_final_message,
                )
            except TEMPLATE_ERRORS as error:
                raise ApiError(
                    f"The model's chat template cannot render these messages: {error}.", param="messages"
                ) from None
            try:
                check_placeholders(self.reader, [str(rendered)], [len(pictures)])
            except InferAlignerError as error:
                raise ApiError(str(error), param="messages") from None
            if pictures:
                return self._seen(str(rendered), pictures)
            ids = self._encode(str(rendered), special=False)
        return self.check(ids, param="messages")

    def _seen(self, rendered: str, pictures: Sequence[Picture]) -> EnginePrompt:
        try:
            (seen,) = encode_seen(self.reader, [rendered], [pictures])
        except InferAlignerError as error:
            raise ApiError(str(error), param="messages") from None
        return replace(self.check(seen, param="messages", pictures=True), seen=seen)

    def raw(self, prompt: str | Sequence[int]) -> EnginePrompt:
        """Encodes raw text, or takes its token ids.

        Raises:
            ApiError: a token does not exist, or the prompt is not allowed.
        """
        if isinstance(prompt, str):
            with self._lock:
                ids = self._encode(prompt, special=True)
            return self.check(ids, param="prompt")
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise ApiError(
                f"Token {wrong} does not exist; the model has tokens 0 to {self.vocabulary - 1}.",
                param="prompt",
            )
        return self.check(list(prompt), param="prompt")

    def check(self, ids: Sequence[int], *, param: str, pictures: bool = False) -> EnginePrompt:
        """Checks token ids and finds the position where the gate reads.

        Raises:
            ApiError: the prompt is too short for the gate, too long for the model, or has an end that is not
                allowed.
        """
        if not pictures and not self._image_tokens.isdisjoint(ids):
            raise ApiError("The prompt has a place for an image, and there is no image for it.", param=param)
        if len(ids) < self._shortest:
            raise ApiError(
                f"The prompt has {len(ids)} tokens, but the guidance gate reads the last {self._shortest}. "
                "Use the chat endpoint, or a longer prompt.",
                param=param,
            )
        if self.limit is not None and len(ids) >= self.limit:
            raise ApiError(
                f"The prompt has {len(ids)} tokens, but the model reads at most {self.limit}, its answer "
                "included. Shorten it; prompts are never cut.",
                param=param,
                code="context_length_exceeded",
            )
        end = self._ends.end_of(ids)
        if not self._any_end and (objection := end_objection(end, judges_begun=self._judges_begun)):
            raise ApiError(objection, param=param)
        return EnginePrompt(tuple(ids), end.turn_end)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except (UnicodeError, TypeError):
            raise ApiError("The text is not valid Unicode (half of a surrogate pair).") from None
