"""`inferaligner serve`: the vllm command that it prints, the embedded server, and what both refuse."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inferaligner.aligner import Aligner
from inferaligner.cli.served_name import served_name
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.steering.plan import GatePlan
from inferaligner.vllm.settings import EngineSettings
from tests.support.command_line import Outcome, Run, refused
from tests.support.tiny_aligner import eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def printed(run: Run, *arguments: object) -> list[str]:
    outcome = run("serve", "--engine", "vllm", "--print-command", *arguments)
    assert outcome.code == 0, outcome.err
    return shlex.split(outcome.out)


def value_of(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_the_command_carries_everything(run: Run, target: Path, aligner: Path) -> None:
    command = printed(run, target, "--aligner", aligner)
    assert command[:3] == ["vllm", "serve", str(target)]
    assert value_of(command, "--worker-cls") == "inferaligner.vllm.worker.GatedWorker"
    assert value_of(command, "--scheduler-cls") == "inferaligner.vllm.scheduler.GatedScheduler"
    assert value_of(command, "--middleware") == "inferaligner.vllm.http.GateMiddleware"
    assert value_of(command, "--served-model-name") == target.name
    assert value_of(command, "--allowed-origins") == "[]"  # vLLM's own default is every web page
    settings = json.loads(value_of(command, "--additional-config"))["inferaligner"]
    assert settings["sha256"] == Aligner.from_pretrained(aligner).artifact.digest()
    assert settings["aligner"] == str(aligner.resolve())
    assert (settings["shadow"], settings["on_open"], settings["prompts"]) == (False, "steer", "chat")


def test_options_and_flags_reach_the_command(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    options = ["--shadow", "--on-open", "refuse", "--refusal", "Not that.", "--prompts", "any"]
    options += ["--audit-log", str(tmp_path / "log")]
    command = printed(
        run, target, "-a", aligner, *options, "--async-scheduling", "--", "--port", "8001", "--max-num-seqs=4"
    )
    assert command[-3:] == ["--port", "8001", "--max-num-seqs=4"]
    assert value_of(command, "--scheduler-cls").endswith("GatedAsyncScheduler")
    assert "--async-scheduling" in command
    settings = json.loads(value_of(command, "--additional-config"))["inferaligner"]
    assert settings["shadow"] and settings["on_open"] == "refuse" and settings["prompts"] == "any"
    assert settings["refusal"] == "Not that."
    assert settings["audit_log"] == str(tmp_path / "log")


def test_what_clients_see_is_the_same_option_on_both_engines(run: Run, target: Path, aligner: Path) -> None:
    origins = ["--allow-origin", "http://localhost:3000", "--allow-origin", "https://chat.example"]
    command = printed(run, target, "-a", aligner, "--served-model-name", "medicine", *origins)
    assert value_of(command, "--served-model-name") == "medicine"
    assert json.loads(value_of(command, "--allowed-origins")) == origins[1::2]
    for wrong in ("localhost:3000", "http://localhost:3000/", "http://a/b", ""):
        refused(run("serve", target, "-a", aligner, "--allow-origin", wrong), "--allow-origin")


@pytest.mark.parametrize(
    ("target", "name"),
    [("builtin:smollm2-135m", "builtin:smollm2-135m"), ("org/name@v2", "org/name@v2")],
)
def test_a_model_is_called_what_was_asked_for(target: str, name: str) -> None:
    assert served_name(target) == name


def test_a_model_at_a_path_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "medicine").mkdir()
    (tmp_path / "finance.gguf").touch()
    assert served_name(f"{tmp_path}/medicine/") == "medicine"
    assert served_name(str(tmp_path / "finance.gguf")) == "finance"
    monkeypatch.chdir(tmp_path / "medicine")
    assert served_name(".") == "medicine"


def test_a_gate_alone_serves_refusals(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    whole = Aligner.from_pretrained(aligner).artifact
    alone = replace(
        whole,
        steering=SteeringSettings(layers=(), strength=0.0),
        provenance=whole.provenance.model_copy(update={"aligned": None}),
    )
    folder = Aligner(alone).save_pretrained(tmp_path / "gate")
    outcome = run("serve", target, "-a", folder, "--engine", "vllm", "--print-command")
    assert outcome.code == 2 and "--on-open refuse" in outcome.err
    for options in (("--on-open", "refuse"), ("--shadow",)):
        command = printed(run, target, "-a", folder, *options)
        config = json.loads(value_of(command, "--additional-config"))
        assert isinstance(EngineSettings(**config["inferaligner"]).plan(), GatePlan)


@pytest.mark.parametrize(
    "flag",
    [
        "--worker-cls=other.Worker",
        "--scheduler_cls",
        "--additional-config",
        "--additional-config.inferaligner.shadow=true",
        "--additional",
        "--worker-extension-cls",
        "--config",
        "--async-scheduling",
    ],
)
def test_flags_that_could_undo_the_gate_are_refused(run: Run, target: Path, aligner: Path, flag: str) -> None:
    refused(
        run("serve", target, "-a", aligner, "--engine", "vllm", "--print-command", "--", flag),
        flag,
        "Leave it out",
    )


@pytest.mark.parametrize(
    "flags", [["--chat-template", "x.jinja"], ["--chat_template=x.jinja"], ["--trust-request-chat-template"]]
)
def test_another_chat_template_is_no_flag_of_vllm(
    run: Run, target: Path, aligner: Path, flags: list[str]
) -> None:
    """vLLM would render with it, and the plugin compare the tokenizer's own with the aligner's."""
    start = ("serve", target, "-a", aligner, "--engine", "vllm", "--print-command")
    refused(run(*start, "--", *flags), flags[0], "as the tokenizer's own")
    refused(run(*start, "--chat-template", "x.jinja"), "--chat-template", "as the tokenizer's own")
    assert run(*start, "--", "--chat-template-content-format", "string").code == 0


def test_bad_choices(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    refused(
        run("serve", target, "-a", aligner, "--engine", "steam"), "--engine steam", "transformers or vllm"
    )
    for option, value, expected in (
        ("--on-open", "shrug", "'steer', 'refuse'"),
        ("--prompts", "some", "'chat', 'any'"),
    ):
        outcome = run("serve", target, "-a", aligner, option, value)
        assert outcome.code == 2 and option in outcome.err and expected in outcome.err
    refused(run("serve", target, "-a", tmp_path), "is not an aligner")
    refused(run("serve", tmp_path / "no", "-a", aligner), "There is no model")


def test_without_vllm_it_says_how_to_get_it(
    run: Run, target: Path, aligner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferaligner.cli.serve.find_spec", lambda name: None)
    refused(
        run("serve", target, "-a", aligner, "--engine", "vllm"), "vLLM is not installed", "inferaligner[vllm]"
    )


def test_the_server_takes_this_process(
    run: Run, target: Path, aligner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("inferaligner.cli.serve.find_spec", lambda name: name)
    monkeypatch.setattr("os.execv", lambda program, arguments: started.append(arguments))
    outcome = run("serve", target, "-a", aligner, "--", "--port", "8001")
    assert outcome.code == 0 and outcome.out == ""
    ((_, *arguments),) = started
    assert arguments[:4] == ["-m", "inferaligner.vllm.launch", "serve", str(target)]
    assert arguments[-2:] == ["--port", "8001"]
    assert shlex.join(["vllm", *arguments[2:]]) in outcome.err


def test_a_monitor_is_not_left_out_silently(run: Run, target: Path, tmp_path: Path) -> None:
    watching = tiny_aligner(tiny_model(), tiny_tokenizer(), monitor=eager_monitor())
    folder = watching.save_pretrained(tmp_path / "watching")
    for option, expected in (("--monitor", True), ("--no-monitor", False)):
        config = json.loads(
            value_of(printed(run, target, "--aligner", folder, option), "--additional-config")
        )
        assert config["inferaligner"]["monitor"] == expected
    refused(
        run("serve", target, "-a", folder, "--engine", "vllm", "--print-command", "--on-open", "refuse"),
        "has a monitor",
        "--no-monitor",
    )


def test_an_adapter_is_served_on_its_base(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    """vLLM loads the base, and the adapter under the name of its folder; the gate is for that one alone."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=5, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "medicine")
    config = json.loads((tmp_path / "medicine" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(target)
    (tmp_path / "medicine" / "adapter_config.json").write_text(json.dumps(config))

    place = str((tmp_path / "medicine").resolve())
    command = printed(run, place, "-a", aligner, "--", "--port", "8001")
    assert command[:3] == ["vllm", "serve", str(target)]
    assert "--enable-lora" in command and value_of(command, "--max-lora-rank") == "8"
    assert value_of(command, "--lora-modules") == f"medicine={place}"
    settings = json.loads(value_of(command, "--additional-config"))["inferaligner"]
    assert (settings["adapter"], settings["adapters"]) == (place, "own")
    start = ("serve", place, "-a", aligner, "--engine", "vllm", "--print-command")
    refused(run(*start, "--", "--lora-modules", "other=x"), "--lora-modules")
    refused(run(*start, "--adapters", "all"), "adapters")
    # On a base model adapters of any kind may be named, and are refused request by request.
    command = printed(run, target, "-a", aligner, "--adapters", "any", "--", "--lora-modules", "other=x")
    settings = json.loads(value_of(command, "--additional-config"))["inferaligner"]
    assert (settings["adapter"], settings["adapters"]) == (None, "any")

    config["r"] = 1000
    (tmp_path / "medicine" / "adapter_config.json").write_text(json.dumps(config))
    refused(run(*start), "rank 1000", "merge_and_unload")


def test_options_of_the_other_engine_are_no_silent_no_ops(run: Run, target: Path, aligner: Path) -> None:
    def serve(*options: object) -> Outcome:
        return run("serve", target, "-a", aligner, *options)

    refused(serve("--engine", "vllm", "--port", "1"), "--port is an option of --engine transformers")
    refused(serve("--engine", "vllm", "--no-playground"), "--playground is an option")
    refused(serve("--engine", "vllm", "--allow-override"), "--allow-override")
    refused(serve("--engine", "transformers", "--async-scheduling"), "--engine vllm")
    refused(serve("--engine", "transformers", "--print-command"), "--print-command")
    refused(serve("--engine", "transformers", "--", "--max-num-seqs", "4"), "--max-num-seqs", "--engine vllm")


def test_bad_choices_of_the_embedded_server(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

    def serve(*options: object) -> Outcome:
        return run("serve", target, "-a", aligner, "--engine", "transformers", *options)

    refused(serve("--audit-text"), "--audit-log")
    refused(serve("--refusal", "No."), "--on-open refuse")
    refused(serve("--api-keys", tmp_path / "none"), "cannot be read")
    refused(serve("--audit-log", tmp_path), "cannot be written")
    refused(serve("--host", "256.1.1.1"), "cannot listen on 256.1.1.1")
    refused(run("serve", tmp_path / "no", "-a", aligner, "--engine", "transformers"), "There is no model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(serve("--port", taken.getsockname()[1]), "cannot listen on 127.0.0.1")


def test_without_its_packages_it_says_how_to_get_them(
    run: Run, target: Path, aligner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferaligner.cli.serve.find_spec", lambda name: None)
    monkeypatch.setattr("inferaligner.cli.serve_embedded.find_spec", lambda name: None)
    refused(run("serve", target, "-a", aligner), "fastapi, uvicorn", "inferaligner[serve]")


def test_the_embedded_server_as_a_process(target: Path, aligner: Path, tmp_path: Path) -> None:
    """Started as users start it, asked, told to stop in the middle of an answer, and gone with code 0."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "inferaligner.cli.main", "serve", str(target), "-a", str(aligner)]
    command += ["--engine", "transformers", "--port", str(port), "--audit-log", str(tmp_path / "log")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = ""
        while "Playground" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        url = f"http://127.0.0.1:{port}"
        assert f"Serving target on {url}/v1" in told
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True}
        body["ignore_eos"] = True
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert len((tmp_path / "log").read_text().splitlines()) == 1
