"""The house: who may import whom, what is loaded when, and that examples run."""

import ast
import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pytest

import polar_etl

PACKAGE = Path(polar_etl.__file__).parent

ROOMS = [  # a module imports, at its top level, only from rooms above its own
    ["errors"],
    ["events"],
    ["memory"],
    ["stop", "durable"],
    ["columns", "scratch"],
    ["vectors"],
    ["features"],
    ["pages"],
    ["pages.thrift", "pages.ahead"],
    ["pages.fetching", "pages.headers"],
    ["pages.files"],
    ["pages.levels"],
    ["pages.values"],
    ["pages.readers"],
    ["pages.vectors"],
    ["encoding"],
    [
        "encoding.slabs",
        "encoding.contents",
        "encoding.compression",
        "encoding.page_buffers",
        "encoding.uniqueness",
    ],
    ["encoding.chunks", "encoding.repeats", "encoding.words"],
    ["encoding.dictionaries", "encoding.flags"],
    ["encoding.part_format"],
    ["statistics"],
    ["statistics.double"],
    ["statistics.moments"],
    ["statistics.sums"],
    ["statistics.blocks"],
    ["statistics.standardize"],
    ["statistics.scaler_file"],
    ["statistics.scaler"],
    ["footers"],
    ["footers.alike", "footers.schema"],
    ["footers.chunk_table"],
    ["footers.layout"],
    ["footers.samples", "footers.texts"],
    ["short_chunks"],
    ["short_chunks.single_chunks", "short_chunks.short_pieces"],
    ["short_chunks.usual_headers"],
    ["short_chunks.chunk_files", "short_chunks.page_batches", "short_chunks.column_blocks"],
    ["short_chunks.single_pages"],
    ["sources"],
    ["sources.schemas", "sources.explained"],
    ["sources.base"],
    ["sources.gathered"],
    ["sources.by_arrow"],
    ["sources.vectors"],
    ["sources.decoding"],
    ["sources.first_look"],
    ["sources.parquet"],
    ["sources.streams"],
    ["sources.discovery"],
    ["storage"],
    ["storage.direct"],
    ["storage.parts"],
    ["storage.lock"],
    ["storage.manifest"],
    ["storage.changes"],
    ["storage.workspace"],
    ["planning"],
    ["planning.settings"],
    ["planning.selection"],
    ["planning.shapes", "planning.plan"],
    ["planning.decoding", "planning.batches", "planning.ways"],
    ["planning.bill"],
    ["planning.planner"],
    ["executors"],
    ["executors.local", "executors.transfer"],
    ["executors.forked"],
    ["passes"],
    ["passes.tasks"],
    ["passes.kept", "passes.shares", "passes.weights", "passes.in_turn"],
    ["passes.run"],
    ["passes.fitting"],
    ["passes.writing"],
    ["passes.streaming"],
    ["pipeline"],
    ["inspection"],
    ["generate"],
    ["api"],
    ["namespace"],
    ["_on_polars"],
    [""],
    ["cli.signals", "cli.startup"],
    ["cli.output", "cli.options"],
    ["cli.plans"],
    ["cli.session"],
    ["cli.commands"],
    ["cli.commands.fit", "cli.commands.plan", "cli.commands.status", "cli.commands.verify"],
    ["cli.commands.generate", "cli.commands.normalize", "cli.commands.transform"],
    ["cli.app"],
    ["cli"],
    ["__main__"],
]
PLACE = {name: place for place, room in enumerate(ROOMS) for name in room}
MAY_BE_MISSING = {"duckdb", "sklearn", "pandas", "dask", "pyspark"}
AT_TOP_LEVEL = {
    "numpy",
    "pyarrow",
    "xxhash",
    "typer",
    "rich",
    "polars",
    "zstandard",
    "zlib_ng",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def guarded(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path) -> set[str]:
    """Return the full names of all that a module imports when it is loaded."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("polar_etl.") in MODULES else node.module)
        elif guarded(node):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
    return found


def inner(names: set[str]) -> set[str]:
    ours = {name for name in names if name.split(".")[0] == "polar_etl"}
    return {name.removeprefix("polar_etl").removeprefix(".") for name in ours}


def test_every_module_has_its_place():
    assert set(MODULES) == set(PLACE)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_above(name):
    assert name in PLACE, f"{name} has no place in the table of rooms"
    # the package's own __init__ is loaded before every module, and imports nothing but `_on_polars`
    wrong = {
        other
        for other in inner(imported(MODULES[name]))
        if PLACE.get(other, len(ROOMS)) >= PLACE[name]
    }

    assert not wrong


def test_this_test_sees_imports(tmp_path):
    """So that the tests above can fail."""
    (tmp_path / "x.py").write_text(
        "import polar_etl.api\nfrom polar_etl import pipeline\nfrom polar_etl.cli import main\n"
        "try:\n    import numpy\nexcept ImportError:\n    pass\n"
        "class A:\n    from polar_etl.plan import Plan\n"
        "def f():\n    import polars\n"
    )

    found = imported(tmp_path / "x.py")

    assert inner(found) == {"api", "pipeline", "cli", "plan"}
    assert "numpy" in found
    assert "polars" not in found


def foreign(name: str) -> set[str]:
    roots = {other.split(".")[0] for other in imported(MODULES[name])}
    return roots - set(sys.stdlib_module_names) - {"polar_etl", "__future__"}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_an_optional_library_when_it_is_loaded(name):
    assert foreign(name) <= AT_TOP_LEVEL
    assert not foreign(name) & MAY_BE_MISSING


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("polars", {"namespace"}),
        ("typer", {"cli.app", "cli.options", "cli.session"}),
        ("rich", set()),
        ("psutil", set()),
        ("xxhash", {"storage.direct", "storage.parts"}),
        ("zstandard", {"pages.values", "encoding.compression", "short_chunks.single_chunks"}),
        ("zlib_ng", {"pages.values", "encoding.part_format", "encoding.dictionaries"}),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library, allowed):
    assert {name for name in MODULES if library in foreign(name)} <= allowed


@pytest.mark.parametrize(
    "name",
    [
        "errors",
        "events",
        "stop",
        "durable",
        "pages.thrift",
        "pages.headers",
        "storage.lock",
        "storage.workspace",
        "",
    ],
)
def test_rooms_that_need_nothing_but_the_standard_library(name):
    assert foreign(name) == set()


FOLDERS = {  # what they import from outside
    "pages": {"columns", "scratch"},
    "encoding": {"columns", "pages", "scratch"},
    "statistics": {
        "columns",
        "durable",
        "encoding",
        "errors",
        "features",
        "memory",
        "scratch",
        "vectors",
    },
    "footers": {"columns", "pages"},
    "short_chunks": {"columns", "footers", "pages", "scratch"},
    "sources": {
        "columns",
        "errors",
        "features",
        "footers",
        "memory",
        "pages",
        "short_chunks",
        "vectors",
    },
    "storage": {"durable", "encoding", "errors", "events", "pages", "statistics"},
    "executors": {"encoding", "errors", "memory"},
    "cli": {"api", "errors", "events", "inspection", "memory", "pipeline", "planning"},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_that_need_few_others(folder):
    inside = [path for name, path in MODULES.items() if name.startswith(f"{folder}.")]
    needed = {name.split(".")[0] for path in inside for name in inner(imported(path))}

    assert needed - {"", folder} <= FOLDERS[folder]


def test_folders_lie_one_above_the_other():
    """So there are no circles between them either."""
    folders = [name.split(".")[0] for room in ROOMS for name in room if "." in name]

    assert len(list(groupby(folders))) == len(set(folders))


def test_scratch_needs_numpy_alone():
    assert foreign("scratch") == {"numpy"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POLAR_ETL")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that are loaded after `code`."""
    tail = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = run("-c", code + tail)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_importing_the_package_loads_no_library():
    found = loaded_by("import polar_etl")

    assert "polar_etl" in found
    assert not found & {"numpy", "polars", "pyarrow", "typer", "rich", "psutil", "sqlite3"}


@pytest.mark.parametrize("name", polar_etl.__all__)
def test_errors_can_be_had_without_libraries(name):
    if name.endswith("Error"):
        found = loaded_by(f"from polar_etl import {name}")
        assert not found & {"numpy", "polars", "pyarrow", "typer"}
    else:
        assert "numpy" in loaded_by(f"from polar_etl import {name}")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["normalize", "--help"], ["status", "--help"], []], ids=str
)
def test_asking_for_help_loads_no_large_library(words):
    code = (
        "import sys\n"
        f"sys.argv[1:] = {words!r}\n"
        "from polar_etl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, 2), end.code\n"
    )

    assert not loaded_by(code) & {"polars", "pyarrow", "numpy"}


def test_the_package_runs_as_a_module():
    done = run("-m", "polar_etl", "--version")

    assert done.returncode == 0
    assert done.stdout.startswith("polar-etl 0.")
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["pipeline", "api", "inspection", "generate"])
def test_the_library_works_without_the_command_line(module):
    assert not loaded_by(f"import polar_etl.{module}") & {"typer", "rich", "polars"}


def with_examples() -> list[str]:
    found = []
    for info in pkgutil.walk_packages([str(PACKAGE)], "polar_etl."):
        if (
            info.name != "polar_etl.__main__"
            and ">>>" in Path(importlib.util.find_spec(info.name).origin).read_text()
        ):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )

    assert result.attempted > 0
    assert result.failed == 0


def test_the_readme_tells_of_every_room():
    table = (PACKAGE.parent / "README.md").read_text().split("| room | owns |")[1].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[2:]:
        rooms, owns = row.split("|")[1:3]
        for room in re.findall(r"`([\w/]+)`", rooms):
            inside = room.replace("/", ".") if room.endswith("/") else ""
            named |= {inside + name for name in re.findall(r"`(\w+)`", owns)} if inside else {room}

    hidden = {"", "_on_polars", "__main__"}
    hidden |= {name for name in MODULES if name.startswith("cli.commands.")}
    hidden |= {name.rpartition(".")[0] for name in MODULES}
    assert named == set(MODULES) - hidden


def test_the_crash_contract_names_tests_that_exist():
    root = PACKAGE.parent
    text = (root / "README.md").read_text().split("## Crash contract")[1].split("\n## ")[0]
    named = re.findall(r"`((?:tests/\w+/)?test_\w+\.py)?(?:::(test_\w+))?`", text)
    here = Path()
    for file, test in named:
        if file:
            here = root / file if "/" in file else root / "tests" / "faults" / file
            assert here.is_file(), file
        assert not test or f"def {test}(" in here.read_text(), f"{here}::{test}"
    assert len([test for _, test in named if test]) > 15
    assert [int(n) for n in re.findall(r"^(\d+)\. ", text, re.MULTILINE)] == list(range(1, 11))
