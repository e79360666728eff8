"""A test of the recipes without their models: every stage, in minutes, without a network.

Of each family the real architecture is built twice from the configuration in the scale's file: whole, without
memory behind it, to count its parameters; and with small dimensions and random weights, to be trained, fitted
and evaluated. Rows are made up (`example` of each corpus, read by the corpus's own reader), public suites are
replaced by the shipped one of their kind. Everything else is the recipe's: methods, templates, training with
all weights or LoRA, order of stages.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.catalogue import named
from inferaligner.prompts.contrast import load_contrast_set
from reproduction.chat_rows import token_rows
from reproduction.corpora.corpus import Row
from reproduction.experiment_stages import Request, chosen_families, run_experiment
from reproduction.recipe import (
    TEMPLATES,
    Ablation,
    Architecture,
    Confound,
    Domain,
    Experiment,
    Family,
    Measured,
    PerScale,
    SafetySft,
    Scale,
    ScaleConfig,
    Summary,
    read_scale_config,
)
from reproduction.run_context import Place
from reproduction.stage_store import console

_PROMPTS = 6
"""Per suite."""
_SHIPPED = {
    "harmful": "contrast-harmful",
    "jailbreak": "contrast-jailbreak",
    "over-refusal": "contrast-over-refusal",
    "utility": "arithmetic",
    "benign": "contrast-benign",
}
_SPECIAL = (
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<eoh>"),
    *("<eoa>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
_REFUSAL = "I'm sorry, but I can't help with that."
_LESSONS = 400

Counts = Mapping[str, "int | Literal['all']"]


def check_recipes(scale: str, families: tuple[str, ...], names: tuple[str, ...], work: Path) -> None:
    """Runs the recipes in small; raises the first error.

    Raises:
        InputError: a family without an architecture, or one whose parameters do not add up.
    """
    config = read_scale_config(scale)
    chosen = chosen_families(config.scale, families)
    wanted = names or tuple(sorted(config.experiments, key=lambda n: _order(config.experiments[n])))
    shutil.rmtree(work, ignore_errors=True)
    small = shrunk(config, chosen, work / "models")
    place = Place(None, work / "work", work / "results", examples=True)
    for family in chosen:
        for name in wanted:
            if not isinstance(small.experiment(name), Summary):
                run_experiment(Request(name, (family,), place), small)
    for name in wanted:
        if isinstance(small.experiment(name), Summary):
            run_experiment(Request(name, tuple(chosen), place), small)
    console.print(f"Checked: {', '.join(wanted)} on {', '.join(chosen)}.", soft_wrap=True)


def shrunk(config: ScaleConfig, families: list[str], folder: Path) -> ScaleConfig:
    """The config with random models of small dimensions, few prompts and few steps."""
    halves = _fit_prompts(folder)
    scale, old = config.scale, config.scale.training
    training = old.model_copy(
        update={
            "epochs": 1,
            "batch_size": 4,
            "micro_batch": 2,
            "max_length": min(old.max_length, 192),
            "load_dtype": "float32",
            "bf16": False,
            "save_steps": 2,
        }
    )
    safety_sft = SafetySft(samples=4, start=scale.safety_sft.start, replay=4)
    made = {name: _small_family(name, scale.families[name], folder) for name in families}
    small = Scale(
        title=f"{scale.title}, in small",
        takes=scale.takes,
        families=made,
        training=training,
        safety_sft=safety_sft,
        safety_suites=_few(scale.safety_suites),
        safety=Measured(tokens=6, timing=scale.safety.timing, quick=True),
        utility=Measured(tokens=6),
        benign_rows=2,
        max_false_open=scale.max_false_open,
        dtype=scale.dtype,
        fit_options=(
            *scale.fit_options,
            *("--harmful", str(halves[0]), "--harmless", str(halves[1])),
            *("--steer-layers", "2-3", "--strength", "0.5", "--positions", "from_gate"),
        ),
        more_methods=scale.more_methods,
        ablation_tokens=6,
        seed=scale.seed,
    )
    experiments = {name: _small_experiment(found) for name, found in config.experiments.items()}
    return ScaleConfig(config.name, small, experiments)


def count_parameters(architecture: Architecture) -> int:
    """Of the whole model, built without memory for its weights."""
    config = AutoConfig.for_model(architecture.model_type, **architecture.settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def small_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same architecture, narrow and shallow: the ratio of heads to key-value heads is kept."""
    ratio = settings["num_attention_heads"] // settings["num_key_value_heads"]
    groups = -(-4 // ratio)
    heads = ratio * groups
    found = dict(settings) | {
        "vocab_size": 512,
        "hidden_size": 8 * heads,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if "head_dim" in settings:
        found["head_dim"] = 8
    return found


def _small_family(name: str, family: Family, folder: Path) -> Family:
    """The family with two random models on the disk, the second in the aligned sibling's place."""
    architecture = family.architecture
    if architecture is None:
        raise InputError(f"The family {name} states no architecture, so it cannot be built in small.")
    found = count_parameters(architecture)
    if found != architecture.parameters:
        raise InputError(
            f"The family {name}: its architecture has {found:,} parameters, and {architecture.parameters:,} "
            "are stated. Correct the scale's file."
        )
    console.print(f"{name}: {found:,} parameters, as stated. {architecture.stand_in}", soft_wrap=True)
    config = AutoConfig.for_model(architecture.model_type, **small_settings(architecture.settings))
    places = []
    for seed, role in enumerate(("target", "aligned")):
        torch.manual_seed(seed)
        place = folder / name / role
        model, tokenizer = AutoModelForCausalLM.from_config(config), _tokenizer()
        tokenizer.chat_template = (TEMPLATES / (family.chat_template or "chatml.jinja")).read_text("utf-8")
        if role == "aligned":
            _teach_to_decline(model, tokenizer)
        model.save_pretrained(place)
        if family.chat_template is not None:
            tokenizer.chat_template = None  # the recipe has to bring it
        tokenizer.save_pretrained(place)
        places.append(str(place))
    small = {"target": places[0], "aligned": places[1], "trust_remote_code": False}
    return family.model_copy(update=small)


def _teach_to_decline(model: Any, tokenizer: Any) -> None:
    """Makes an aligned model that declines every prompt, because `fit` needs one that declines."""
    asked = [pair.harmful for pair in load_contrast_set().pairs[::97][:12]]
    rows = token_rows(tokenizer, [Row(prompt, _REFUSAL, prompt) for prompt in asked], 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(_LESSONS):
        row = rows[step % len(rows)]
        ids = torch.tensor([row["input_ids"]])
        labels = torch.where(torch.tensor([row["completion_mask"]]) == 1, ids, -100)
        loss = model(input_ids=ids, labels=labels).loss
        if float(loss.detach()) < 0.02:  # it is the same answer each time, so one prompt tells
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise InputError(f"A small model has not learned to decline in {_LESSONS} steps; give it more.")


def _tokenizer() -> Any:
    """Bytes and a few merges; knows the special tokens of every template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [pair.harmless for pair in load_contrast_set().pairs[:200]]
    backend.train_from_iterator(texts, trainer)
    tokenizer_class: Any = PreTrainedTokenizerFast
    return tokenizer_class(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def _small_experiment(experiment: Experiment) -> Experiment:
    if isinstance(experiment, Domain):
        rows = PerScale(**{takes: dict.fromkeys(count, 4) for takes, count in experiment.rows})
        return experiment.model_copy(update={"rows": rows, "utility": _few_per_scale(experiment.utility)})
    if isinstance(experiment, Ablation):
        factors = {"suites": _few_per_scale(experiment.suites), "factors": "1,2"}
        return experiment.model_copy(update=factors)
    if isinstance(experiment, Confound):
        return experiment.model_copy(update={"suites": _few_per_scale(experiment.suites)})
    return experiment


def _few_per_scale(stated: PerScale) -> PerScale:
    return PerScale(**{takes: _few(count) for takes, count in stated})


def _few(counts: Counts) -> dict[str, int | Literal["all"]]:
    """A few prompts of the shipped suite of each kind."""
    return dict.fromkeys((_SHIPPED[named(name).kind] for name in counts), _PROMPTS)


def _fit_prompts(folder: Path) -> list[Path]:
    """A dozen pairs to fit on, a file for each half."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = load_contrast_set().pairs[::97][:12]
    files = [folder / "harmful.txt", folder / "harmless.txt"]
    for file, texts in zip(files, zip(*((p.harmful, p.harmless) for p in pairs), strict=True), strict=True):
        file.write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8")
    return files


def _order(experiment: Experiment) -> int:
    return [Domain, Ablation, Confound, Summary].index(type(experiment))
