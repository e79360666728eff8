"""Checks of the machine and the installation: `inferaligner doctor` without a model."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from inferaligner.errors import ModelLoadError

State = Literal["ok", "missing", "doubtful", "differs"]

# Optional packages with their purpose and the command that installs them.
_EXTRAS = {
    "peft": ("PEFT adapters", 'pip install "inferaligner[models]"'),
    "gguf": ("GGUF files and control vectors", 'pip install "inferaligner[models]"'),
    "accelerate": ("GGUF files and several devices", 'pip install "inferaligner[models]"'),
    "matplotlib": ("figures", 'pip install "inferaligner[report]"'),
    "datasets": ("hf:// prompts", 'pip install "inferaligner[eval]"'),
    "bitsandbytes": ("int8 and int4 on GPUs", "pip install bitsandbytes"),
    "torchao": ("int8 and int4", "pip install torchao"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: The checked property.
        state: `missing` is an optional part, `doubtful` may change results, `differs` is wrong.
        found: Its value.
        advice: What the user can do about it.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """One finding each for versions, devices, optional packages and embedded models."""
    import torch

    findings = [
        Finding("inferaligner", "ok", _version("inferaligner") or "not installed as a package"),
        Finding("python", "ok", platform.python_version()),
        Finding("torch", "ok", torch.__version__),
        _transformers(),
        Finding("device", "ok", _devices()),
        Finding("threads", "ok", str(torch.get_num_threads())),
        Finding("bfloat16", "ok", _bfloat16()),
    ]
    for package, (purpose, way) in _EXTRAS.items():
        version = _version(package)
        if version is None:
            findings.append(Finding(package, "missing", "not installed", f"for {purpose}: {way}"))
        else:
            findings.append(Finding(package, "ok", version))
    return [*findings, *_embedded()]


def supported_transformers() -> str | None:
    """The range of transformers versions that this installation declares, such as ">=5.16.1,<6"."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("inferaligner") or []
    except metadata.PackageNotFoundError:
        return None
    for line in declared:
        requirement = Requirement(line)
        if requirement.name == "transformers" and requirement.marker is None:
            return str(requirement.specifier)
    return None


def _transformers() -> Finding:
    import transformers
    from packaging.specifiers import SpecifierSet

    version, wanted = str(transformers.__version__), supported_transformers()
    if wanted is None:
        return Finding("transformers", "ok", version)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("transformers", "ok", f"{version} (supported: {wanted})")
    return Finding(
        "transformers", "differs", f"{version}, expected {wanted}", f'pip install "transformers{wanted}"'
    )


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        names = [
            f"cuda:{number} {torch.cuda.get_device_name(number)}, "
            f"{torch.cuda.get_device_properties(number).total_memory / 2**30:.0f} GiB"
            for number in range(torch.cuda.device_count())
        ]
        return "; ".join(names)
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _bfloat16() -> str:
    import torch

    if torch.cuda.is_available():
        return "in hardware" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated, slow"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "in hardware" if fast else "works, without hardware support"


def _embedded() -> list[Finding]:
    from inferaligner.models.builtin import builtin_names, locate_builtin
    from inferaligner.models.specs import Kind, parse_spec

    findings = []
    for name in builtin_names():
        try:
            builtin = locate_builtin(name)
        except ModelLoadError as error:
            findings.append(Finding(f"builtin:{name}", "missing", "not found", str(error)))
            continue
        if parse_spec(builtin.spec).kind is Kind.HUB:
            findings.append(Finding(f"builtin:{name}", "missing", "not on this machine", builtin.ways))
        else:
            findings.append(Finding(f"builtin:{name}", "ok", "found"))
    return findings


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
