"""Gated steering inside stock vLLM, enabled by vLLM's own flags.

    from vllm import LLM
    from inferaligner.vllm import engine_args, gate_of

    llm = LLM("my-model", **engine_args("my-aligner"))
    (output,) = llm.chat([{"role": "user", "content": "Hello"}])
    gate_of(output)                     # {"open": False, "score": -1.2, "action": "none", ...}

The life of one request:
1. The front end (`frontend_patches.py`) rejects prompts that the gate cannot judge, such as raw text; the
   rules are in `prompts.py`.
2. The scheduler (`scheduler.py`) owns the decision. It limits how much of the prefix cache the request reads
   and writes (`prefix_cache.py`), and sends the workers an order when the request begins or resumes
   (`request_state.py`, `protocol.py`).
3. The worker (`worker.py`) gives the request a slot (`slots.py`). Before every forward pass it writes to
   buffers which tokens are read and which are steered (`device_buffers.py`). Hooks on the decoder layers
   (`layers.py`) call the operations `read_gate`, `decide`, `watch` and `steer` of `torch.ops.inferaligner`
   (`ops.py`). They take everything that varies from these buffers, so a compiled graph stays valid. The
   decisions return with the worker's output.
4. The scheduler records the decisions before vLLM processes that output, and attaches a report to the
   request's outputs. The front end counts it (`decision_reports.py`) and puts it into HTTP answers
   (`http.py`).

`contract.py` lists everything that the plugin relies on in vLLM. `compatibility.py` holds the differences
between versions and the list of unsupported features.
"""

from __future__ import annotations

from inferaligner.vllm.decision_reports import gate_of
from inferaligner.vllm.engine_arguments import engine_args, serve_command
from inferaligner.vllm.settings import EngineSettings

__all__ = ["EngineSettings", "engine_args", "gate_of", "serve_command"]
