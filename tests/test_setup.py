"""Set-up files agree with each other: pyproject, lock, conda environment, Makefile, ignored files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PYTHONS = ("3.10", "3.11", "3.12")
SYSTEMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
ADDRESS = re.compile(r"https?://|--index-url|--extra-index-url|--find-links|@ ?(git|file)", re.IGNORECASE)
ENTRIES = re.split(r"\n(?=\S)", LOCK.strip())


def environment_of(python: str, system: str, machine: str) -> dict[str, str]:
    names = {"linux": "Linux", "darwin": "Darwin"}
    versions = {"python_version": python, "python_full_version": f"{python}.7"}
    return {
        **default_environment(), **versions, "sys_platform": system, "platform_system": names[system],
        "platform_machine": machine, "os_name": "posix", "extra": "",
    }  # fmt: skip


def locked(python: str, system: str, machine: str) -> dict[str, Version]:
    """Return what the lock pins on one platform."""
    pins = {}
    for entry in ENTRIES:
        if entry.startswith("#"):
            continue
        requirement = Requirement(entry.split("\\")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(environment_of(python, system, machine)):
            pins[canonicalize_name(requirement.name)] = Version(str(requirement.specifier).removeprefix("=="))
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), SYSTEMS)
def test_lock_satisfies_every_dependency(python: str, system: str, machine: str) -> None:
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    pins, environment = locked(python, system, machine), environment_of(python, system, machine)
    wrong = []
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        pinned = pins.get(canonicalize_name(requirement.name))
        if pinned is None or not requirement.specifier.contains(pinned, prereleases=True):
            wrong.append(f"{requirement}: locked {pinned}")
    assert not wrong


def test_every_locked_entry_is_one_version_with_hashes() -> None:
    entries = [entry for entry in ENTRIES if not entry.startswith("#")]
    assert len(entries) > 100
    loose = [e.splitlines()[0] for e in entries if not re.match(r"[A-Za-z0-9._-]+==[^\s;]+", e)]
    bare = [e.splitlines()[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", e)]
    assert not loose
    assert not bare


def test_no_file_of_the_set_up_names_an_index() -> None:
    for name in ("requirements.lock", "environment.yml", "Makefile", ".ci/run", "pyproject.toml"):
        found = ADDRESS.search((ROOT / name).read_text(encoding="utf-8"))
        assert found is None, f"{name}: {found.group()}"


def test_conda_environment_adds_python_and_ffmpeg_to_the_lock() -> None:
    plain = [item for item in ENVIRONMENT["dependencies"] if isinstance(item, str)]
    names = {re.split(r"[=<>]", item)[0]: item for item in plain}
    assert set(names) == {"python", "ffmpeg", "pip"}
    python = names["python"].partition("=")[2]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    (pip,) = [item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict)]
    assert pip == ["-r requirements.lock"]
    assert "pip install --no-deps -e ." in (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_supported_pythons_are_those_the_makefile_looks_for() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    for minor in range(8, 15):
        assert supported.contains(f"3.{minor}.0") == (f"3.{minor}" in PYTHONS)
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"python3\.11 python3\.12 python3\.10 python3\b", text)
    assert "(3, 10) <= sys.version_info < (3, 13)" in text


def test_markers_in_pyproject_are_understood() -> None:
    for item in PROJECT["dependencies"]:
        marker = Requirement(item).marker
        assert marker is None or isinstance(marker, Marker)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["report", "test", "lab", "bench", "clean", "install"])
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_missing_ffmpeg_is_one_line_with_both_commands(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "ls", "dirname", "tr", "grep", "id"):
        (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    make = shutil.which("make") or "make"
    done = subprocess.run(
        [make, "-s", "ffmpeg"], cwd=ROOT, capture_output=True, text=True, env={"PATH": str(tools)}, check=False
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert "sudo apt-get install ffmpeg" in said[0]
    assert "conda install -c conda-forge ffmpeg" in said[0]


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "make test"]


def test_templates_are_package_data() -> None:
    from f5lab import paths

    assert (paths.TEMPLATES / "index.html.j2").is_file()
    assert paths.TEMPLATES.is_relative_to(paths.PACKAGE)


def test_what_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = {target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target}
    assert len(targets) > 30
    assert sorted(target for target in targets if not (ROOT / target).exists()) == []


def test_commands_that_readme_names_exist() -> None:
    import click
    from typer.main import get_command

    from f5lab.cli import app

    command = get_command(app)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?:`|^ {4})f5lab ([^`\n]*)", text, re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        name, *rest = line.split("#")[0].split()
        found = command.get_command(click.Context(command), name)
        assert found is not None, line
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        if not hasattr(found, "commands"):
            assert {word.rstrip(";,").split("=")[0] for word in rest if word.startswith("--")} <= known, line
