"""CONTRIBUTING, the changelog and the workflows name files, commands and versions that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferaligner.version import __version__

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+)\n([^#]+)", GUIDE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PATH = re.compile(r"`([\w.][\w.-]*(?:/[\w.-]+)*/?)`")


def paths_in(text: str) -> set[str]:
    """Names in inline code that are paths: they have a slash or a file's ending."""
    return {name for name in PATH.findall(text) if "/" in name or re.search(r"\.(py|toml|txt|md)$", name)}


def load(file: Path) -> Any:
    """A workflow; YAML reads the key `on` as true."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_every_path_of_the_guide_exists() -> None:
    named = paths_in(GUIDE) - {".venv/bin/python"}
    assert len(named) > 30
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_the_file_and_its_test(recipe: str) -> None:
    named = paths_in(RECIPES[recipe])
    assert any(path.startswith("src/inferaligner/") for path in named)
    assert any(path.startswith("tests/") and not path.startswith("tests/support") for path in named)


def test_there_are_six_recipes() -> None:
    assert len(RECIPES) == 6


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) - (unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert newest is not None and newest[1] == __version__


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_is_complete(file: Path) -> None:
    workflow = load(file)
    assert set(workflow) >= {"name", True, "permissions", "jobs"}
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file(), "a workflow of this repository"
            continue
        assert job["runs-on"] and job["timeout-minutes"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert set(job.get("needs", [])) <= set(workflow["jobs"])


def test_the_workflow_runs_what_ci_runs() -> None:
    steps = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["run"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_a_release_is_checked_before_it_is_published() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert set(jobs["publish"]["needs"]) == {"ci", "build"}
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "make package" in [step.get("run") for step in jobs["build"]["steps"]]


def test_ci_runs_every_check_of_the_makefile() -> None:
    steps = re.findall(r"^step make (\S+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = set(re.findall(r"^(test\S*|lint|types|package):", makefile, re.MULTILINE))
    assert checks <= set(steps)


def test_commits_are_checked_with_the_tools_of_the_environment() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    programs = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert programs == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
