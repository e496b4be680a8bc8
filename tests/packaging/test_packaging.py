"""What is built and installed: nothing is forgotten, nothing is tied to this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "sttm_lmms").rglob("__init__.py")}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert found <= listed, f"add to [tool.setuptools] packages: {sorted(found - listed)}"


def test_versions_agree():
    import sttm_lmms

    assert sttm_lmms.__version__ == PROJECT["project"]["version"]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, sttm_lmms, sttm_lmms.model_wrappers; print({'torch', 'lmms_eval'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_core_does_not_import_lmms_eval():
    imports = re.compile(r"^\s*(from|import) lmms_eval", re.MULTILINE)
    users = {str(p.relative_to(ROOT)) for p in (ROOT / "sttm_lmms").rglob("*.py") if imports.search(p.read_text())}
    assert users == set()


def test_commands_of_the_core_do_not_need_the_wrappers():
    """The wrappers import lmms-eval and loguru, which only the extra `eval` installs."""
    from sttm_lmms.cli import COMMANDS

    wrappers = re.compile(r"^(from|import) sttm_lmms\.model_wrappers", re.MULTILINE)
    modules = {command.target.split(":")[0] for command in COMMANDS.values() if not command.extra and not command.raw}
    shared = {"sttm_lmms.cli.videos", "sttm_lmms.report.visualize"}
    optional = {"sttm_lmms.cli.installation"}  # they look at whatever is installed
    for module in (modules | shared) - optional:
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert not path.is_file() or not wrappers.search(path.read_text()), module


def test_constraints_lie_in_the_ranges():
    from packaging.requirements import Requirement

    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {r.name.lower(): next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}
    extras = [text for group in PROJECT["project"]["optional-dependencies"].values() for text in group]
    for text in [*PROJECT["project"]["dependencies"], *extras]:
        wanted = Requirement(text)
        if wanted.name.lower() in pinned:
            assert wanted.specifier.contains(pinned[wanted.name.lower()]), text


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path):
    """Built, unpacked next to nothing but its dependencies, and asked for everything that is not
    Python."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    source = tmp_path / "source"
    tracked = subprocess.check_output(["git", "-C", str(ROOT), "ls-files"], text=True).split()
    for name in tracked:
        if name.startswith(("sttm_lmms/", "model_wrappers/", "tasks/")) or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """
        import importlib.metadata as metadata, pathlib, sttm_lmms, sttm_lmms.tasks
        here = pathlib.Path(sttm_lmms.__file__).parent
        print("package", here)
        print("tasks", len(list(pathlib.Path(next(iter(sttm_lmms.tasks.__path__))).rglob("*.yaml"))))
        print("files", sorted({p.suffix for p in here.rglob("*") if p.is_file()}))
        from lmms_eval.models import MODEL_REGISTRY_V2 as registry
        found = registry.get_model_class("sttm_qwen2_vl")
        print("wrapper", __import__("sys").modules[found.__module__].__file__)
        from sttm_lmms.benchmarks.presets import preset_names
        print("presets", *preset_names())
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    # `-S`-like isolation is not needed: the target folder comes first, before the editable install
    # of this checkout.
    process = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in process.stdout.splitlines() if " " in line)
    assert said["package"].startswith(str(site))
    assert said["wrapper"].startswith(str(site))
    assert int(said["tasks"]) == len(list((ROOT / "tasks").rglob("*.yaml")))
    assert "paper-50" in said["presets"]
    wanted = {p.suffix for p in (ROOT / "sttm_lmms").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert wanted - {".pyc"} <= set(re.findall(r"'([^']*)'", said["files"])) | {""}
