"""The contract with vLLM, compared with vLLM's sources and with the plugin.

The sources are read and never imported. `make test-vllm` downloads the wheels of versions that have no build
for CPUs into the folder `sources` of its environment.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferaligner.errors import InputError
from inferaligner.vllm import compatibility
from inferaligner.vllm.contract import (
    ATTRIBUTES,
    CALLS,
    CODE,
    CONTRACT,
    IMPORTS,
    OVERRIDES,
    PATCHES,
    REVIEWED,
    installed,
    main,
    violations,
)
from inferaligner.vllm.contract_statements import (
    Attributes,
    Call,
    Carrier,
    Code,
    DecoderLayer,
    Names,
    OneOf,
    Override,
    Reviewed,
    Statement,
)
from inferaligner.vllm.vllm_source import Sources

PLUGIN = Path(compatibility.__file__).parent
FILES = {file.name: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PLUGIN.glob("*.py"))}

PLACES = [
    *([installed()] if installed() is not None else []),
    *sorted((Path(sys.prefix) / "sources").glob("vllm-*.whl")),
]
with_sources = pytest.mark.parametrize(
    "place",
    PLACES or [pytest.param(None, marks=pytest.mark.skip(reason="no sources of vLLM: make test-vllm"))],
    ids=lambda place: getattr(place, "name", "none"),
)


# -- vLLM's sources ------------------------------------------------------------------------------------


@with_sources
def test_vllm_keeps_the_contract(place: Path) -> None:
    found = violations(Sources(place))
    assert not found, "\n".join(["vLLM no longer has what the plugin relies on:", *found])


@pytest.mark.skipif(not PLACES, reason="no sources of vLLM: make test-vllm")
def test_every_version_that_is_let_through_was_checked() -> None:
    checked = {".".join(Sources(place).version.split(".")[:2]) for place in PLACES}
    assert checked == set(compatibility.TESTED_VERSIONS), "make test-vllm fetches the others"


@with_sources
def test_nothing_of_vllm_is_hidden_by_accident(place: Path) -> None:
    """A name that a subclass of the plugin shares with its class in vLLM is in the contract."""
    sources = Sources(place)
    listed = {each.function.rpartition(".")[2] for each in OVERRIDES}
    listed |= {
        name for each in REVIEWED if each.owner == "AsyncModelRunnerOutput" for name in each.names.split()
    }
    hidden = []
    for ours, bases in SUBCLASSES.items():
        for module, base in bases:
            theirs = sources.attributes(module, base)
            hidden += [f"{ours}.{name}" for name in sorted((own(ours) & theirs) - listed)]
    assert not hidden


# -- the plugin ----------------------------------------------------------------------------------------

WORKERS = (("vllm.v1.worker.gpu_worker", "Worker"), ("vllm.v1.worker.cpu_worker", "CPUWorker"))
SUBCLASSES = {
    "GatedWorker": WORKERS,
    "RecordingWorker": WORKERS,
    "GatedScheduler": (("vllm.v1.core.sched.scheduler", "Scheduler"),),
    "_OutputWithDecisions": (("vllm.v1.outputs", "AsyncModelRunnerOutput"),),
}
"""The plugin's subclasses, and the classes of vLLM that they extend."""


def classes() -> dict[str, ast.ClassDef]:
    return {
        node.name: node
        for tree in FILES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Methods by name; `a = b = method` in the class gives it more names."""
    found = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    for each in node.body:
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Name) and each.value.id in found:
            found |= {
                target.id: found[each.value.id] for target in each.targets if isinstance(target, ast.Name)
            }
    return found


def on_self(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, context)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }


def own(name: str) -> set[str]:
    """Methods and attributes that one of the plugin's classes defines."""
    node = classes()[name]
    return set(methods(node)) | on_self(node, ast.Store)


def parameters(function: ast.FunctionDef) -> str:
    """As they stand in the contract: names alone, without `self`."""
    arguments = function.args
    names = [each.arg for each in arguments.args][1:]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    assert not arguments.kwonlyargs, function.name
    return ", ".join(names)


def listed_names(owners: set[str]) -> set[str]:
    """Attributes and methods in the contract that belong to these classes of vLLM."""
    found: set[str] = set()
    for each in (*ATTRIBUTES, *CODE):
        if isinstance(each, Attributes) and each.owner in owners:
            found |= set(each.names.split())
    for each in (*CALLS, *OVERRIDES, *PATCHES):
        owner, _, name = each.function.rpartition(".")
        found |= {name} if owner in owners else set()
    return found


def test_every_import_is_listed() -> None:
    found = {
        (node.module, alias.name)
        for tree in FILES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm"
        for alias in node.names
    }
    assert found == {(each.module, name) for each in IMPORTS for name in each.names.split()}


def test_every_override_is_listed_as_it_is() -> None:
    listed = {(each.module, *each.function.split(".")): each.ours for each in OVERRIDES}
    defined = set()
    for ours, bases in SUBCLASSES.items():
        for name, function in methods(classes()[ours]).items():
            calls_super = f"super().{name}(" in ast.unparse(function)
            for module, base in bases:
                key = module, base, name
                assert key in listed or not calls_super, f"{ours}.{name} is not in the contract"
                if key in listed:
                    defined.add(key)
                    # A subclass may take on more of them.
                    assert listed[key] == parameters(function), key
    assert set(listed) == defined, "the contract lists overrides that the plugin does not have"


def test_a_wrapped_output_hands_every_method_on() -> None:
    """Also the methods of the newest version: a class without an abstract method cannot be instantiated."""
    (known,) = (each for each in REVIEWED if each.owner == "AsyncModelRunnerOutput")
    assert set(known.names.split()) <= set(methods(classes()["_OutputWithDecisions"]))


def test_everything_that_subclasses_take_from_vllm_is_listed() -> None:
    missing = []
    for ours, bases in SUBCLASSES.items():
        taken = on_self(classes()[ours], ast.Load) - own(ours)
        for _, base in bases:
            missing += [f"{base}.{name}" for name in sorted(taken - listed_names({base}))]
    assert not missing


def test_every_patch_is_listed() -> None:
    """Every attribute that the plugin sets on an object of vLLM is in the contract."""
    theirs = {each.function.rpartition(".")[2] for each in PATCHES}
    theirs |= {name for each in ATTRIBUTES if isinstance(each, Attributes) for name in each.names.split()}
    ours = {name for name in classes() for name in own(name) | fields(name)}
    ours |= {"version"}  # of `importlib.metadata` (`launch.py`)
    unknown, set_there = [], set()
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                set_there.add(node.attr)
                if node.attr not in theirs | ours and not node.attr.startswith("inferaligner_"):
                    unknown.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    assert not unknown
    assert {each.function.rpartition(".")[2] for each in PATCHES} <= set_there


def fields(name: str) -> set[str]:
    return {
        each.target.id
        for each in classes()[name].body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


CONFIGS = {
    "model_config": "ModelConfig",
    "cache_config": "CacheConfig",
    "parallel_config": "ParallelConfig",
    "scheduler_config": "SchedulerConfig",
    "lora_config": "LoRAConfig",
    "speculative_config": "SpeculativeConfig",
    "multimodal_config": "MultiModalConfig",
    "kernel_config": "KernelConfig",
}


def chains() -> Iterator[tuple[str, str, str]]:
    """`x.y` and `a.x.y` in the plugin, as (file, x, y)."""
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                left = node.value
                if isinstance(left, ast.Name | ast.Attribute):
                    yield file, left.id if isinstance(left, ast.Name) else left.attr, node.attr


def test_every_option_that_is_asked_for_is_listed() -> None:
    missing = {
        f"{file}: {CONFIGS[left]}.{name}"
        for file, left, name in chains()
        if left in CONFIGS and name not in listed_names({CONFIGS[left]})
    }
    tops = {left for _, left, _ in chains() if left in CONFIGS} - {"multimodal_config"}
    missing |= {f"VllmConfig.{name}" for name in tops - listed_names({"VllmConfig"})}
    assert not missing


@pytest.mark.parametrize(
    ("files", "variable", "owners"),
    [
        ("scheduler.py audit.py prompts.py", "request", {"Request", "EngineCoreRequest"}),
        ("adapters.py", "request", {"LoRARequest"}),
        ("worker.py recording_worker.py", "scheduler_output", {"SchedulerOutput"}),
        ("runner_hooks.py", "batch", {"InputBatch"}),
        ("runner_hooks.py", "input_batch", {"InputBatch"}),
        ("scheduler.py recording_worker.py", "new", {"NewRequestData"}),
        ("runner_hooks.py", "runner", {"GPUModelRunner"}),
        ("runner_hooks.py", "_runner", {"GPUModelRunner"}),
        ("self_test.py", "runner", {"GPUModelRunner"}),
        ("worker.py recording_worker.py", "model_runner", {"GPUModelRunner"}),
        ("platform_worker.py", "current_platform", {"Platform"}),
        ("scheduler.py", "kv_cache_manager", {"KVCacheManager"}),
        ("prefix_cache.py", "manager", {"KVCacheManager"}),
        ("prefix_cache.py", "coordinator", {"KVCacheCoordinator"}),
        ("frontend_patches.py", "state", {"RequestState"}),
        ("recording.py", "_engine", {"LLM"}),
    ],
)
def test_everything_that_is_read_of_vllms_objects_is_listed(
    files: str, variable: str, owners: set[str]
) -> None:
    read = {name for file, left, name in chains() if file in files.split() and left == variable}
    assert read, "nothing of that name: the table is out of date"
    assert read <= listed_names(owners) | {"inferaligner_installed"}


# -- the checker ---------------------------------------------------------------------------------------

CODE_OF_VLLM = """
import abc
from .base import Base as Elder
VERSION: int = 1
class Thing(Elder):
    field: int
    def __init__(self, config, *, flag=False):
        self.made = config
    def act(self, request, limit=None): return self.store.find(request)
    def forward(self, hidden, residual):
        return hidden, residual
@dataclass(slots=True)
class Tight: ...
def call(first, second, *, third): ...
"""


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    package = tmp_path / "vllm"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("if TYPE_CHECKING:\n    from .deep import Thing\n")
    (package / "_version.py").write_text("__version__ = version = '7.8.9'\n")
    (package / "deep" / "__init__.py").write_text("from vllm.deep.inner import Thing\n")
    (package / "deep" / "inner.py").write_text(CODE_OF_VLLM)
    (package / "deep" / "base.py").write_text("class Base:\n    def inherited(self, one): ...\n")
    return Sources(tmp_path)


@pytest.mark.parametrize(
    ("statement", "violation"),
    [
        (Names("vllm.deep.inner", "Thing VERSION call"), None),
        (Names("vllm.deep", "inner Thing"), None),
        (Names("vllm", "Thing gone"), "vllm has no gone"),
        (Names("vllm.elsewhere", "x"), "vllm.elsewhere has no x"),
        (Attributes("vllm", "Thing", "field made act inherited"), None),
        (Attributes("vllm", "Thing", "made other"), "no attribute other"),
        (Call("vllm", "Thing.act", "request"), None),
        (Call("vllm", "Thing.inherited", "1"), None),
        (Call("vllm", "Thing.act", "request, limit=1"), None),
        (Call("vllm", "Thing.act", ""), "needs an argument request"),
        (Call("vllm", "Thing.act", "1, 2, 3"), "takes 2 positional arguments, 3 are given"),
        (Call("vllm", "Thing.act", "1, bound=2"), "takes no argument bound"),
        (Call("vllm.deep.inner", "call", "1, 2"), "needs an argument third"),
        (Override("vllm", "Thing.act", "request, *args, **options"), None),
        (Override("vllm", "Thing.act", "request, limit"), None),
        (Override("vllm", "Thing.act", "request"), "may be given limit"),
        (Override("vllm", "Thing.act", "request, *args"), "may be given limit"),
        (Override("vllm", "Thing.act", "prompt, *args, **options"), "has request where prompt is expected"),
        (Override("vllm", "Thing.inherited", "one, two"), "no longer has the argument two"),
        (Override("vllm", "Thing.__init__", "config"), "may be given flag"),
        (Override("vllm", "Thing.__init__", "config, **options"), None),
        (Override("vllm", "Thing.gone", ""), "vllm.Thing.gone does not exist"),
        (Code("vllm", "Thing.act", ("self.store.find(request)",)), None),
        (Code("vllm", "Thing.act", ("self.shop.find( || self.store.find(",)), None),
        (Code("vllm", "Thing.act", ("self.shop.find(",)), "no longer contains `self.shop.find(`"),
        (Code("vllm.deep.inner", "", ("VERSION: int = 1",)), None),
        (OneOf((Names("vllm", "gone"), Names("vllm", "Thing"))), None),
        (OneOf((Names("vllm", "gone"), Names("vllm", "lost"))), "vllm has no gone"),
        (Reviewed("vllm", "Thing", "methods", "act forward inherited", "why?"), None),
        (Reviewed("vllm", "Thing", "methods", "forward inherited", "why?"), "Thing.act is new: why?"),
        (Reviewed("vllm", "Thing", "fields", "", "why?"), "Thing.field is new: why?"),
        (Carrier("vllm", "Thing"), None),
        (Carrier("vllm.deep.inner", "Tight"), "accepts no additional attributes"),
        (DecoderLayer("vllm", "Thing", pair=True), None),
        (DecoderLayer("vllm", "Thing", pair=False), "takes the residual stream"),
    ],
    ids=str,
)
def test_statements(sources: Sources, statement: Statement, violation: str | None) -> None:
    found = statement.violations(sources)
    assert (not found) if violation is None else (violation in " ".join(found)), found


def test_all_violations_are_reported_at_once(sources: Sources) -> None:
    """Every statement is violated by a package that is not vLLM."""
    assert len(violations(sources)) >= len(CONTRACT) - len(OVERRIDES)
    for statement in CONTRACT:
        assert statement.violations(sources), statement


def test_the_command(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"vLLM 7.8.9: {len(CONTRACT)} statements, ")
    assert "  vllm.v1.request has no RequestStatus\n" in printed
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "holds no vLLM" in capsys.readouterr().err
    monkeypatch.setattr("inferaligner.vllm.contract.installed", lambda: None)
    assert main([]) == 2


def test_other_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no vLLM"):
        Sources(tmp_path)
