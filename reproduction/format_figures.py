"""Does a bias that was fitted in one number format hold in another? Scores of the same prompts in several.

    python -m reproduction.format_figures --aligner DIR [--target SPEC] [--format bfloat16 int8 …] -o OUT

Formats: a dtype, `int8` or `int4` (weights quantised by bitsandbytes or torchao, as `--quantization` does),
`int8-dynamic` (torchao: weights and activations in int8). A target that is read from GGUF comes dequantised:
name the other file with `--gguf`. Prompts are the contrast set's test part, which took no part in fitting.
`inferaligner doctor TARGET --aligner DIR --rescore` asks the same of a single format.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from inferaligner.aligner import Aligner
from inferaligner.cli.diagnosis_view import shift_table
from inferaligner.fit.operating_point.precision_check import FormatShift, format_shifts
from inferaligner.fit.samples import samples_from_contrast
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.models.number_format import format_words, number_format
from inferaligner.prompts.contrast import load_contrast_set

console = Console()
FORMATS = ("float32", "bfloat16", "float16", "int8", "int8-dynamic", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--aligner", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--gguf", nargs="*", default=[], help="the target again, from other GGUF files")
    parser.add_argument("--format", nargs="*", choices=FORMATS, default=["float32", "bfloat16", "int8"])
    parser.add_argument("--prompts", type=int, default=100, help="of each kind")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    aligner = Aligner.from_pretrained(options.aligner)
    fitted = format_words(aligner.artifact.provenance.versions)
    console.print(f"Fitted in {fitted}")
    found: dict[str, Any] = {"fitted in": fitted, "formats": {}}
    for name in [*options.format, *options.gguf]:
        loaded = load_in(options.target, name)
        shifts = measured(aligner, loaded, options.prompts)
        told = {"format": format_words(number_format(loaded.model)), "groups": [asdict(s) for s in shifts]}
        found["formats"][name] = {**told, "holds": all(shift.holds for shift in shifts)}
        (options.output / "formats.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        console.print(f"\n{name}: {told['format']}")
        console.print(shift_table(shifts))
        del loaded


def load_in(target: str, name: str) -> LoadedModel:
    """The target in a format; anything that is not the name of one is a model of its own."""
    if name in ("int8", "int4"):
        return load_model(target, quantization=name)
    if name == "int8-dynamic":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        loaded = load_model(target, dtype="bfloat16")
        quantize_(loaded.model, Int8DynamicActivationInt8WeightConfig())
        return loaded
    return load_model(target, dtype=name) if name in FORMATS else load_model(name)


def measured(aligner: Aligner, loaded: LoadedModel, most: int) -> list[FormatShift]:
    """Shifts per group of held-out prompts."""

    def score(texts: Sequence[str]) -> list[float]:
        return [d.score for d in aligner.score(loaded.model, loaded.tokenizer, texts)]

    return format_shifts(aligner.artifact, samples_from_contrast(load_contrast_set()), score, most=most)


if __name__ == "__main__":
    main()
