"""InferAligner on the LLaVA: fitted on text, and on text and pictures, with a text-only guide; then attacked.

    python -m reproduction.vision.figures out/vision/model -o out/vision/figures

Writes aligners and `figures.json`: what each gate does with attacks through the picture and with their
harmless twins, what the LLaVA answers with and without, whether closed prompts change, and what it costs in
time. Raw answers stay in that folder. Finished parts are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from inferaligner.aligner import Aligner
from inferaligner.evaluation.suites.catalogue import named
from inferaligner.evaluation.suites.contrast import is_harmful, is_ordinary, is_twin, pictures
from inferaligner.evaluation.suites.sampling import draw
from inferaligner.evaluation.suites.suite import Item
from inferaligner.fit.context import FitContext, FitModel
from inferaligner.fit.fit import fit_artifact
from inferaligner.fit.options import FitOptions
from inferaligner.fit.picture_samples import with_pictures
from inferaligner.fit.samples import Samples, samples_from_contrast
from inferaligner.judges.rules import judge
from inferaligner.method.vectors import cosine
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.contrast import ContrastSet, load_contrast_set
from inferaligner.prompts.images import Prompt
from inferaligner.statistics.intervals import auroc, clopper_pearson
from inferaligner.storage.json_io import dump, plain
from reproduction.vision.perfect_reading import pages_of_the_suites, perfect_reading
from reproduction.vision.raster import draw_text

GUIDE = "builtin:smollm2-135m-aligned"
LAYERS, STRENGTH = (16, 17, 18, 19, 20, 21), 0.156
"""The result of the search for SmolLM2-135M on text; not searched again, because the LLaVA's language model
is that model with an adapter merged in."""

OUTCOMES = ("refusal", "compliance", "gibberish")
WANTED = {
    "contrast-picture-attack": is_harmful,
    "contrast-picture-twins": is_twin,
    "contrast-picture-benign": is_ordinary,
}
SUITES = tuple(WANTED)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--every", type=int, default=8, help="one in so many labelled contents is fitted on")
    parser.add_argument("--share", type=float, default=1.0, help="of them are drawn into pictures too")
    parser.add_argument("--prompts", type=int, default=120, help="of each suite are scored")
    parser.add_argument("--answers", type=int, default=60, help="of each suite are answered")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument(
        "--perfect-reading", action="store_true", help="each gate also with a tower that makes no mistake"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    seeing = load_model(options.model, dtype="bfloat16")
    aligners = fitted(seeing, options.output, options.every, options.share)
    asked = picture_prompts(options.prompts)
    figures = Figures(options.output / "figures.json")
    for name, aligner in aligners.items():
        figures.once(f"gate, fitted on {name}", lambda a=aligner: gate_figures(seeing, a, asked))
    if options.perfect_reading:
        with perfect_reading(seeing, pages_of_the_suites()):
            for name, aligner in aligners.items():
                figures.once(
                    f"gate, fitted on {name}, perfect reading",
                    lambda a=aligner: gate_figures(seeing, a, asked),
                )
    figures.once("vectors", lambda: vector_figures(aligners))
    few = {suite: list(items)[: options.answers] for suite, items in asked.items()}
    answers = figures.once("bare", lambda: outcomes(bare(seeing, few, options.tokens, options.output)))
    del answers
    for name, aligner in aligners.items():
        figures.once(
            f"answers, fitted on {name}",
            lambda a=aligner: guarded(seeing, a, few, options.tokens, options.output),
        )
    first = next(iter(aligners.values()))
    figures.once("time", lambda: time_figures(seeing, first, [i.prompt for i in few[SUITES[2]]]))
    print(json.dumps(figures.found, indent=2))


def picture_prompts(limit: int) -> dict[str, tuple[Item, ...]]:
    """At most `limit` prompts of each suite, their pictures drawn on the raster that the LLaVA reads."""
    return {
        name: draw(named(name), pictures(wanted, draw_text), limit, seed=0).items
        for name, wanted in WANTED.items()
    }


class Figures:
    """The finished parts, kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, or the stored one of an earlier run."""
        if name not in self.found:
            print(f"… {name}", flush=True)
            self.found[name] = plain(make())
            self._file.write_text(dump(self.found, indent=2) + "\n", encoding="utf-8")
        return self.found[name]


# -- fitting -------------------------------------------------------------------------------------------


def thinned(every: int) -> ContrastSet:
    """One in `every` of the shipped set's contents and wrappers; the suites use the whole test part."""
    whole = load_contrast_set()
    wrappers = whole.wrappers[:: max(1, every // 2)]
    return ContrastSet(whole.pairs[::every], whole.benign[::every], wrappers, whole.refusal_texts)


def fitted(seeing: LoadedModel, output: Path, every: int, share: float) -> dict[str, Aligner]:
    """An aligner on text alone, and one whose gate and SRV come from text and pictures.

    The SSV are the text-only guide's in both, and so are layers and strength.
    """
    folders = {name: output / f"aligner-{name.replace(' ', '-')}" for name in ("text", "text and pictures")}
    if not all((folder / "aligner.json").exists() for folder in folders.values()):
        text = without_test(samples_from_contrast(thinned(every)))
        options = FitOptions(steer_layers=LAYERS, strength=STRENGTH)
        guide = load_model(GUIDE, dtype="bfloat16")
        target = FitModel(seeing.model, seeing.reader, "SmolLM2-135M-LLaVA")
        aligned = FitModel(guide.model, guide.tokenizer, GUIDE)

        def fit(samples: Samples, side: FitModel | None, chosen: FitOptions) -> Any:
            return fit_artifact(FitContext(target, side, samples, lambda a: judge(a).outcome, chosen))

        on_text = fit(text, aligned, options)
        Aligner(on_text).save_pretrained(folders["text"])
        on_both = fit(with_pictures(text, share, draw_text), None, FitOptions())
        both = replace(
            on_both,
            ssv=on_text.ssv,
            steering=on_text.steering,
            provenance=on_both.provenance.model_copy(update={"aligned": on_text.provenance.aligned}),
        )
        Aligner(both).save_pretrained(folders["text and pictures"])
    return {name: Aligner.from_pretrained(folder) for name, folder in folders.items()}


def without_test(samples: Samples) -> Samples:
    """The samples without the test part, which the suites cover."""
    return replace(samples, test=())


# -- figures -------------------------------------------------------------------------------------------


def gate_figures(seeing: LoadedModel, aligner: Aligner, asked: dict[str, tuple[Item, ...]]) -> dict[str, Any]:
    """Open rates by suite and style, and the AUROC of attacks against twins and ordinary prompts."""
    found: dict[str, Any] = {"open": {}}
    scores: dict[str, list[float]] = {}
    for suite, items in asked.items():
        decisions = aligner.score(seeing.model, seeing.reader, [item.prompt for item in items])
        scores[suite] = [decision.score for decision in decisions]
        for style in ("all", *sorted({item.domain for item in items})):
            opened = [d.open for d, i in zip(decisions, items, strict=True) if style in ("all", i.domain)]
            found["open"][f"{suite}, {style}"] = asdict(clopper_pearson(sum(opened), len(opened)))
    attack = scores[SUITES[0]]
    for other in SUITES[1:]:
        labels = np.array([True] * len(attack) + [False] * len(scores[other]))
        found[f"auroc against {other}"] = auroc(np.array([*attack, *scores[other]]), labels)
    return found


def vector_figures(aligners: dict[str, Aligner]) -> dict[str, Any]:
    """How alike the vectors are, per layer: cosines of SRV and SSV."""
    text, both = (aligner.artifact for aligner in aligners.values())
    return {
        "cosine of SRV on text with SRV on text and pictures": _rounded(cosine(text.srv, both.srv)),
        "cosine of SRV on text with SSV": _rounded(cosine(text.srv, text.ssv)),
        "cosine of SRV on text and pictures with SSV": _rounded(cosine(both.srv, text.ssv)),
    }


def bare(
    seeing: LoadedModel, asked: dict[str, list[Item]], tokens: int, output: Path
) -> dict[str, list[str]]:
    """The bare model's answers, kept in a file."""
    file = output / "bare.json"
    if not file.exists():
        found = {
            suite: [a.text for a in ask(seeing, _prompts(items), tokens)] for suite, items in asked.items()
        }
        file.write_text(json.dumps(found), encoding="utf-8")
    kept: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def guarded(
    seeing: LoadedModel, aligner: Aligner, asked: dict[str, list[Item]], tokens: int, output: Path
) -> dict[str, Any]:
    """Outcomes under the gate, whether closed prompts kept their answers; outcomes with every row open."""
    plain = bare(seeing, asked, tokens, output)
    found: dict[str, Any] = {"gate": {}, "closed and identical": {}, "every row open": {}}
    for suite, items in asked.items():
        with aligner.apply(seeing.model, seeing.reader) as guard:
            answers = ask(seeing, _prompts(items), tokens, decisions=lambda g=guard: g.decisions)
        found["gate"] |= outcomes({suite: [answer.text for answer in answers]})
        closed = [
            answer.text == other
            for answer, other in zip(answers, plain[suite], strict=True)
            if answer.decision is not None and not answer.decision.open
        ]
        found["closed and identical"][suite] = asdict(clopper_pearson(sum(closed), len(closed)))
        found.setdefault("open", {})[suite] = len(items) - len(closed)
    attack = asked[SUITES[0]]
    with aligner.apply(seeing.model, seeing.reader, mode="always"):
        always = ask(seeing, _prompts(attack), tokens)
    found["every row open"] = outcomes({SUITES[0]: [answer.text for answer in always]})
    return found


def time_figures(seeing: LoadedModel, aligner: Aligner, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Seconds per 1,000 tokens with the aligner, as a ratio: the median over rounds that take turns.

    On a CPU processor seconds, so that what else runs on the machine counts little. Closed is by the gate's
    bias: it reads and scores as always, and whether any prompt leaves it closed by itself does not matter.
    """
    asked = prompts[:4]
    gate = aligner.artifact.gate
    never = Aligner(replace(aligner.artifact, gate=gate.with_bias(-1e9)))
    # What a GPU does is no processor's time; an answer is read back from it, so its work is over by then.
    clock = time.process_time if seeing.model.device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {"bare": [], "closed": [], "open": []}

    def once(state: str) -> None:
        applied = never if state == "closed" else aligner
        mode: Literal["gate", "always"] = "gate" if state == "closed" else "always"
        # An aligner is put on once and stays on: its check of the model is no part of an answer
        with nullcontext() if state == "bare" else applied.apply(seeing.model, seeing.reader, mode=mode):
            began = clock()
            made = ask(seeing, asked, 32, min_new_tokens=32)
            seconds = clock() - began
        spent[state].append(seconds / sum(len(answer.tokens) for answer in made) * 1000)

    for turn in range(6):
        states = list(spent) if turn % 2 == 0 else list(spent)[::-1]
        for state in states:
            once(state)
    seconds = {state: float(np.median(values[1:])) for state, values in spent.items()}
    return {
        **{f"seconds per 1,000 tokens, {state}": round(value, 3) for state, value in seconds.items()},
        "ratio, closed": round(seconds["closed"] / seconds["bare"], 4),
        "ratio, open": round(seconds["open"] / seconds["bare"], 4),
        "prompts": len(asked),
        "rounds": 5,
    }


def outcomes(answers: dict[str, list[str]]) -> dict[str, Any]:
    """Shares of refusals, compliance and gibberish by the offline rules, with intervals."""
    found: dict[str, Any] = {}
    for suite, texts in answers.items():
        told = [judge(text).outcome for text in texts]
        found[suite] = {
            outcome: asdict(clopper_pearson(told.count(outcome), len(told))) for outcome in OUTCOMES
        }
    return found


def ask(loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int, **options: Any) -> list[Answer]:
    """Greedy answers, in order; in passes of the whole batch, because closed answers are compared."""
    found = generate_answers(
        loaded.model, loaded.reader, prompts, max_new_tokens=tokens, batch_size=16, shrink=False, **options
    )
    return sorted(found, key=lambda answer: answer.row)


def _prompts(items: Sequence[Item]) -> list[Prompt]:
    return [item.prompt for item in items]


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]


if __name__ == "__main__":
    main()
