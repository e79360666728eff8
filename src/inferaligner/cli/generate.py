"""`inferaligner generate TARGET --aligner DIR`: answers with the gate, and on request without it too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.image_options import ImageFiles, with_images
from inferaligner.cli.model_options import AlignerPlace, ModelOptions, Target, load_aligner
from inferaligner.cli.open_options import OpenGateOptions
from inferaligner.cli.option_groups import flag
from inferaligner.cli.output_file import check_output_file
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import check_text, note, print_json_line
from inferaligner.errors import InputError
from inferaligner.prompts.images import Prompt, prompt_fields
from inferaligner.prompts.prompt_files import read_prompts

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.cli.answers_file import AnswersFile
    from inferaligner.models.loading import LoadedModel
    from inferaligner.steering.gate_policy import GatePolicy


@dataclass(frozen=True)
class GenerateOptions:
    """The prompts, and how they are answered."""

    prompt: str | None = flag(None, "--prompt", "-p", metavar="TEXT", help="One prompt.")
    source: str | None = flag(
        None,
        "--input",
        "-i",
        metavar="SPEC",
        help="Many prompts: .txt, .jsonl, .json, .csv (FILE:column) or hf://dataset#column.",
    )
    compare: bool = flag(False, "--compare", help="Also answer without the aligner (unaligned_response).")
    output: Path | None = flag(
        None,
        "--output",
        "-o",
        metavar="FILE",
        help="Write the JSON lines to this file as they are generated; an interrupted run is continued.",
    )
    overwrite: bool = flag(False, "--overwrite", help="Replace the output file.")
    max_new_tokens: int = flag(256, min=1, help="Longest answer, in tokens.")
    batch_size: int = flag(32, min=1, help="Prompts per batch.")


def generate(
    *,
    target: Target,
    aligner: AlignerPlace,
    options: GenerateOptions,
    image: ImageFiles = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines on a terminal too, instead of panels.")
    ] = False,
    gate: OpenGateOptions,
    model: ModelOptions,
) -> None:
    """Answer prompts with the gate in place, greedily: JSON lines with prompt, response, score and open.

    With a monitor, each line has opened_at: "prompt", the number of the generated token, or null.

    The lines are in the input's order. On a terminal, panels are shown instead.
    """
    prompts, output = _read(options.prompt, options.source, image or []), options.output
    if output is not None:
        check_output_file(output, options.source)
    fitted = load_aligner(aligner)
    policy = gate.policy(fitted.artifact)
    answers: AnswersFile | None = None
    if output is not None:
        answers = _answers_file(
            output,
            prompts,
            options.overwrite,
            {
                "aligner": fitted.artifact.digest(),
                "target": target,
                "max_new_tokens": options.max_new_tokens,
                "compare": options.compare,
                **({} if gate.monitor else {"monitor": False}),
                "dtype": model.dtype,
                "quantization": model.quantization,
                "chat_template": model.chat_template,
                **({} if policy.refusal_text is None else {"refusal": policy.refusal_text}),
            },
        )
        if answers.finished == len(prompts):
            note(f"{output} has all {len(prompts)} answers already; nothing to do.")
            return
    loaded = model.load_for(fitted, target)
    show: Callable[[dict[str, Any]], None] = print_json_line
    if answers is None and not as_json and sys.stdout.isatty():
        from inferaligner.cli.answer_panels import show
    first = 0 if answers is None else answers.finished
    rows = answer_rows(fitted, loaded, prompts[first:], options, policy)
    if answers is None:
        for batch in rows:
            for row in batch:
                show(row)
        return
    if first:
        note(f"{first} of {len(prompts)} answers are there already; continuing with the next.")
    answers.open()
    with RichStages().stage("answers", len(prompts)) as advance:
        advance(first)
        for batch in rows:
            answers.append(batch)
            advance(len(batch))
    note(f"{len(prompts)} answers, {sum(row['open'] for row in answers.rows)} with the gate open: {output}")


def answer_rows(
    fitted: Aligner,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    options: GenerateOptions,
    policy: GatePolicy,
) -> Iterator[list[dict[str, Any]]]:
    """Answers prompts with the gate in place, greedily.

    Args:
        fitted: the aligner.
        loaded: the model that it was fitted on.
        prompts: what to answer.
        options: the length and number of answers at a time, and whether to answer without the aligner too.
        policy: what happens to prompts that open the gate.

    Returns:
        The output rows, batch by batch, in the prompts' order.

    Raises:
        MismatchError: the aligner was fitted on another model. Raised at once, not with the first batch.
        PromptTooLongError: any prompt is too long; also at once.
    """
    from inferaligner.models.generation import generate_answers
    from inferaligner.prompts.chat import context_length, encode_chats

    fitted.check(loaded.model, loaded.reader)
    system = fitted.artifact.provenance.system_prompt
    limit = context_length(loaded.model.config)
    # All of them now, so that the number in the message is the prompt's place in the input.
    encode_chats(loaded.reader, prompts, system=system, max_length=None if limit is None else limit - 1)

    def answers(batch: Sequence[Prompt], decisions: Any = None, lengths: Any = None) -> list[Any]:
        generated = generate_answers(
            loaded.model,
            loaded.reader,
            batch,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            system=system,
            decisions=decisions,
            in_step_with=lengths,
        )
        return sorted(generated, key=lambda answer: answer.row)

    refusal = policy.refusal_text
    watched = policy.monitor and fitted.artifact.monitor is not None

    def rows(batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        with fitted.apply(
            loaded.model,
            loaded.reader,
            on_open=policy.on_open,
            refusal=policy.refusal,
            monitor=policy.monitor,
        ) as guard:
            aligned = answers(batch, lambda: guard.decisions)
        # A batch without open rows is the bare model's own output already, bit for bit. Where a row opened,
        # the whole batch runs again, because a row's numerics depend on the number of rows beside it.
        bare = aligned
        if options.compare and any(answer.decision.open for answer in aligned):
            bare = answers(batch, lengths=[len(answer.tokens) for answer in aligned])
        return [
            {
                **prompt_fields(prompt),
                # The whole text, also where --max-new-tokens is shorter.
                "response": refusal if refusal is not None and ours.decision.open else ours.text,
                **({"unaligned_response": theirs.text} if options.compare else {}),
                "score": ours.decision.score,
                "open": ours.decision.open,
                **({"opened_at": ours.decision.opened_at} if watched else {}),
            }
            for prompt, ours, theirs in zip(batch, aligned, bare, strict=True)
        ]

    size = options.batch_size
    return (rows(prompts[start : start + size]) for start in range(0, len(prompts), size))


def _answers_file(file: Path, prompts: Sequence[Prompt], overwrite: bool, run: dict[str, Any]) -> AnswersFile:
    from inferaligner.cli.answers_file import AnswersFile

    return AnswersFile(file, run, prompts, overwrite=overwrite)


def _read(prompt: str | None, source: str | None, images: Sequence[str]) -> list[Prompt]:
    if (prompt is None) == (source is None):
        raise InputError("Give either --prompt TEXT or --input FILE.")
    if source is not None and images:
        raise InputError(
            '--image goes with --prompt. In a file, a row names its own: {"prompt": ..., "image": PATH}.'
        )
    if source is not None:
        return read_prompts(source)
    assert prompt is not None
    if not prompt.strip():
        raise InputError("--prompt is empty; expected some text.")
    check_text(prompt, "--prompt")
    return [with_images(prompt, images)]
