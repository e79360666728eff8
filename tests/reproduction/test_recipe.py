"""Recipes: every shipped one is complete, and a wrong one is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from reproduction.corpora.catalogue import declared as corpora
from reproduction.dry_run import count_parameters, small_settings
from reproduction.recipe import (
    HERE,
    SCALES,
    Ablation,
    Confound,
    Domain,
    ScaleConfig,
    Summary,
    from_environment,
    read_scale,
    read_scale_config,
)
from reproduction.training_settings import Training

from inferaligner.errors import InputError
from inferaligner.evaluation.methods.catalogue import declared as methods
from inferaligner.evaluation.suites.catalogue import declared as suites

_SCALES = ("small", "gpu", "paper")


@pytest.fixture(params=_SCALES)
def config(request: pytest.FixtureRequest) -> ScaleConfig:
    return read_scale_config(request.param)


def test_the_three_domains_and_every_figure_are_there(config: ScaleConfig) -> None:
    assert {"finance", "medicine", "mathematics", "table-1", "figure-4", "figure-5"} <= set(
        config.experiments
    )


def test_whatever_a_recipe_names_exists(config: ScaleConfig) -> None:
    for experiment in config.experiments.values():
        if isinstance(experiment, Domain):
            for _, rows in experiment.rows:
                assert set(rows) <= set(corpora())
            for _, asked in experiment.utility:
                assert set(asked) <= set(suites())
            assert set(experiment.methods) <= set(methods())
        elif isinstance(experiment, Ablation | Confound):
            config.domain(experiment.of)
            for _, asked in experiment.suites:
                assert set(asked) <= set(suites())
        else:
            assert isinstance(experiment, Summary)
            assert all(config.domain(name) for name in experiment.of)
    assert set(config.scale.safety_suites) <= set(suites())


def test_families_and_domains_train_with_settings_that_are_settings(config: ScaleConfig) -> None:
    domains = [e.training for e in config.experiments.values() if isinstance(e, Domain)]
    for family in config.scale.families.values():
        for domain in domains:
            more = getattr(domain, config.scale.takes)
            Training.model_validate(config.scale.training.model_dump() | family.training | more)
        assert family.template is None or Path(family.template).is_file()
    if config.scale.launcher is not None:
        assert (HERE / "accelerate" / config.scale.launcher).is_file()


@pytest.mark.parametrize("file", sorted((HERE / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_launches_are_configurations_that_accelerate_reads(file: Path) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    read = config_args.load_config_from_file(str(file))  # refuses keys that it does not know
    assert (read.num_processes, str(read.mixed_precision)) == (8, "bf16")
    plugin = pytest.importorskip("accelerate.utils").FullyShardedDataParallelPlugin
    assert set(read.fsdp_config) - {"fsdp_version"} <= {
        f"fsdp_{name}" for name in plugin.__dataclass_fields__
    }


def test_the_papers_settings() -> None:
    scale = read_scale("paper")
    assert set(scale.families) >= {
        "llama2-7b",
        "llama2-13b",
        "qwen-7b",
        "internlm-7b",
        "llama3.1-8b",
        "qwen3-8b",
    }
    training = scale.training
    assert (training.epochs, training.learning_rate, training.batch_size) == (2, 2e-5, 128)
    assert (training.max_length, training.rank, scale.safety.tokens) == (2048, None, 256)
    assert (scale.families["llama2-7b"].strength, scale.families["internlm-7b"].strength) == (4.0, 8.0)
    assert scale.safety_suites["advbench"] == 456
    assert scale.safety_sft.samples == 100


@pytest.mark.parametrize(
    ("scale", "family"), [(scale, family) for scale in _SCALES for family in read_scale(scale).families]
)
def test_architectures_have_the_parameters_that_are_stated(scale: str, family: str) -> None:
    architecture = read_scale(scale).families[family].architecture
    assert architecture is not None
    assert count_parameters(architecture) == architecture.parameters
    small = small_settings(architecture.settings)
    heads, groups = small["num_attention_heads"], small["num_key_value_heads"]
    stated = architecture.settings
    assert heads // groups == stated["num_attention_heads"] // stated["num_key_value_heads"]
    assert set(small) >= set(stated)


def test_a_scale_of_ones_own(tmp_path: Path) -> None:
    content = yaml.safe_load((SCALES / "small.yaml").read_text("utf-8"))
    content["families"] = {"mine": {"title": "Mine", "target": "./my-model", "aligned": "./my-chat"}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    config = read_scale_config(str(file))
    assert (config.name, config.scale.takes, list(config.scale.families)) == ("mine", "small", ["mine"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"famillies": {}}, "famillies: Extra inputs"),
        ({"families": {}}, "families: "),
        ({"training": {"epochs": 1}}, "training.learning_rate"),
    ],
)
def test_a_scale_that_says_something_unexpected(tmp_path: Path, change: dict[str, object], told: str) -> None:
    content = yaml.safe_load((SCALES / "small.yaml").read_text("utf-8")) | change
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_scale(file)


def test_names_that_are_none() -> None:
    with pytest.raises(InputError, match=r"no scale 'huge'\. Expected one of: gpu, paper, small"):
        read_scale("huge")
    with pytest.raises(InputError, match="no experiment 'table-9'"):
        read_scale_config("small").experiment("table-9")
    with pytest.raises(InputError, match="trains no model"):
        read_scale_config("small").domain("table-1")


def test_a_place_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE_IT_IS", "/models/one")
    assert from_environment("${WHERE_IT_IS}/x.gguf") == "/models/one/x.gguf"
    monkeypatch.delenv("WHERE_IT_IS")
    with pytest.raises(InputError, match="environment variable WHERE_IT_IS"):
        from_environment("${WHERE_IT_IS}")
