"""InferAligner: inference-time safety alignment of fine-tuned language models by cross-model guidance."""

from typing import TYPE_CHECKING, Any

from inferaligner.version import __version__

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner

__all__ = ["Aligner", "__version__"]


def __getattr__(name: str) -> Any:
    # `import inferaligner` stays instant; torch and transformers load with the first use.
    if name == "Aligner":
        from inferaligner.aligner import Aligner

        return Aligner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
