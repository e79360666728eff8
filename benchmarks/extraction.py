"""The cost of recording activations, against the bare forward passes and against other libraries.

    python -m benchmarks.extraction --prompts 128 --repeats 10 --peers PEERS

All decoder layers at the last prompt token, on the shipped contrast set. Two metrics: `recording`, from
token ids, where the bare passes get the very tensors that `record_activations` gives the model, without LM
head and KV cache; `from text`, tokenising included, where the other libraries do the same job on the same
rendered prompts. Before anything is timed, every library's activations are compared with ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Peer, find_peers
from benchmarks.rounds import Arm, Stopwatch, machine, ratio_table, report_console, run_rounds, write_json
from benchmarks.subjects import add_subject_options, check_subject_options, load_subject
from inferaligner.method.activations import record_activations
from inferaligner.models.anatomy import backbone, dissect
from inferaligner.prompts.chat import render_chat
from inferaligner.prompts.contrast import load_contrast_set

BARE, RECORDED, OURS = "bare forward passes", "record_activations", "inferaligner"
TARGET = 1.15


def main() -> None:
    """Parses the command line, compares the values, runs the rounds, prints the tables."""
    options = parse_options()
    console = report_console()
    model, tokenizer = load_subject(options)
    watch = Stopwatch(torch.device(options.device), options.clock)
    pairs = prompt_pairs(tokenizer, options.prompts // 2)
    texts = [text for pair in pairs for text in pair]
    ids = encode(model, tokenizer, texts)
    passes, ours = record_passes(model, ids)
    arms = recording_arms(model, ids, passes, watch)
    if tokenizer is not None:
        arms[OURS] = _timed(
            "from text", lambda: record_activations(model, encode(model, tokenizer, texts)), watch
        )
        peers, missing = find_peers(options.peers)
        for peer in peers:
            for batch in sorted({peer.own_batch, options.peer_batch}):
                agreement = _agreement(peer, peer.extract(model, tokenizer, pairs, batch), ours)
                name = f"{peer.name}, batch {batch}"
                console.print(f"{name} ({peer.version}): {agreement}")

                def extract(peer: Peer = peer, batch: int = batch) -> Tensor:
                    return peer.extract(model, tokenizer, pairs, batch)

                arms[name] = _timed("from text", extract, watch)
        for name, reason in missing.items():
            console.print(f"{name}: {reason}")

    timings = run_rounds(arms, rounds=options.repeats, warmup=options.warmup, device=watch.device)
    console.print(
        f"{options.model}: {dissect(model).depth} layers, {options.dtype}; {len(ids)} prompts, "
        f"{sum(map(len, ids))} tokens in {len(passes)} batches. {options.repeats} rounds, "
        f"{options.clock} clock. " + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    baselines = {"recording": BARE, "from text": OURS}
    for metric in timings.seconds:
        targets = {RECORDED: TARGET}
        console.print(ratio_table(metric, timings, metric, baselines[metric], targets=targets))
    if options.json:
        write_json(Path(options.json), vars(options), timings, baselines)


def recording_arms(
    model: Any, ids: Sequence[Sequence[int]], passes: Sequence[Mapping[str, Any]], watch: Stopwatch
) -> dict[str, Arm]:
    """The metric `recording`: the bare `passes` (of `record_passes`), and `record_activations` of `ids`."""
    body = backbone(model)

    @torch.no_grad()
    def bare() -> None:
        for arguments in passes:
            body(**arguments)

    return {
        BARE: _timed("recording", bare, watch),
        RECORDED: _timed("recording", lambda: record_activations(model, ids), watch),
    }


def _timed(metric: str, work: Callable[[], object], watch: Stopwatch) -> Arm:
    def run() -> Mapping[str, float]:
        begin = watch.mark()
        work()
        return {metric: watch.seconds(begin, watch.mark())}

    return run


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of a measurement, from the command line or from `arguments`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--prompts", type=int, default=128, help="of the contrast set, evenly spaced")
    parser.add_argument("--peers", action="append", default=[], metavar="DIR", help="a folder to import from")
    parser.add_argument("--peer-batch", type=int, default=32, help="beside each peer's own default")
    options = parser.parse_args(arguments)
    check_subject_options(parser, options)
    return options


def prompt_pairs(tokenizer: Any, count: int) -> list[tuple[str, str]]:
    """Harmful prompts with their harmless twins, plain and wrapped, as the chat template renders them."""
    part = load_contrast_set().part("extraction")
    # Twins stand beside each other in a part.
    pairs = [(part[at], part[at + 1]) for at in range(len(part)) if part[at].harmful]
    chosen = [pairs[number * len(pairs) // count] for number in range(min(count, len(pairs)))]
    texts = [(harmful.text, harmless.text) for harmful, harmless in chosen]
    if tokenizer is None:
        return texts
    return [(render_chat(tokenizer, first), render_chat(tokenizer, second)) for first, second in texts]


def encode(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The prompts' token ids; random ones without a tokenizer."""
    if tokenizer is not None:
        encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return encoded
    # A random model has no tokenizer; lengths as a common one would make them, and a chat template's head.
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(10, vocabulary, (25 + len(text) // 5,), generator=generator).tolist() for text in texts
    ]


def record_passes(model: Any, ids: Sequence[Sequence[int]]) -> tuple[list[dict[str, Any]], Tensor]:
    """The arguments of every forward pass of one recording, and the activations that it recorded."""
    passes: list[dict[str, Any]] = []

    def note(module: object, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        passes.append(dict(kwargs))

    handle = backbone(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        recorded = record_activations(model, ids)
    finally:
        handle.remove()
    return passes, recorded.at(0)


def _agreement(peer: Peer, theirs: Tensor, ours: Tensor) -> str:
    """How near a peer's activations are to ours, in words."""
    if theirs.shape != ours.shape:
        return f"its activations have shape {list(theirs.shape)}, ours {list(ours.shape)}"
    layers = slice(0, -1) if peer.normed_last else slice(None)
    mine, other = ours[:, layers].float(), theirs[:, layers].float().cpu()
    furthest = ((mine - other).norm(dim=-1) / mine.norm(dim=-1)).max()
    without = " without the last layer, which it takes after the final norm" if peer.normed_last else ""
    return f"its activations differ from ours by {float(furthest):.1e} of their norm at most{without}"


if __name__ == "__main__":
    main()
