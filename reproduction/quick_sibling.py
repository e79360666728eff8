"""The recipe of `aligned_sibling.py` on a draw of its prompts: minutes instead of half an hour.

    python -m reproduction.quick_sibling --target out/gemma-chat/model -o out/gemma-aligned

For experiments with a second family. Refusals open as the contrast set writes them, not as SmolLM2 would.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from reproduction.aligned_sibling import SHIPPED_OPENING, Recipe, check, held_out, own_answers, train
from reproduction.answer_batches import Example


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--ordinary", type=int, default=250)
    parser.add_argument("--longest", type=int, default=80, help="tokens of a prompt")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=60, help="of the search for the direction")
    parser.add_argument("--checked", type=int, default=40, help="prompts of each kind in the check")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(epochs=options.epochs, direction_steps=options.steps, opening=SHIPPED_OPENING)
    rng = random.Random(recipe.seed)
    contrast = load_contrast_set()
    refusals = contrast.refusals()
    loaded = load_model(options.target, dtype="bfloat16")
    known = [p for part in ("extraction", "calibration") for p in contrast.part(part, wrapped=False)]
    lengths = [len(ids) for ids in encode_chats(loaded.tokenizer, [p.text for p in known])]
    short = [p for p, length in zip(known, lengths, strict=True) if length <= options.longest]
    drawn = draw(short, options.pairs, options.ordinary, rng)
    answers = own_answers(
        loaded,
        sorted({p.text for p in drawn if not p.harmful}),
        options.output / "own_answers.jsonl",
        recipe,
    )
    examples = [
        Example(
            p.text,
            rng.choice(refusals[p.category] + refusals["general"]) if p.harmful else answers[p.text],
            p.harmful,
        )
        for p in drawn
        if p.harmful or answers[p.text]
    ]
    rng.shuffle(examples)
    adapter = options.output / "adapter"
    if not (adapter / "adapter_config.json").exists():
        train(loaded, examples, options.target, options.output, recipe)
    groups = held_out(contrast, None)
    check(
        options.target,
        adapter,
        {name: rng.sample(prompts, min(options.checked, len(prompts))) for name, prompts in groups.items()},
        options.output,
    )


def draw(
    prompts: list[ContrastPrompt], pairs: int, ordinary: int, rng: random.Random
) -> list[ContrastPrompt]:
    """Harmful prompts, the same number of harmless twins, and further harmless prompts."""
    sorts = (
        ([p for p in prompts if p.harmful], pairs),
        ([p for p in prompts if not p.harmful and p.kind == "plain"], pairs),
        ([p for p in prompts if p.kind == "benign"], ordinary),
    )
    return [p for found, count in sorts for p in rng.sample(found, min(count, len(found)))]


if __name__ == "__main__":
    main()
