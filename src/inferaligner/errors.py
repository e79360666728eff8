"""Every error that InferAligner raises on purpose.

Each message names the faulty value, the expected one and a remedy. The command line prints the message as one
line, without a traceback, and exits with code 2.
"""

from __future__ import annotations


class InferAlignerError(Exception):
    """Root of the hierarchy: catch this to catch every deliberate error of the package."""


class InputError(InferAlignerError):
    """A file, a prompt or an option that cannot be used as given."""


class PromptTooLongError(InputError):
    """A prompt does not fit into the model's context; truncating it would move the gate's token."""


class ChatTemplateMissingError(InputError):
    """The tokenizer has no chat template, so there is no defined last token of a prompt."""


class ModelLoadError(InferAlignerError):
    """A model, tokenizer or adapter does not exist or cannot be read."""


class UnknownArchitectureError(InferAlignerError):
    """The decoder layers of a model are ambiguous or missing."""


class MissingExtraError(InferAlignerError):
    """The task needs an optional dependency that is not installed."""


class ArtifactError(InferAlignerError):
    """An aligner artifact is incomplete, altered, of another schema, or holds unusable numbers."""


class MismatchError(InferAlignerError):
    """A model, tokenizer or chat template is not the one that an aligner was fitted on."""


class CalibrationError(InferAlignerError):
    """The data do not allow the requested choice."""


class SteeringError(InferAlignerError):
    """Steering would be wrong or would silently do nothing in this situation."""


class InferAlignerWarning(UserWarning):
    """Information that a user should act on and that does not stop the work; the command line prints it."""
