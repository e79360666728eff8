"""Every error that InferAligner raises on purpose.

Each message says what was found, what was expected and what to do. The command line prints it as one
line and exits with code 2; nothing here is ever shown as a traceback there.
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
    """A model, tokenizer or adapter could not be found or read."""


class UnknownArchitectureError(InferAlignerError):
    """The decoder layers of a model could not be found without guessing."""


class MissingExtraError(InferAlignerError):
    """An optional dependency is needed for what was asked."""


class ArtifactError(InferAlignerError):
    """An aligner artifact is incomplete, altered, of another schema, or holds unusable numbers."""


class MismatchError(InferAlignerError):
    """A model, tokenizer or chat template is not the one that an aligner was fitted on."""


class CalibrationError(InferAlignerError):
    """The data do not allow the choice that was asked for."""


class SteeringError(InferAlignerError):
    """Steering would be wrong or would silently do nothing in this situation."""


class InferAlignerWarning(UserWarning):
    """Something that a user should know, and that does not stop the work; the command line prints it."""
