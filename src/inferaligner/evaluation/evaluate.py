"""One evaluation from beginning to end: the methods of a `Recipe` answer its suites, into a run folder.

`inferaligner evaluate`, `inferaligner demo`, `inferaligner ablate` and `reproduction.core_figures` call
`evaluate`; they differ in their recipes and in how they print the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from inferaligner.evaluation.batches import batch_size_for
from inferaligner.evaluation.inference_time import TimingSettings, measure, timed_prompts
from inferaligner.evaluation.methods.method import Method
from inferaligner.evaluation.records_file import RecordsFile, stored_run
from inferaligner.evaluation.run_folder import TIMING, RunFolder
from inferaligner.evaluation.runner import Runner, RunSettings
from inferaligner.evaluation.suites.sampling import Subset
from inferaligner.evaluation.suites.suite import Kind, Suite
from inferaligner.fit.progress import Progress
from inferaligner.prompts.images import text_of
from inferaligner.storage.json_io import dump, plain
from inferaligner.version import __version__

_CHARACTERS_PER_TOKEN = 3  # a cautious guess, for the memory that a batch will take


@dataclass(frozen=True)
class Recipe:
    """Which methods answer which prompts, and how.

    Attributes:
        methods: made by `methods.catalogue.make_methods`, the bare model first.
        subsets: the prompts of each suite, loaded by `suites.catalogue.load`.
        max_new_tokens: length limit of an answer.
        aligner: folder or hub id that the aligner was loaded from; None without an aligner.
        batch_size: prompts answered at once; None keeps the size of the run in the folder, else it is chosen
            by memory.
        likelihoods: whether to measure the likelihood of answers, from which the rules detect more gibberish,
            and the odds of a refusal's opening on harmful suites; it takes about a third more time.
        timing: how inference time is measured; None does not measure it.
        withhold: whether reports leave out answers to harmful prompts that are no refusals.
        shorter: smaller length limits of some kinds of suites; the record of the run states them.
    """

    methods: Sequence[Method]
    subsets: Sequence[Subset]
    max_new_tokens: int
    aligner: str | None = None
    batch_size: int | None = None
    likelihoods: bool = True
    timing: TimingSettings | None = None
    withhold: bool = False
    shorter: Mapping[Kind, int] = field(default_factory=dict)

    def tokens_of(self, suite: Suite) -> int:
        """The length limit of a suite's answers."""
        return min(self.max_new_tokens, self.shorter.get(suite.kind, self.max_new_tokens))

    def described(self, folder: Path) -> dict[str, Any]:
        """The content of `run.json`; a run in `folder` is continued only if it has the same content."""
        target = self.methods[0].context.target
        longest = max(len(text_of(item.prompt)) for subset in self.subsets for item in subset.items)
        tokens = longest // _CHARACTERS_PER_TOKEN + self.max_new_tokens
        # Free memory changes between runs, but a continued run must form the same batches.
        stored = stored_run(folder).get("batch size")
        run: dict[str, Any] = {
            "target": target.spec,
            "dtype": str(target.model.dtype).removeprefix("torch."),
            "device": target.model.device.type,
            "aligner": self.aligner,
            "methods": {m.name: {"title": m.title, **m.settings()} for m in self.methods},
            "suites": {s.suite.name: _described(s) | self._own_limit(s.suite) for s in self.subsets},
            "max new tokens": self.max_new_tokens,
            "batch size": self.batch_size or stored or batch_size_for(target.model, tokens),
            "versions": {
                "inferaligner": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        if not self.likelihoods:
            run["likelihoods"] = False
        if self.withhold:
            run["withhold"] = True
        return run

    def _own_limit(self, suite: Suite) -> dict[str, int]:
        tokens = self.tokens_of(suite)
        shorter = tokens < self.max_new_tokens and suite.task != "pick"
        return {"max new tokens": tokens} if shorter else {}


def evaluate(
    recipe: Recipe, folder: Path, progress: Progress, *, overwrite: bool = False, replace_other: bool = False
) -> RunFolder:
    """Answers every prompt with every method, and goes on with an interrupted run of the same recipe.

    Args:
        recipe: methods, prompts and settings.
        folder: where `run.json`, `records.jsonl` and `timing.json` are written.
        progress: receives the progress.
        overwrite: start anew, whatever the folder holds.
        replace_other: start anew if the folder holds a run of another recipe.

    Returns:
        The finished run; `write_results` and `write_report` are up to the caller.

    Raises:
        InputError: the folder holds another run (without `overwrite` and `replace_other`), or cannot be
            written to.
        PromptTooLongError: a prompt does not fit into the model's context.
    """
    run = recipe.described(folder)
    overwrite = overwrite or (replace_other and stored_run(folder) != plain(run))
    records = RecordsFile(folder, run, overwrite=overwrite)
    if overwrite:
        (folder / TIMING).unlink(missing_ok=True)
    finished = len(records.all())
    if finished:
        progress.note(f"{folder} holds {finished} records of this run; going on from there.")
    settings = RunSettings(recipe.tokens_of, run["batch size"], recipe.likelihoods)
    Runner(records, settings, progress).run(recipe.methods, recipe.subsets)
    result = RunFolder(folder)
    if recipe.timing is not None and not result.timings():
        by_suite = {s.suite.name: [item.prompt for item in s.items] for s in recipe.subsets}
        prompts = timed_prompts(result.records, by_suite, recipe.timing.prompts)
        if any(prompts.values()):
            result.write_timings(measure(recipe.methods, prompts, recipe.timing, progress))
        else:
            progress.note("No prompt opened or closed a gate, so inference time was not measured.")
    return result


def _described(subset: Subset) -> dict[str, Any]:
    suite = subset.suite
    items = dump([plain(item.fields()) for item in subset.items])
    return {
        "title": suite.title,
        "kind": suite.kind,
        "task": suite.task,
        "prompts": subset.described,
        "citation": suite.citation,
        "licence": suite.licence,
        "digest": hashlib.sha256(items.encode()).hexdigest()[:16],
    }
