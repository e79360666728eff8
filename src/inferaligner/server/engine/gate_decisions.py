"""From a gate's score to the action on a job, under the operator's settings."""

from __future__ import annotations

from inferaligner.artifact import AlignerArtifact
from inferaligner.method.decision import opens
from inferaligner.server.engine.jobs import Job
from inferaligner.server.settings import ServerSettings
from inferaligner.server_shared.gate_report import Action, GateReport


class GateDecisions:
    """Decisions of one artifact; an artifact with another operating point needs its own instance."""

    def __init__(self, artifact: AlignerArtifact, settings: ServerSettings) -> None:
        self.artifact = artifact
        self.digest = artifact.digest()
        self._settings = settings

    def factor(self, job: Job) -> float | None:
        """The job's strength as a multiple of the aligner's; None for the aligner's own."""
        own = self.artifact.steering.strength
        return None if job.strength is None or own == 0 else job.strength / own

    def report(self, job: Job, score: float) -> GateReport:
        """Reports the decision on a prompt, given its score."""
        artifact = self.artifact
        opened = opens(score)
        return GateReport(
            score=score,
            open=opened,
            action=self.action(job, opened),
            layer=artifact.gate.last_layer,
            strength=artifact.steering.strength if job.strength is None else job.strength,
            aligner=self.digest[:12],
            bias=artifact.gate.bias,
        )

    def action(self, job: Job, opened: bool) -> Action:
        """The action on a job whose gate is open or closed."""
        if not opened:
            return "none"
        if self._settings.shadow:
            return "shadow"
        if job.strength == 0:
            return "overridden"
        return "refused" if self._settings.on_open == "refuse" else "steered"
