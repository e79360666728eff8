"""The models that are timed: real ones by their spec, and random weights in a real model's shape."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Speed does not depend on the values of the weights. Shapes from the models' published configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "random-7b": {  # Llama-2-7B
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "random-tiny": {  # for trying the scripts
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    },
}


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """The options that the benchmarks of one model share."""
    parser.add_argument(
        "--model", default="builtin:smollm2-135m", help=f"a model spec, or one of {', '.join(SHAPES)}"
    )
    parser.add_argument("--layers", type=int, help="depth of a random model (default: the real model's)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--repeats", type=int, default=20, help="rounds that are kept")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time of this process, for one thread on a machine that others use too",
    )
    parser.add_argument("--json", metavar="FILE", help="write settings, machine, durations and ratios")


def check_subject_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses settings that would make a measurement wrong, and sets the number of threads."""
    if options.repeats < 2:
        parser.error("--repeats: at least 2, for a spread")
    if options.layers is not None and options.model not in SHAPES:
        parser.error("--layers: only the random models can be cut")
    if options.clock == "cpu" and (options.threads != 1 or torch.device(options.device).type != "cpu"):
        parser.error("--clock cpu: processor time is a duration only for one thread on the CPU")
    torch.set_num_threads(options.threads)


def load_subject(options: argparse.Namespace) -> tuple[Any, Any]:
    """`(model, tokenizer)`; a random model has no tokenizer."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.model not in SHAPES:
        # Here, because a random model needs nothing but torch and transformers.
        from inferaligner.models.loading import load_model

        loaded = load_model(options.model, dtype=dtype, device=device)
        return loaded.model, loaded.tokenizer
    shape = SHAPES[options.model] | {"pad_token_id": 0}
    if options.layers is not None:
        shape["num_hidden_layers"] = options.layers
    torch.manual_seed(0)
    # Made on the device and in its precision: on the way there is no second copy of the weights.
    with device:
        make: Any = LlamaForCausalLM._from_config
        model: Any = make(LlamaConfig(**shape), dtype=dtype)
    return model.eval(), None
