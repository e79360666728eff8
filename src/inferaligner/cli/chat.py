"""`inferaligner chat TARGET --aligner DIR`: a conversation in the terminal, every turn gated afresh."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from inferaligner.cli.answer_panels import gate_mark
from inferaligner.cli.image_options import ImageFiles
from inferaligner.cli.model_options import (
    AlignerPlace,
    ChatTemplate,
    Device,
    Dtype,
    ModelOptions,
    Quantization,
    Target,
    TrustRemoteCode,
    load_aligner,
    warn_of_format,
)
from inferaligner.cli.open_options import OnOpen, Refusal, WhenOpen, check_open, opening
from inferaligner.cli.terminal import check_text, fail, note, results
from inferaligner.errors import InferAlignerError, InputError, PromptTooLongError
from inferaligner.prompts.encoding import sees_images
from inferaligner.prompts.images import ImagePrompt, Picture, picture_from

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.models.loading import LoadedModel
    from inferaligner.steering.guard import Guard

_HELP = (
    "/image FILE: show it with the next turn   /compare: answer the last turn without the aligner   "
    "/reset: start over   /quit: leave"
)


def chat(
    target: Target,
    aligner: AlignerPlace,
    image: ImageFiles = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    monitor: Annotated[
        bool, typer.Option(help="Read answers while they are generated, if the aligner has a monitor.")
    ] = True,
    on_open: OnOpen = WhenOpen.steer,
    refusal: Refusal = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to TARGET with the gate in place. Within: /image, /compare, /reset, /quit."""
    shown = [picture_from(file) for file in image or []]
    fitted = load_aligner(aligner)
    text = check_open(fitted.artifact, on_open, refusal, monitor=monitor)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    options.check(target)
    loaded = options.load(target, system=fitted.artifact.provenance.system_prompt)
    fitted.check(loaded.model, loaded.reader)
    warn_of_format(fitted.artifact, loaded)
    note(f"{_HELP}   /help: this")
    conversation = Conversation(fitted, loaded, max_new_tokens, text, monitor=monitor)
    for picture in shown:
        conversation.show(picture)
    while (line := _ask()) is not None:
        if line.startswith("/"):
            if not _command(line, conversation):
                return
        elif line:
            try:
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
        refusal: str | None = None,
        *,
        monitor: bool = True,
    ) -> None:
        self._opening = {"monitor": monitor, **opening(refusal)}
        self._fitted = fitted
        self._loaded = loaded
        self._max_new_tokens = max_new_tokens
        self._turns: list[dict[str, Any]] = []
        self._pictures: list[Picture] = []  # of all turns, and of the one to come
        self._waiting = 0  # those of the turn to come
        self.reset()

    def reset(self) -> None:
        """Forgets every turn but the system prompt that the aligner was fitted with."""
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
        """Answers one turn of the user on stdout, as it is generated."""
        from inferaligner.prompts.chat import turn_content

        shown = tuple(self._pictures[len(self._pictures) - self._waiting :])
        prompt = ImagePrompt(text, shown) if shown else text
        turns = [*self._turns, {"role": "user", "content": turn_content(prompt)}]
        loaded = self._loaded
        with self._fitted.apply(loaded.model, loaded.reader, **self._opening) as guard:
            answer = self._answer(turns, guard)
            for decision in guard.decisions:
                if decision.answer_token is not None:
                    _mark(f"the monitor steered this answer from token {decision.answer_token} on")
        self._turns, self._waiting = [*turns, {"role": "assistant", "content": answer}], 0

    def compare(self) -> None:
        """Answers the last turn once more, by the bare model; the first answer stays the one that counts."""
        if not self._turns or self._turns[-1]["role"] != "assistant":
            raise InputError("There is no turn yet that could be compared; say something first.")
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
    """Prints the answer as it comes, after a mark that says what the gate did."""
    from transformers import TextStreamer

    class MarkedStreamer(TextStreamer):
        begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if not self.begun:
                self.begun = True
                # By the first token the prompt has passed the gate.
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
    """Does what a line that begins with "/" says; False to leave."""
    word = line.split()[0].lower()
    if word in ("/quit", "/exit"):
        return False
    if word == "/image":
        try:
            conversation.show(picture_from(line[len(word) :].strip()))
            note("Shown with your next turn.")
        except InferAlignerError as error:
            fail(str(error))
    elif word == "/reset":
        conversation.reset()
        note("Started over.")
    elif word == "/compare":
        try:
            conversation.compare()
        except InferAlignerError as error:
            fail(str(error))
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
