"""Which part of the project may import which, read from the sources and seen in fresh interpreters."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "brain_core": {"brain_core"},
    "toy": {"toy", "brain_core"},
    "llm": {"llm", "brain_core"},
    "proofs_check": {"proofs_check", "toy", "brain_core"},
}
PARTS = {*ALLOWED, "tests"}
HEAVY = {"torch", "transformers"}
KNOWN_FILES = {
    "brain_core": {"__init__.py", "estimators.py", "_checks.py"},
    "llm": {"__init__.py", "align.py", "config.py", "tiny/world.py"},
    "toy": {"__init__.py", "problems.py", "studies/variance.py"},
    "proofs_check": {"__init__.py", "claims.py", "section_4.py"},
}


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def imported(path: Path, package: str) -> set[str]:
    """The top-level names that a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else str(node.module))
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {name.split(".")[0] for name in names}


def in_a_fresh_interpreter(code: str, folder: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(statement: str) -> set[str]:
    """Top-level modules in memory after a statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    return set(json.loads(in_a_fresh_interpreter(code)))


def test_the_sources_are_found() -> None:
    for part, names in KNOWN_FILES.items():
        assert names <= {path.relative_to(ROOT / part).as_posix() for path in sources(part)}


def test_the_reader_of_imports_sees_every_way_to_import(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import a.b, c as d\nfrom e.f import g\nfrom . import h\nfrom .i import j\n"
        "def k():\n    import l\n    __import__('m')\n    importlib.import_module('n.o')\n"
        "if TYPE_CHECKING:\n    from p import q\n"
    )
    assert imported(file, "own") == {"a", "c", "e", "own", "l", "m", "n", "p"}


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_the_parts_below_it(part: str) -> None:
    for path in sources(part):
        ours = imported(path, part) & PARTS
        assert ours <= ALLOWED[part], f"{path.relative_to(ROOT)} imports {sorted(ours - ALLOWED[part])}"


def test_the_core_imports_neither_torch_nor_any_model_library() -> None:
    outside = set().union(*(imported(path, "brain_core") for path in sources("brain_core"))) - set(
        sys.stdlib_module_names
    )
    assert outside == {"brain_core", "array_api_compat"}


@pytest.mark.parametrize("part", ["brain_core", "toy", "proofs_check"])
def test_importing_a_part_that_is_not_llm_loads_no_model_library(part: str) -> None:
    assert not modules_after(f"import {part}") & (HEAVY | {"llm"})


def test_importing_llm_alone_loads_no_array_library() -> None:
    assert not modules_after("import llm") & (HEAVY | {"numpy", "pyarrow", "scipy", "matplotlib", "tyro", "yaml"})


def test_the_public_names_of_llm_are_there_on_first_use() -> None:
    import llm

    assert {name: getattr(llm, name).__module__ for name in llm.__all__} == {
        "AlignConfig": "llm.config",
        "UserError": "llm.errors",
        "run": "llm.align",
    }


def test_a_name_that_llm_does_not_have_is_refused_as_usual() -> None:
    import llm

    with pytest.raises(AttributeError, match="module 'llm' has no attribute 'nothing'"):
        _ = llm.nothing


def test_the_settings_load_without_torch() -> None:
    assert not modules_after("import llm; llm.AlignConfig(); llm.UserError()") & HEAVY


@pytest.mark.parametrize("part", ALLOWED)
def test_ours_is_the_package_that_is_imported(part: str) -> None:
    """An unrelated package on PyPI is also called llm."""
    found = Path(in_a_fresh_interpreter(f"import {part}; print({part}.__file__)").strip()).resolve()
    assert found == (ROOT / part / "__init__.py").resolve()


@pytest.mark.parametrize("part", ALLOWED)
def test_ours_is_the_package_that_these_tests_see(part: str) -> None:
    found = Path(str(__import__(part).__file__)).resolve()
    assert found == (ROOT / part / "__init__.py").resolve()
