"""What travels from the operator to every process of the engine, through vLLM's `additional_config`.

vLLM hashes `additional_config` into the key of its compile cache: with the plugin's version and the
artifact's checksum in it, a graph that was compiled without the gate, or for another one, is never loaded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from inferaligner.errors import ArtifactError, InputError
from inferaligner.steering.gate_policy import GatePolicy
from inferaligner.storage.paths import expanded
from inferaligner.version import __version__
from inferaligner.vllm.adapters import AdapterRules

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.artifact import AlignerArtifact
    from inferaligner.method.end_gate import EndGate
    from inferaligner.steering.plan import SteeringPlan

KEY = "inferaligner"
WORKER = "inferaligner.vllm.worker.GatedWorker"
SCHEDULER = "inferaligner.vllm.scheduler.GatedScheduler"
ASYNC_SCHEDULER = "inferaligner.vllm.scheduler.GatedAsyncScheduler"
MIDDLEWARE = "inferaligner.vllm.http.GateMiddleware"


class EngineSettings(GatePolicy):
    """The gate's policy and the engine's own choices, the same in every process.

    Attributes:
        aligner: folder of the artifact, readable under this path on every machine of the deployment.
        sha256: the artifact's digest when the engine was configured.
        version: of this package at that time.
        adapter: place of the LoRA adapter that the aligner was fitted on; None for the model itself.
        adapters: `own` refuses requests with another adapter than this, or without it; `any` gates them too.
        audit_log: file that gets one JSON line per decision.
        audit_text: whether that line holds the prompt itself beside its hash.
        untested_vllm: run on a version of vLLM that this package was not tested with.
    """

    aligner: str
    sha256: str
    version: str = __version__
    adapter: str | None = None
    adapters: Literal["own", "any"] = "own"
    audit_log: str | None = None
    audit_text: bool = False
    untested_vllm: bool = False

    @classmethod
    def of(cls, config: Any) -> EngineSettings | None:
        """The settings in a `VllmConfig`; None where vLLM was started without this plugin.

        Raises `InputError` if they cannot be read or were written by another version of this package.
        """
        extra = getattr(config, "additional_config", None)
        found = extra.get(KEY) if isinstance(extra, Mapping) else None
        if found is None:
            return None
        try:
            settings = cls(**found)
        except (ValidationError, TypeError) as error:
            raise InputError(
                f"--additional-config holds unusable settings under {KEY!r}: {error}. Take them from "
                "`inferaligner serve --engine vllm --print-command` or inferaligner.vllm.engine_args()."
            ) from None
        if settings.version != __version__:
            raise InputError(
                f"The engine was configured by inferaligner {settings.version}, but this process has "
                f"{__version__}. Install the same version on every machine."
            )
        return settings

    def artifact(self) -> AlignerArtifact:
        """The artifact, verified against the digest. Raises `ArtifactError` if it is another one by now."""
        from inferaligner.artifact import AlignerArtifact

        artifact = AlignerArtifact.read(self.aligner)
        if (found := artifact.digest()) != self.sha256:
            raise ArtifactError(
                f"{self.aligner} has digest {found[:12]}, but the engine was configured with "
                f"{self.sha256[:12]}: the artifact changed in between. Start the engine anew."
            )
        return artifact

    def adapter_rules(self) -> AdapterRules:
        """Which LoRA adapters requests may have."""
        return AdapterRules(self.adapter, others=self.adapters == "any")

    def plan(self) -> SteeringPlan:
        """The plan that the engine enforces.

        Raises `ArtifactError` as `artifact`, and as `GatePolicy.check`.
        """
        from inferaligner.aligner import Aligner

        return Aligner(self.artifact()).plan_for(self)

    def end_gate(self, plan: SteeringPlan) -> EndGate | None:
        """The gate of prompts that do not end as the chat template ends them; None where none are taken."""
        return plan.ends if self.prompts == "any" else plan.end_gate


def settings_for(aligner: str | Path | Aligner, **choices: Any) -> EngineSettings:
    """Settings for an aligner's folder (or one that was loaded from a folder), verified."""
    from inferaligner.artifact import AlignerArtifact

    if not isinstance(aligner, (str, Path)):
        raise InputError(
            "The vLLM engine reads the aligner in processes of its own, so it needs its folder: "
            "give the path that save_pretrained wrote."
        )
    folder = expanded(aligner).resolve()
    if (log := choices.get("audit_log")) is not None:
        choices["audit_log"] = str(expanded(log).resolve())
    if (adapter := choices.get("adapter")) is not None and expanded(adapter).exists():
        choices["adapter"] = str(expanded(adapter).resolve())
    artifact = AlignerArtifact.read(folder)
    settings = EngineSettings.from_choices(aligner=str(folder), sha256=artifact.digest(), **choices)
    settings.check(artifact)
    return settings


def engine_args(
    aligner: str | Path | Aligner, *, async_scheduling: bool = False, **choices: Any
) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM(...)` or `AsyncEngineArgs(...)`.

    Args:
        aligner: the folder that `inferaligner fit` wrote.
        async_scheduling: schedule one step ahead of the device (GPU only).
        choices: fields of `EngineSettings`: shadow, on_open, prompts, audit_log ...

    Raises:
        ArtifactError: the folder does not hold a usable aligner.
        InputError: a choice that does not exist.
    """
    settings = settings_for(aligner, **choices)
    if find_spec("vllm") is not None:
        from inferaligner.vllm.frontend_patches import install

        install()
    return {
        "worker_cls": WORKER,
        "scheduler_cls": ASYNC_SCHEDULER if async_scheduling else SCHEDULER,
        "async_scheduling": async_scheduling,
        "additional_config": {KEY: settings.model_dump(mode="json")},
    }


def serve_command(
    target: str, settings: EngineSettings, flags: Sequence[str] = (), *, async_scheduling: bool = False
) -> list[str]:
    """The equivalent `vllm serve` command, for people who run vLLM themselves."""
    return [
        "vllm",
        "serve",
        target,
        "--worker-cls",
        WORKER,
        "--scheduler-cls",
        ASYNC_SCHEDULER if async_scheduling else SCHEDULER,
        "--async-scheduling" if async_scheduling else "--no-async-scheduling",
        "--middleware",
        MIDDLEWARE,
        "--additional-config",
        json.dumps({KEY: settings.model_dump(mode="json")}, separators=(",", ":")),
        *flags,
    ]


def as_shell(command: Sequence[str]) -> str:
    """A command as one line for a shell."""
    return shlex.join(command)


def gate_of(output: Any) -> dict[str, Any]:
    """What the gate said about a finished `RequestOutput`: score, open, action, aligner.

    Raises `InputError` for an output that no gate has seen.
    """
    report = (getattr(output, "kv_transfer_params", None) or {}).get(KEY)
    if report is None:
        raise InputError(
            "This output carries no decision: it is not finished, or its engine runs without an aligner."
        )
    return dict(report)
