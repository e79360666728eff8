"""`inferaligner generate TARGET --aligner DIR`: answers, with and without."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.image_options import ImageFiles, with_images
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


def generate(
    target: Target,
    aligner: AlignerPlace,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="One prompt.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="SPEC",
            help="Many prompts: .txt, .jsonl, .json, .csv (FILE:column) or hf://dataset#column.",
            show_default=False,
        ),
    ] = None,
    image: ImageFiles = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also answer without the aligner (unaligned_response).")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write JSON lines here as they are done; an interrupted run is continued.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the output file anew.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are answered at once.")] = 32,
    monitor: Annotated[
        bool, typer.Option(help="Read answers while they are generated, if the aligner has a monitor.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines on stdout, also on a terminal.")
    ] = False,
    on_open: OnOpen = WhenOpen.steer,
    refusal: Refusal = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer prompts with the gate in place, greedily: JSON lines with prompt, response, score and open.

    An aligner with a monitor adds opened_at: "prompt", or the number of the generated token, or null.

    The lines are in the input's order. On a terminal, panels are shown instead.
    """
    prompts = _read(prompt, source, image or [])
    if output is not None:
        check_output_file(output, source)
    fitted = load_aligner(aligner)
    text = check_open(fitted.artifact, on_open, refusal, monitor=monitor)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    answers: AnswersFile | None = None
    if output is not None:
        answers = _answers_file(
            output,
            prompts,
            overwrite,
            {
                "aligner": fitted.artifact.digest(),
                "target": target,
                "max_new_tokens": max_new_tokens,
                "compare": compare,
                **({} if monitor else {"monitor": False}),
                "dtype": dtype,
                "quantization": quantization,
                "chat_template": chat_template,
                **({} if text is None else {"refusal": text}),
            },
        )
        if answers.finished == len(prompts):
            note(f"{output} has all {len(prompts)} answers already; nothing to do.")
            return
    options.check(target)
    loaded = options.load(target, system=fitted.artifact.provenance.system_prompt)
    show: Callable[[dict[str, Any]], None] = print_json_line
    if answers is None and not as_json and sys.stdout.isatty():
        from inferaligner.cli.answer_panels import show
    first = 0 if answers is None else answers.finished
    warn_of_format(fitted.artifact, loaded)
    rows = answer_rows(
        fitted,
        loaded,
        prompts[first:],
        compare=compare,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        refusal=text,
        monitor=monitor,
    )
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
    *,
    compare: bool,
    max_new_tokens: int,
    batch_size: int,
    refusal: str | None = None,
    monitor: bool = True,
) -> Iterator[list[dict[str, Any]]]:
    """Answers, batch by batch in the prompts' order; with a `refusal`, open prompts get that text.

    Raises at once, not with the first batch: `MismatchError` if the aligner is not for this model,
    `PromptTooLongError` for any prompt.
    """
    from inferaligner.prompts.chat import context_length, encode_chats

    fitted.check(loaded.model, loaded.reader)
    system = fitted.artifact.provenance.system_prompt
    limit = context_length(loaded.model.config)
    # All of them now, so that the number in the message is the prompt's place in the input.
    encode_chats(loaded.reader, prompts, system=system, max_length=None if limit is None else limit - 1)
    return _batches(fitted, loaded, prompts, compare, max_new_tokens, batch_size, refusal, monitor)


def _batches(
    fitted: Aligner,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    compare: bool,
    max_new_tokens: int,
    batch_size: int,
    refusal: str | None,
    monitor: bool,
) -> Iterator[list[dict[str, Any]]]:
    from inferaligner.models.generation import generate_answers

    def answers(batch: Sequence[Prompt], decisions: Any = None) -> list[Any]:
        found = generate_answers(
            loaded.model,
            loaded.reader,
            batch,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            system=fitted.artifact.provenance.system_prompt,
            decisions=decisions,
        )
        return sorted(found, key=lambda answer: answer.row)

    watched = monitor and fitted.artifact.monitor is not None
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        applied = fitted.apply(loaded.model, loaded.reader, monitor=monitor, **opening(refusal))
        with applied as guard:
            aligned = answers(batch, lambda: guard.decisions)
        # A batch of closed rows alone is the bare model's own output already, bit for bit. Where one row
        # opened, the whole batch runs again, so that each row keeps its company and its numerics.
        bare = answers(batch) if compare and any(answer.decision.open for answer in aligned) else aligned
        yield [
            {
                **prompt_fields(prompt),
                # The whole text, also where --max-new-tokens is shorter.
                "response": refusal if refusal is not None and ours.decision.open else ours.text,
                **({"unaligned_response": theirs.text} if compare else {}),
                "score": ours.decision.score,
                "open": ours.decision.open,
                **({"opened_at": ours.decision.opened_at} if watched else {}),
            }
            for prompt, ours, theirs in zip(batch, aligned, bare, strict=True)
        ]


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
