"""Builds the wheel and the source distribution, checks their contents, and uses the wheel.

The wheel goes into a new virtual environment. Downloading torch again would take minutes, so this environment
borrows the core dependencies of the project, and what these depend on, from the environment that runs this
file, through links. Neither the project nor the libraries of its extras are borrowed, so the import of an
undeclared library fails here. A dependency that only the wheel's metadata names would be installed by pip.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]
IN_PYTHON = """
from pathlib import Path

import typer.main
from typer.testing import CliRunner

import inferaligner
from inferaligner.cli.main import app
from inferaligner.prompts.contrast import load_contrast_set

assert Path(inferaligner.__file__).is_relative_to({environment!r}), inferaligner.__file__
assert inferaligner.Aligner.__name__ == "Aligner"
commands = typer.main.get_command(app).commands
for command in commands:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0, (command, shown.output)
print(len(load_contrast_set().pairs), "pairs in the contrast set;", len(commands), "commands show their help")
"""


def run(*command: object, cwd: Path = ROOT) -> str:
    """Runs a program without the caller's PYTHONPATH and returns its output; a failure ends this program."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}")
    return done.stdout


def core_distributions() -> dict[str, metadata.Distribution]:
    """The core dependencies in pyproject.toml and what these need, as they are installed here, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    closure: dict[str, metadata.Distribution] = {}
    # (requirement, extras of the distribution that names it)
    waiting = [(Requirement(line), [""]) for line in project["dependencies"]]
    done = set()
    while waiting:
        requirement, extras = waiting.pop()
        marker = requirement.marker
        if (str(requirement), *extras) in done:
            continue
        done.add((str(requirement), *extras))
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        installed = metadata.distribution(requirement.name)
        closure[re.sub(r"[-_.]+", "-", requirement.name).lower()] = installed
        own = ["", *requirement.extras]
        waiting += [(Requirement(line), own) for line in installed.requires or []]
    return closure


def link(distribution: metadata.Distribution, folder: Path) -> None:
    """Links the top-level files and folders of an installed distribution into `folder`."""
    place = Path(str(distribution.locate_file("")))
    for name in {Path(file).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        if (place / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(place / name)


def missing_from(archive: set[str], wanted: set[str], name: str) -> None:
    if missing := sorted(wanted - archive):
        sys.exit(f"{name} lacks {len(missing)} files of the repository, among them {missing[:8]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "dist", help="folder of the built archives"
    )
    output = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", output)
    (wheel,), (source,) = output.glob("*.whl"), output.glob("*.tar.gz")

    # Files that are new and not committed yet count as well.
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    tracked = {name for name in listed if (ROOT / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    missing_from(packed, package, wheel.name)
    if strangers := sorted(name for name in packed - package if ".dist-info/" not in name):
        sys.exit(f"{wheel.name} holds files that the repository does not: {strangers[:8]}")
    if not any(name.endswith("/licenses/LICENSE") for name in packed):
        sys.exit(f"{wheel.name} holds no licence")
    with tarfile.open(source) as tar:
        unpacked = {name.partition("/")[2] for name in tar.getnames()}
    missing_from(unpacked, tracked, source.name)
    print(f"{wheel.name}: {len(packed)} files; {source.name}: {len(unpacked)} files")

    with tempfile.TemporaryDirectory() as work:
        environment, borrowed, empty = (Path(work).resolve() / name for name in ("venv", "borrowed", "empty"))
        borrowed.mkdir()
        empty.mkdir()
        run(sys.executable, "-m", "venv", environment)
        for distribution in core_distributions().values():
            link(distribution, borrowed)
        scripts = environment / ("Scripts" if os.name == "nt" else "bin")
        paths = {"base": str(environment), "platbase": str(environment)}
        (Path(sysconfig.get_path("purelib", "venv", paths)) / "borrowed.pth").write_text(
            f"{borrowed}\n", encoding="utf-8"
        )
        constraints = ROOT / "constraints.txt"
        run(scripts / "python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", constraints, wheel)
        program = scripts / "inferaligner"
        print(run(program, "--version", cwd=empty).strip())
        run(program, "--help", cwd=empty)
        print(run(program, "doctor", cwd=empty))
        print(run(scripts / "python", "-c", IN_PYTHON.format(environment=str(environment)), cwd=empty))


if __name__ == "__main__":
    main()
