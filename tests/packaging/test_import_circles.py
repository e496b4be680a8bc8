"""No module needs another one that needs it: what is imported at module level forms no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"sttm_lmms": ROOT / "sttm_lmms", "sttm_lmms.model_wrappers": ROOT / "model_wrappers"}


def module_files() -> dict[str, Path]:
    """Name of each module of the package -> its file."""
    files = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            name = ".".join((package, *file.relative_to(folder).with_suffix("").parts))
            files[name.removesuffix(".__init__")] = file
    return files


def imports_when_loaded(statements: list[ast.stmt]) -> Iterator[tuple[str, list[str]]]:
    """``(module, names taken from it)`` of each import that runs when the module is loaded."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, []) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module is not None, "relative imports are not used here"
            yield statement.module, [alias.name for alias in statement.names]
        elif isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from imports_when_loaded(statement.orelse)
        elif not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt | ast.ExceptHandler)]
            for node in inner:
                yield from imports_when_loaded(node.body if isinstance(node, ast.ExceptHandler) else [node])


def needed_modules(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that ``name`` needs to be loaded, with the packages around them."""
    needed: set[str] = set()
    for module, names in imports_when_loaded(ast.parse(file.read_text(encoding="utf-8")).body):
        for target in (module, *(f"{module}.{taken}" for taken in names)):
            parts = target.split(".")
            needed |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # The packages around a module are being loaded already when it is its turn.
    around = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
    return (needed & known.keys()) - around


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    files = module_files()
    assert len(files) > 100
    graph = {name: needed_modules(name, file, files) for name, file in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of the circle


def test_a_circle_is_found(tmp_path: Path) -> None:
    known = {}
    for name, text in {"p.a": "from p import b", "p.b": "if True:\n    import p.a"}.items():
        known[name] = tmp_path / f"{name}.py"
        known[name].write_text(text)
    graph = {name: needed_modules(name, file, known) for name, file in known.items()}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.a"}}
