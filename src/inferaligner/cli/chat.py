"""`inferaligner chat TARGET --aligner DIR`: a conversation in the terminal, every turn gated afresh."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from inferaligner.cli.answer_panels import gate_mark
from inferaligner.cli.image_options import ImageFiles
from inferaligner.cli.model_options import AlignerPlace, ModelOptions, Target, load_aligner
from inferaligner.cli.open_options import OpenGateOptions
from inferaligner.cli.terminal import check_text, fail, note, results
from inferaligner.errors import InferAlignerError, InputError, PromptTooLongError
from inferaligner.prompts.encoding import sees_images
from inferaligner.prompts.images import ImagePrompt, Picture, picture_from

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.models.loading import LoadedModel
    from inferaligner.steering.gate_policy import GatePolicy
    from inferaligner.steering.guard import Guard

_HELP = (
    "/image FILE: show it with the next turn   /compare: answer the last turn without the aligner   "
    "/reset: start over   /quit: leave"
)


def chat(
    *,
    target: Target,
    aligner: AlignerPlace,
    image: ImageFiles = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    gate: OpenGateOptions,
    model: ModelOptions,
) -> None:
    """Chat with TARGET with the gate in place. Commands in the chat: /image, /compare, /reset, /quit."""
    shown = [picture_from(file) for file in image or []]
    fitted = load_aligner(aligner)
    policy = gate.policy(fitted.artifact)
    loaded = model.load_for(fitted, target)
    note(f"{_HELP}   /help: this")
    conversation = Conversation(fitted, loaded, max_new_tokens, policy)
    for picture in shown:
        conversation.show(picture)
    while (line := _ask()) is not None:
        try:
            if line.startswith("/"):
                if not _command(line, conversation):
                    return
            elif line:
                check_text(line, "The line")
                conversation.say(line)
        except InferAlignerError as error:
            fail(str(error))
        except KeyboardInterrupt:
            note("\nStopped; that turn is forgotten.")


class Conversation:
    """The turns so far. An answer is kept only when it is finished."""

    def __init__(
        self,
        fitted: Aligner,
        loaded: LoadedModel,
        max_new_tokens: int,
        policy: GatePolicy | None = None,
    ) -> None:
        """
        Args:
            fitted: the aligner.
            loaded: the model that it was fitted on.
            max_new_tokens: longest answer, in tokens.
            policy: what happens to turns that open the gate; None steers them.
        """
        from inferaligner.steering.gate_policy import GatePolicy

        self._policy = policy or GatePolicy()
        self._fitted = fitted
        self._loaded = loaded
        self._max_new_tokens = max_new_tokens
        self._turns: list[dict[str, Any]] = []
        self._pictures: list[Picture] = []  # of all turns, the next one included
        self._waiting = 0  # pictures of the next turn
        self.reset()

    def reset(self) -> None:
        """Removes every turn except the system prompt that the aligner was fitted with."""
        system = self._fitted.artifact.provenance.system_prompt
        self._turns = [] if system is None else [{"role": "system", "content": system}]
        self._pictures, self._waiting = [], 0

    def show(self, picture: Picture) -> None:
        """Puts a picture before the user's next turn. Raises `InputError` for a model that cannot see."""
        if not sees_images(self._loaded.reader):
            raise InputError(f"{self._loaded.spec} reads text alone, so it cannot be shown an image.")
        self._pictures.append(picture)
        self._waiting += 1

    def say(self, text: str) -> None:
        """Answers one turn of the user and prints the answer to stdout while it is generated."""
        from inferaligner.prompts.chat import turn_content

        shown = tuple(self._pictures[len(self._pictures) - self._waiting :])
        prompt = ImagePrompt(text, shown) if shown else text
        turns = [*self._turns, {"role": "user", "content": turn_content(prompt)}]
        loaded = self._loaded
        with self._fitted.apply(
            loaded.model,
            loaded.reader,
            on_open=self._policy.on_open,
            refusal=self._policy.refusal,
            monitor=self._policy.monitor,
        ) as guard:
            answer = self._answer(turns, guard)
            for decision in guard.decisions:
                if decision.answer_token is not None:
                    _mark(f"the monitor steered this answer from token {decision.answer_token} on")
        self._turns, self._waiting = [*turns, {"role": "assistant", "content": answer}], 0

    def compare(self) -> None:
        """Prints the bare model's answer to the last turn; the conversation keeps the first answer."""
        if not self._turns or self._turns[-1]["role"] != "assistant":
            raise InputError("There is no turn to compare yet; write one first.")
        self._answer(self._turns[:-1], None)

    def _answer(self, turns: list[dict[str, Any]], guard: Guard | None) -> str:
        import torch

        from inferaligner.models.anatomy import input_device
        from inferaligner.prompts.chat import context_length, inputs_of_turns, pictures_in

        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        inputs = inputs_of_turns(self._loaded.reader, turns, self._pictures[: pictures_in(turns)])
        ids = inputs["input_ids"]
        limit = context_length(model.config)
        room = self._max_new_tokens if limit is None else min(self._max_new_tokens, limit - ids.shape[1])
        if room < 1:
            raise PromptTooLongError(
                f"The conversation has {ids.shape[1]} tokens, and the model reads at most {limit}. "
                "Start over with /reset."
            )
        device = input_device(model)
        with torch.no_grad():
            output = model.generate(
                **{name: value.to(device) for name, value in inputs.items()},
                max_new_tokens=room,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                streamer=_streamer(tokenizer, guard),
            )
        return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _streamer(tokenizer: Any, guard: Guard | None) -> Any:
    """A streamer that prints the answer while it is generated, after a line about the gate's decision."""
    from transformers import TextStreamer

    class MarkedStreamer(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if not self.begun:
                self.begun = True
                # The gate has decided by the first token.
                if guard is None:
                    _mark("without the aligner")
                else:
                    for decision in guard.decisions:
                        if decision.opened_at == "prompt":
                            _mark(gate_mark(decision.score, decision.open))
            print(text, flush=True, end="\n" if stream_end else "")

    return MarkedStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _mark(text: str) -> None:
    results().print(Text(f"[{text}]", style="dim yellow"))


def _command(line: str, conversation: Conversation) -> bool:
    """Runs a line that begins with "/"; returns False to leave the chat."""
    word = line.split()[0].lower()
    if word in ("/quit", "/exit"):
        return False
    if word == "/image":
        conversation.show(picture_from(line[len(word) :].strip()))
        note("Shown with your next turn.")
    elif word == "/reset":
        conversation.reset()
        note("Started over.")
    elif word == "/compare":
        try:
            conversation.compare()
        except KeyboardInterrupt:
            note("\nStopped.")
    elif word == "/help":
        note(_HELP)
    else:
        fail(f"There is no command {word}. {_HELP}")
    return True


def _ask() -> str | None:
    """The user's next line without surrounding blanks; None at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("\n› ").strip()
    except EOFError:
        return None
