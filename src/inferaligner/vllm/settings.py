"""The operator's choices, which reach every process of the engine through vLLM's `additional_config`.

vLLM hashes `additional_config` into the key of its compile cache. The settings hold the plugin's version and
the artifact's checksum, so vLLM never loads a graph that was compiled without the gate or for another
aligner.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        adapter: folder or hub id of the LoRA adapter that the aligner was fitted on; None for the model
            itself.
        adapters: `own` refuses requests without this adapter or with another one; `any` gates them too.
        audit_log: file to which every decision is written as a JSON line.
        audit_text: whether that line holds the prompt beside its hash.
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
    def from_config(cls, config: Any) -> EngineSettings | None:
        """The settings in a `VllmConfig`; None if vLLM was started without this plugin.

        Raises `InputError` if they are invalid or were written by another version of this package.
        """
        extra = getattr(config, "additional_config", None)
        written = extra.get(KEY) if isinstance(extra, Mapping) else None
        if written is None:
            return None
        try:
            settings = cls(**written)
        except (ValidationError, TypeError) as error:
            raise InputError(
                f"--additional-config holds invalid settings under {KEY!r}: {error}. Take them from "
                "`inferaligner serve --engine vllm --print-command` or inferaligner.vllm.engine_args()."
            ) from None
        if settings.version != __version__:
            raise InputError(
                f"The engine was configured by inferaligner {settings.version}, but this process has "
                f"{__version__}. Install the same version on every machine."
            )
        return settings

    def artifact(self) -> AlignerArtifact:
        """The artifact. Raises `ArtifactError` if its digest is no longer `sha256`."""
        from inferaligner.artifact import AlignerArtifact

        artifact = AlignerArtifact.read(self.aligner)
        if (digest := artifact.digest()) != self.sha256:
            raise ArtifactError(
                f"{self.aligner} has digest {digest[:12]}, but the engine was configured with "
                f"{self.sha256[:12]}: the artifact changed in between. Restart the engine."
            )
        return artifact

    def adapter_rules(self) -> AdapterRules:
        """Which LoRA adapters requests may have."""
        return AdapterRules(self.adapter, any_adapter=self.adapters == "any")

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
    """Settings for the aligner in a folder.

    Args:
        aligner: the folder that `save_pretrained` or `inferaligner fit` wrote.
        choices: fields of `EngineSettings`; paths are made absolute.

    Raises:
        ArtifactError: the folder does not hold a usable aligner.
        InputError: an aligner in memory, a choice that does not exist, or one that the aligner cannot do.
    """
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
