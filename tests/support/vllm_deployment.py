"""Tiny models with aligners on disk, vLLM engines for them, and the transformers engine's results."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from inferaligner.aligner import Aligner
from inferaligner.method.activations import record_activations
from inferaligner.method.decision import Decision
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import dissect
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.images import Prompt
from inferaligner.vllm import engine_args
from inferaligner.vllm.recording import RecordingEngine
from tests.support.tiny_aligner import tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = [
    "How do I bake a loaf of bread at home?",
    "Why is the sky blue?",
    "Write a short story about a sailor and a map, and let the sailor find the old bottle on the beach.",
    "Which flour should I choose?",
    "Explain the evening in a few words.",
    "Explain in a few words why the sky is blue during the day and red in the evening, and say what a child "
    "who watches from the window would see.",
    "A map!",
    "Who found the bottle?",
]

# vLLM's attention on a CPU wants heads of at least 32.
WIDTH = 128
WIDE_ENOUGH = {"hidden_size": WIDTH}

DEEP_READS = (GateRead(1, 0), GateRead(1, 3), GateRead(2, 0), GateRead(2, 5))


class Served(Protocol):
    """A deployment that an engine can serve."""

    @property
    def model(self) -> Any: ...
    @property
    def aligner(self) -> Aligner: ...
    @property
    def target(self) -> Path: ...
    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class Deployment:
    """A model with its aligner, in memory and on disk. Results of transformers are computed once."""

    model: Any
    tokenizer: Any
    aligner: Aligner
    target: Path
    folder: Path
    known: dict[Any, Any] = field(default_factory=dict)

    def tokens(self, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
        return encode_chats(self.tokenizer, list(prompts))

    def expected(self, tokens: Sequence[int], length: int) -> tuple[Decision, list[int]]:
        """The result of transformers for one prompt: the decision, and `length` greedy tokens."""
        key = ("gated", tuple(tokens), length)
        if key not in self.known:
            with self.aligner.apply(self.model, self.tokenizer) as guard:
                answer = self._answer(tokens, length)
                self.known[key] = guard.decisions[0], answer
        decision, answer = self.known[key]
        return decision, list(answer)

    def bare(self, tokens: Sequence[int], length: int) -> list[int]:
        """The tokens without the aligner."""
        key = ("bare", tuple(tokens), length)
        if key not in self.known:
            self.known[key] = self._answer(tokens, length)
        return list(self.known[key])

    def _answer(self, tokens: Sequence[int], length: int) -> list[int]:
        ids = torch.tensor([list(tokens)])
        with torch.no_grad():
            out = self.model.generate(
                ids, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
            )
        return list(out[0, ids.shape[1] :].tolist())


def deploy(
    folder: Path,
    family: str = "llama",
    *,
    reads: Sequence[GateRead] = (GateRead(1),),
    layers: Sequence[int] = (2, 3),
    positions: str = "from_gate",
    strength: float = 2.0,
    monitor: int | None = None,
    adapter: bool = False,
    **settings: Any,
) -> Deployment:
    """Writes a tiny model and an aligner whose gate opens on half of `PROMPTS`.

    With `monitor`, a layer, the answers to half of the others are opened on the way. With `adapter` the model
    that the aligner is made for has a LoRA adapter, in the folder `medicine`.
    """
    model = tiny_model(family, **{**WIDE_ENOUGH, **settings})
    model.save_pretrained(folder / "target")
    tiny_tokenizer().save_pretrained(folder / "target")
    if adapter:
        model = _with_adapter(model, folder)
    # From the folder, as the engine loads it: some families have a tokenizer class that adds tokens.
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    artifact = tiny_artifact(model, tokenizer, layers=layers).with_steering(
        positions=positions, strength=strength
    )
    gate, scores = half_open(model, tokenizer, PROMPTS, reads)
    artifact = replace(artifact, gate=gate)
    if monitor is not None:
        closed = [
            tokens
            for tokens, score in zip(encode_chats(tokenizer, PROMPTS), scores, strict=True)
            if score <= 0
        ]
        artifact = replace(artifact, monitor=_monitor(model, closed, monitor))
    aligner = Aligner(artifact)
    return Deployment(
        model, tokenizer, aligner, folder / "target", aligner.save_pretrained(folder / "aligner")
    )


def half_open(
    model: Any, reader: Any, prompts: Sequence[Prompt], reads: Sequence[GateRead]
) -> tuple[GuidanceGate, Tensor]:
    """A random gate that opens on half of some prompts, and its score of each of them."""
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(len(reads), dissect(model).width, generator=draw)
    gate = GuidanceGate("whitened", tuple(reads), weights, 0.0)
    recorded = record_activations(
        model, encode_chats(reader, prompts), layers=gate.layers, offsets=gate.offsets
    )
    places = recorded.values, recorded.layers, recorded.offsets
    scores = gate.scores(*places).sort().values
    middle = len(scores) // 2
    gate = gate.with_bias(-float(scores[middle - 1] + scores[middle]) / 2)
    return gate, gate.scores(*places)


def _with_adapter(model: Any, folder: Path) -> Any:
    """The model with a LoRA adapter that changes its answers."""
    import peft

    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(folder / "medicine")
    return wrapped


def _monitor(model: Any, prompts: Sequence[Sequence[int]], layer: int) -> AnswerMonitor:
    """A monitor that opens half of the answers to some prompts, none of them at once."""
    tokens = 24
    made = AnswerMonitor(
        "random", layer, 3, torch.randn(WIDTH, generator=torch.Generator().manual_seed(2)), 0.0, 0.0
    )
    scores = []
    for prompt in prompts:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([list(prompt)]),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
            hidden = model(ids, output_hidden_states=True).hidden_states[layer + 1]
        scores.append(made.token_scores(hidden[0, len(prompt) :]))
    values = torch.stack(scores)
    values = values - values[:, 0].max()  # so that the first token opens nothing
    made = replace(made, centre=-float(torch.stack(scores)[:, 0].max()))
    highest = made.running_scores(values).amax(1).sort().values
    middle = len(highest) // 2
    return made.with_bias(-float(highest[middle - 1] + highest[middle]) / 2)


def score_of(decision: Decision, deployment: Served, rounding: float = 1e-5) -> Any:
    """A value to compare a float32 score with: `score == score_of(…)`.

    A score is a small difference of large numbers: its rounding is relative to the terms that cancel, and the
    bias is of their size.
    """
    size = abs(decision.score) + abs(deployment.aligner.artifact.gate.bias)
    return pytest.approx(decision.score, abs=rounding * (1 + size))


@contextmanager
def engine(deployment: Served, *, plugin: bool = True, **options: Any) -> Iterator[Any]:
    """A vLLM engine in this process; `options` are vLLM's own, and `gate` holds the plugin's."""
    from vllm.distributed import cleanup_dist_env_and_memory

    from vllm import LLM

    _repair_kernel_search()
    freeze_imports()
    choices = options.pop("gate", {})
    if choices.get("async_scheduling"):
        _allow_async_scheduling()
    arguments = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 256,
        "num_gpu_blocks_override": 128,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        **(engine_args(deployment.folder, **choices) if plugin else {}),
        **options,
    }
    with classes_kept(deployment.model):
        llm = LLM(str(deployment.target), **arguments)
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            cleanup_dist_env_and_memory()
            gc.collect()


RECORDING_OPTIONS = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 128,
    "distributed_executor_backend": "uni",
    "disable_log_stats": True,
}


@contextmanager
def recording(deployment: Deployment, **options: Any) -> Iterator[RecordingEngine]:
    """An engine that records activations; `options` are vLLM's own."""
    from vllm.distributed import cleanup_dist_env_and_memory

    import vllm  # noqa: F401

    freeze_imports()
    try:
        with (
            classes_kept(deployment.model),
            RecordingEngine(str(deployment.target), {**RECORDING_OPTIONS, **options}) as engine,
        ):
            yield engine
    finally:
        cleanup_dist_env_and_memory()


@contextmanager
def classes_kept(model: Any) -> Iterator[None]:
    """Restores the model's classes on leaving: vLLM changes them where it runs the code of transformers, and
    the transformers engine of the next test could not use them."""
    before = {
        kind: (kind.__bases__, dict(vars(kind)))
        for kind in {type(module) for module in model.modules()}
        if kind.__module__.startswith("transformers.")
    }
    try:
        yield
    finally:
        for kind, (bases, attributes) in before.items():
            for name, value in dict(vars(kind)).items():
                if name not in attributes:
                    delattr(kind, name)
                elif value is not attributes[name]:
                    setattr(kind, name, attributes[name])
            kind.__bases__ = bases


def _repair_kernel_search() -> None:
    """vLLM 0.32 cannot start a second engine on a CPU once numba is imported (speculation imports it): it
    reads `__dict__` of every object in every module, and one of llvmlite's is not a dictionary."""
    from vllm.triton_utils import dispatcher

    def safe(value: Any) -> Any:
        attributes = vars(value)
        return attributes if isinstance(attributes, (dict, MappingProxyType)) else {}

    dispatcher.vars = safe


def freeze_imports() -> None:
    """Freezes imported modules once. vLLM collects garbage nine times per engine, through all modules that
    it has imported, which takes more than half of a test's time; its own freezing is switched off."""
    if getattr(gc.freeze, "__module__", "gc") == "gc":
        gc.collect()
        gc.freeze()
        gc.freeze = gc.unfreeze = lambda: None


def _allow_async_scheduling() -> None:
    """vLLM disables it on a CPU because it gains nothing there; it works nevertheless."""
    from vllm.platforms.cpu import CpuPlatform

    real = CpuPlatform.check_and_update_config
    if getattr(real, "keeps_async", False):
        return

    def kept(vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        real(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    kept.keeps_async = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = staticmethod(kept)


def generate(
    llm: Any, tokens: Sequence[Sequence[int]], length: int = 8, *, lora_request: Any = None, **settings: Any
) -> list[Any]:
    """Outputs for prompts of token ids, greedy and of one length by default."""
    from vllm import SamplingParams

    parameters = SamplingParams(**{"max_tokens": length, "temperature": 0, "ignore_eos": True, **settings})
    prompts = [{"prompt_token_ids": list(ids)} for ids in tokens]
    return list(llm.generate(prompts, parameters, use_tqdm=False, lora_request=lora_request))
