"""The shape of the source: who may import whom, and how much there is to read."""

import ast
from functools import cache
from pathlib import Path

import pytest

import surefoot
from surefoot.update import UPDATE_RULES

pytestmark = pytest.mark.core

SOURCE = Path(surefoot.__file__).parent

NOUNS = {"errors", "limits", "config", "types", "spaces", "blocks"}
LADDER = [
    "distributions",
    "returns",
    "surrogate",
    "trust_region",
    "natural_gradient",
    "clip",
    "tabular",
]
PARTS = {"networks", "heads", "normalize", "envs", "presets"}
# One arrow: a module imports from its own layer and from those above it in this table.
LAYERS = [
    NOUNS,
    set(LADDER),
    {"update", "critic", "diagnostics", "lens", "guard", "shuffle"},
    {"rollout", "rollout_host"},
    {"experience", "loop_state", "iteration", "learner", "evaluation", "policy"},
    {"devices", "heartbeat", "ranks", "rendezvous", "actors"},
    {
        "trained",
        "steppers",
        "plan",
        "memory",
        "loop",
        "training",
        "many",
        "faults",
        "exporting",
        "exported",
        "cluster",
    },
    {"compare", "cells", "processes", "scores", "tables", "laboratory", "probe", "report"},
    {"cli", "commands", "__main__", "__init__"},
]
PLAIN = {"limits", "config", "types", "errors"}
# Modules beside the arrow: each may be imported from the rollout on, and knows only these.
KNOWS = {
    **{name: NOUNS | PARTS | {"distributions"} for name in PARTS},
    **{
        name: PLAIN
        for name in ("alarms", "checkpoint", "locks", "plots", "metrics", "flags", "statistics")
    },
    "programs": set(),
    "run": PLAIN | {"checkpoint", "locks"},
    "envs": NOUNS | PARTS | {"distributions", "tabular"},
    "loggers": PLAIN | {"run"},
    "progress": PLAIN | {"metrics"},
}
# Third-party packages that only these modules may import.
ONLY = {
    "equinox": {"networks"},
    "matplotlib": {"plots"},
    "rich": {"cli", "progress"},
    "ray": {"cluster"},
    "pickle": set(),
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
}
LADDER_PACKAGES = {
    "jax",
    "jaxtyping",
    "numpy",
    "scipy",
    "collections",
    "typing",
    "functools",
    "math",
}
MOST_LINES, MOST_FILES = 350, 5


def path_of(name):
    path = SOURCE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules():
    """Every module, as `clip` or `update.npg`; a package has its own name."""
    names = (path.relative_to(SOURCE).with_suffix("").parts for path in SOURCE.rglob("*.py"))
    return sorted(".".join(n[:-1] if len(n) > 1 and n[-1] == "__init__" else n) for n in names)


@cache
def imports(name):
    """Full names of all that a module imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if is_module(n) else node.module for n in names}
    return found


def is_module(full_name):
    inside = full_name.removeprefix("surefoot.")
    return inside != full_name and path_of(inside).exists()


def inner(name):
    """The surefoot modules that a module imports."""
    return {
        full.removeprefix("surefoot.") for full in imports(name) if full.startswith("surefoot.")
    }


def packages(name):
    """The other packages that a module imports."""
    return {full.partition(".")[0] for full in imports(name)} - {"surefoot"}


def top(name):
    return name.partition(".")[0]


def allowed(name):
    if name in KNOWS:
        return KNOWS[name] | {name}
    if name in LADDER:
        return {*LADDER[: LADDER.index(name) + 1], *PLAIN}
    level = next(level for level, layer in enumerate(LAYERS) if name in layer)
    beside = set(KNOWS) if level >= 3 else set()
    return set().union(*LAYERS[: level + 1]) | beside


def test_every_module_has_a_place_in_the_order():
    placed = set(KNOWS).union(*LAYERS)
    assert {top(name) for name in modules()} <= placed


@pytest.mark.parametrize("name", modules())
def test_imports_follow_the_arrow(name):
    known = {top(imported) for imported in inner(name)}
    assert known <= allowed(top(name))


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_is_read_without_leaving_the_mathematics(name):
    assert packages(name) <= LADDER_PACKAGES


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_only_where_it_is_at_home(package):
    importers = {top(name) for name in modules() if package in packages(name)}
    assert importers <= ONLY[package]


def test_settings_and_errors_load_without_jax():
    for name in ("config", "limits", "errors"):
        assert packages(name).isdisjoint({"jax", "jaxtyping", "numpy", "gymnasium"})


def needed(name, seen=()):
    """The ladder and update modules that a module imports, itself included, through any chain."""
    found = {name}
    for other in inner(name) - {*seen, "distributions"}:
        if other in LADDER or other.startswith("update."):
            found |= needed(other, (*seen, name))
    return found


def code_lines(name):
    """Lines that are neither blank nor part of a docstring."""
    text = path_of(name).read_text(encoding="utf-8")
    strings = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    documented = {n for node in strings for n in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and number not in documented)


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_a_rule_is_read_in_350_lines_across_five_files(rule):
    files = needed(UPDATE_RULES[rule].__module__.removeprefix("surefoot."))
    assert len(files) <= MOST_FILES
    assert sum(map(code_lines, files)) <= MOST_LINES
