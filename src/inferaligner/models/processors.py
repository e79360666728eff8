"""The processor of a vision-language model: its tokenizer, and the image processor, which makes tensors of
pictures.

Image processors that only need Pillow are enough. Some processors also have one for videos, which needs
torchvision; without torchvision they are made without it and read images all the same.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models.sources import Checkpoint

_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(checkpoint: Checkpoint, config: Any, tokenizer: Any) -> Any:
    """Loads the processor of a checkpoint.

    Args:
        checkpoint: The files of the model.
        config: The model's configuration.
        tokenizer: The tokenizer that the processor shall hold.

    Returns:
        The processor with its own chat templates; None if the checkpoint has none or Pillow is missing.

    Raises:
        ModelLoadError: Its settings cannot be read.
        MissingExtraError: It needs a package that is not installed.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(config) not in PROCESSOR_MAPPING or find_spec("PIL") is None:
        return None
    folder = Path(checkpoint.weights)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        return None
    try:
        try:
            reads: Any = AutoProcessor
            processor = reads.from_pretrained(checkpoint.weights, revision=checkpoint.revision)
        except (ImportError, ValueError, AttributeError) as error:
            # transformers 5.16 raises an AttributeError if the video processor is missing.
            if "torchvision" not in str(error).lower() and find_spec("torchvision") is not None:
                raise
            without = without_videos(PROCESSOR_MAPPING[type(config)])
            processor = without.from_pretrained(checkpoint.weights, revision=checkpoint.revision)
    except ImportError as error:
        raise MissingExtraError(
            f"The processor of {checkpoint.weights} needs a package that is not installed: "
            f"{str(error).strip().splitlines()[0][:200]} Install it with pip. For images: "
            "pip install 'inferaligner[vision]'"
        ) from error
    except Exception as error:
        raise ModelLoadError(
            f"The processor in {checkpoint.weights} cannot be read: {type(error).__name__}: "
            f"{(str(error).strip() or '?').splitlines()[0][:300]} Expected what save_pretrained writes."
        ) from error
    if getattr(processor, "image_processor", None) is None:
        return None
    # One tokenizer for both, so that both give a prompt the same tokens.
    processor.tokenizer = tokenizer
    return processor


def without_videos(processor_class: Any) -> Any:
    """The processor class without its video processor."""

    class ImagesOnly(processor_class):  # type: ignore[misc]
        """Reads text and images."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

        @classmethod
        def _get_arguments_from_pretrained(
            cls, place: Any, processor_dict: Any = None, **options: Any
        ) -> Any:
            from transformers import AutoTokenizer

            # From its module: transformers 5.16 exports a class in its place that needs torchvision.
            from transformers.models.auto.image_processing_auto import AutoImageProcessor

            parts: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
            return [
                parts[name].from_pretrained(place, **options) if name in parts else None
                for name in cls.get_attributes()
            ]

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor_class.__name__
    return ImagesOnly
