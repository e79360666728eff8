"""One command for a machine with a GPU: whether steering is correct there, and its cost.

    make gpu            or    PYTHONPATH=src python3 -m benchmarks.gpu

It needs torch, transformers and what these two bring along, no network and no weights: models are made on the
spot from seeds. Steps, the most important first, within one budget of `--seconds`:

- golden checks in float32 and bfloat16 (tests/support/golden.py) on several families of tiny models;
- decoding that `generate` compiles by itself, with CUDA graphs, against eager decoding;
- overhead on Llama-2-7B's shape in bfloat16: bare, gate closed, gate open, in turns; batches of 1, 8 and 64;
- extraction on the same model, against its bare forward passes;
- overhead of compiled decoding, on eight layers of the same shape.

The file holds every finished step at any moment. Exit code 1: a check failed; 3: a step ended in an error or
was cut off; 0: otherwise, also where the budget was too short for the last steps. Without a GPU the sizes are
tiny, the report says so, and its durations mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tests.support import golden
from transformers import CompileConfig

from benchmarks import extraction, overhead
from benchmarks.budget import BudgetedRun, Step, StepRecord, describe
from benchmarks.rounds import Stopwatch, Timings, machine, measured, run_rounds
from benchmarks.subjects import load_subject
from inferaligner.steering.guard import Guard
from inferaligner.version import __version__

SCHEMA = 1
BUDGET = 540.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ARMS = (overhead.CLOSED, overhead.OPEN)


@dataclass(frozen=True)
class Sizes:
    """The sizes of all steps."""

    families: tuple[str, ...]
    compiled_layers: int
    model: str
    dtype: str
    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int
    warmup: int
    prompts: int  # of the extraction
    cut_layers: int  # of the model whose decoding is compiled
    compiled_rounds: int
    needs: Mapping[str, float]  # seconds without which a step does not begin, by kind of step


# Seconds after which a step is cut off, by kind of step. Those up to the extraction are the budget together,
# so that no step takes away the time of a more important one.
LIMITS = {
    "golden": 75.0,
    "compiled": 90.0,
    "overhead 1": 90.0,
    "overhead": 60.0,
    "overhead 64": 90.0,
    "extraction": 45.0,
    "overhead compiled": 240.0,
}
FULL = Sizes(
    families=("llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2", "gpt_neox", "olmo2", "qwen3_moe"),
    compiled_layers=4,
    model="random-7b",
    dtype="bfloat16",
    batches=(1, 8, 64),
    prompt_tokens=512,
    new_tokens=32,
    rounds=10,
    warmup=2,
    prompts=128,
    cut_layers=8,
    compiled_rounds=4,
    needs={
        "golden": 10.0,
        "compiled": 20.0,
        "overhead 1": 30.0,
        "overhead": 20.0,
        "overhead 64": 35.0,
        "extraction": 10.0,
        "overhead compiled": 60.0,
    },
)
TINY = replace(
    FULL,
    families=("llama",),
    compiled_layers=2,
    model="random-tiny",
    batches=(1, 2),
    prompt_tokens=16,
    new_tokens=4,
    rounds=3,
    warmup=1,
    prompts=8,
    cut_layers=2,
    compiled_rounds=2,
    needs=dict.fromkeys(FULL.needs, 1.0),
)


class Workbench:
    """The steps' work. The large model is made by the first step that needs it, and kept for the others."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        self.device = device
        self._model: Any = None

    def steps(self, share: float) -> list[Step]:
        """In the order of their worth; limits are scaled by `share` of the usual budget."""
        sizes = self.sizes

        def step(name: str, kind: str, work: Any) -> Step:
            return Step(name, sizes.needs[kind], LIMITS[kind] * share, work)

        steps = [step(f"golden {name}", "golden", partial(self.golden, DTYPES[name])) for name in DTYPES]
        first, second = (
            step(f"compiled decoding {name}", "compiled", partial(self.compiled, DTYPES[name]))
            for name in ("bfloat16", "float32")
        )
        steps.append(first)
        for batch in sizes.batches:
            kind = f"overhead {batch}" if f"overhead {batch}" in LIMITS else "overhead"
            steps.append(step(f"overhead batch {batch}", kind, partial(self.overhead, batch)))
        steps.append(step("extraction", "extraction", self.extraction))
        steps.append(second)
        steps.append(step("overhead compiled", "overhead compiled", self.overhead_compiled))
        return steps

    # -- right ---------------------------------------------------------------------------------------

    def golden(self, dtype: torch.dtype, record: StepRecord) -> None:
        """Every check on every family. That a family's bare model does not run is an error, not a fault."""
        for family in self.sizes.families:
            begin = time.monotonic()
            subject = golden.Subject(family, self.device, dtype)
            try:
                golden.CONTROL(subject)
            except Exception as error:
                record.error(family, f"the bare model cannot be compared with itself: {describe(error)}")
                continue
            for name, check in golden.CHECKS.items():
                _run_check(record, f"{family}: {name}", partial(check, subject))
            record.say(f"{family}: {len(golden.CHECKS)} checks in {time.monotonic() - begin:.1f} s")

    def compiled(self, dtype: torch.dtype, record: StepRecord) -> None:
        """CUDA graphs as transformers makes them for a static cache; on a CPU, tracing without a compiler."""
        subject = golden.Subject("llama", self.device, dtype, self.sizes.compiled_layers)
        golden.CONTROL(subject)
        check = partial(golden.compiled_decoding_is_eager_decoding, subject, self._compile_options())
        _run_check(record, "llama: compiled decoding is eager decoding", check)

    def _compile_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cache_implementation": "static"}
        if self.device.type == "cuda":
            options["compile_config"] = CompileConfig(mode="reduce-overhead")
        else:
            tracing = CompileConfig(backend="eager", mode=None)  # type: ignore[arg-type]
            tracing._compile_all_devices = True  # type: ignore[assignment]
            options["compile_config"] = tracing
        return options

    # -- costs ---------------------------------------------------------------------------------------

    def overhead(self, batch: int, record: StepRecord) -> None:
        """Prefill and eager decoding: bare, closed, open, each once a round."""
        options = overhead.parse_options(self._subject("--batch", batch))
        model = self._large(options, record)
        work = overhead.make_work(model, options)
        plans, rows = overhead.forced_plans(work, overhead.make_plan(model, options))
        plans = {name: plans[name] for name in ARMS}
        _run_check(record, "decisions, and tokens of closed rows", partial(_check_arms, work, plans, rows))
        self._rounds(overhead.overhead_arms(work, plans), overhead.BARE, overhead.TARGETS, record)

    def extraction(self, record: StepRecord) -> None:
        """All layers at the last token, from ids that are as long as the contrast set's prompts."""
        options = overhead.parse_options(self._subject("--batch", 1))
        model = self._large(options, record)
        pairs = extraction.prompt_pairs(None, self.sizes.prompts // 2)
        ids = extraction.encode(model, None, [text for pair in pairs for text in pair])
        passes, _ = extraction.record_passes(model, ids)
        record.figures({"prompts": len(ids), "tokens": sum(map(len, ids)), "passes": len(passes)})
        arms = extraction.recording_arms(model, ids, passes, Stopwatch(self.device))
        targets = {"recording": {extraction.RECORDED: extraction.TARGET}}
        self._rounds(arms, extraction.BARE, targets, record)

    def overhead_compiled(self, record: StepRecord) -> None:
        """Decoding in CUDA graphs. Changed hooks make it compile again, before an arm is timed."""
        self._model = None
        layers = self.sizes.cut_layers
        options = overhead.parse_options(self._subject("--batch", 1, "--layers", layers))
        model, _ = load_subject(options)
        record.figures({"layers": layers})
        work = overhead.make_work(model, options)
        plans, _ = overhead.forced_plans(work, overhead.make_plan(model, options))
        compiled = replace(work, settings=self._compile_options())

        def arm(name: str) -> Mapping[str, float]:
            with contextlib.nullcontext() if name == overhead.BARE else Guard(model, plans[name]):
                compiled.generate()  # compiles; and the graphs are recorded within its first steps
                compiled.generate()
                return {"decode": compiled.generate()[1]["decode"]}

        arms = {name: partial(arm, name) for name in (overhead.BARE, *ARMS)}
        self._rounds(
            arms, overhead.BARE, overhead.TARGETS, record, rounds=self.sizes.compiled_rounds, warmup=0
        )

    def _subject(self, *more: object) -> list[str]:
        sizes = self.sizes
        settings = {
            "--model": sizes.model, "--dtype": sizes.dtype, "--device": self.device,
            "--prompt-tokens": sizes.prompt_tokens, "--new-tokens": sizes.new_tokens,
        }  # fmt: skip
        return [str(item) for pair in settings.items() for item in pair] + [str(item) for item in more]

    def _large(self, options: argparse.Namespace, record: StepRecord) -> Any:
        if self._model is None:
            begin = time.monotonic()
            self._model, _ = load_subject(options)
            weights = sum(parameter.numel() for parameter in self._model.parameters())
            record.say(
                f"{options.model}: {weights / 1e9:.2f}e9 weights made in {time.monotonic() - begin:.1f} s"
            )
        return self._model

    def _rounds(
        self,
        arms: Mapping[str, Any],
        baseline: str,
        targets: Mapping[str, Mapping[str, float]],
        record: StepRecord,
        rounds: int | None = None,
        warmup: int | None = None,
    ) -> None:
        timings = run_rounds(
            arms,
            rounds=rounds or self.sizes.rounds,
            warmup=self.sizes.warmup if warmup is None else warmup,
            device=self.device,
            deadline=record.deadline,
            advance=record.advance,
        )
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        ratios = measured(timings, dict.fromkeys(timings.seconds, baseline))
        record.figures({**ratios, "baseline": baseline, "targets": targets, "peak_bytes": memory})
        for metric in timings.seconds:
            record.say(_in_words(timings, metric, baseline))


def _run_check(record: StepRecord, name: str, check: Any) -> None:
    """Memory and features that are missing here are errors; everything else that is raised is a fault."""
    try:
        note = check()
    except (torch.OutOfMemoryError, NotImplementedError, ImportError) as error:
        record.error(name, describe(error))
    except Exception as error:
        if type(error).__module__.startswith("torch."):  # the compiler's own troubles
            record.error(name, describe(error))
        else:
            record.check(name, str(error) if isinstance(error, golden.GoldenError) else describe(error))
    else:
        record.check(name, None, note)


def _check_arms(work: overhead.Work, plans: Any, rows: Any) -> str:
    overhead.check_arms(work, plans, rows)
    return "as forced; bit-identical"


def _in_words(timings: Timings, metric: str, baseline: str) -> str:
    parts = [f"{baseline} {1000 * timings.median(metric, baseline):.2f} ms"]
    for arm in timings.seconds[metric]:
        if arm != baseline:
            spread = timings.ratio(metric, arm, baseline)
            parts.append(f"{arm} {spread.median:.4f} [{spread.lower:.3f}-{spread.upper:.3f}]")
    return f"{metric}: " + ", ".join(parts)


def print_report(steps: Mapping[str, Mapping[str, Any]], tiny: bool, gpu: str) -> None:
    """One table: a row for each step, and under it one for each ratio."""
    title = f"inferaligner {__version__} on {gpu}" + (", TINY SIZES: no durations to go by" if tiny else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("step", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for column in ("s", "checks", "bare, ms", "ratio", "quartiles", "rounds", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, entry in steps.items():
        checks = entry["checks"]
        passed = f"{sum(check['passed'] for check in checks)}/{len(checks)}" if checks else ""
        table.add_row(name, entry["status"], f"{entry.get('seconds', 0):.0f}", passed)
        for metric, arms in entry.get("ratios", {}).items():
            bare = statistics.median(entry["seconds_by_round"][metric][entry["baseline"]])
            for arm, spread in arms.items():
                if arm == entry["baseline"]:
                    continue
                target = None if tiny else entry["targets"].get(metric, {}).get(arm)
                met = (
                    "" if target is None else f"{target} {'met' if spread['median'] <= target else 'MISSED'}"
                )
                table.add_row(
                    f"  {metric}, {arm}", "", "", "", f"{1000 * bare:.2f}",
                    f"{spread['median']:.4f}", f"{spread['lower']:.3f}-{spread['upper']:.3f}",
                    str(spread["rounds"]), met,
                )  # fmt: skip
    Console(highlight=False, width=max(130, Console().width)).print(table)


def main() -> int:
    """Parses the command line, runs the steps, prints the table; the exit code."""
    # The budget is for the whole command: the processor time so far is the time of the imports.
    begun = time.monotonic() - time.process_time()
    options = _options()
    cuda = torch.cuda.is_available()
    tiny = options.tiny or not cuda
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(1)
    gpu = torch.cuda.get_device_name() if cuda else "a CPU"
    kind = gpu.lower().replace(" ", "-") if cuda else "cpu"
    file = options.json or Path(__file__).parent / "results" / f"gpu-{kind}{'-tiny' if tiny else ''}.json"
    facts = {
        "schema": SCHEMA, "inferaligner": __version__, "tiny": tiny, "machine": machine(),
        "seconds": options.seconds,
    }  # fmt: skip
    earlier = _earlier(file, facts) if options.resume else None
    run = BudgetedRun(file, facts, options.seconds, begun, earlier)
    try:
        run.write()
    except OSError as error:
        raise SystemExit(f"--json {file}: cannot write the results there ({error}).") from None
    run.say(f"{gpu}, torch {torch.__version__}{', TINY SIZES' if tiny else ''}; results in {file}")
    if cuda:
        torch.ones(1, device=device).sum().item()  # the device starts here, and not in the first check
    bench = Workbench(TINY if tiny else FULL, device)
    steps = bench.steps(options.seconds / BUDGET)
    if options.only:
        names = ", ".join(step.name for step in steps)
        steps = [step for step in steps if any(part in step.name for part in options.only)]
        if not steps:
            raise SystemExit(
                f"--only {' '.join(options.only)}: no step has this in its name. Steps: {names}."
            )
    run.run(steps)
    print_report(run.steps, tiny, gpu)
    for name, entry in run.steps.items():
        faults = [f"FAILED {one['name']}: {one['note']}" for one in entry["checks"] if not one["passed"]]
        errors = [f"error in {part}: {reason}" for part, reason in entry.get("errors", {}).items()]
        for line in [*faults, *errors, *([entry["note"]] if entry.get("note") else [])]:
            print(f"{name}: {line}")
    return run.exit_code()


def _earlier(file: Path, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The steps in the file, if it is of the same machine, versions and sizes."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = all(report.get(name) == facts[name] for name in ("schema", "inferaligner", "tiny", "machine"))
    steps: Mapping[str, Any] | None = report.get("steps") if same else None
    return steps


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=BUDGET, help="budget (default: %(default)g)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as without a GPU: tries the command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/gpu-*.json")
    parser.add_argument("--resume", action="store_true", help="keep the steps that passed according to FILE")
    parser.add_argument("--only", action="append", metavar="PART", help="steps with this in their name")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error("--seconds: more than 0")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
