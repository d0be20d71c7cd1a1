"""The shape of the source: who may import whom."""

import ast
from functools import cache
from pathlib import Path

import pytest

import surefoot

pytestmark = pytest.mark.core

SOURCE = Path(surefoot.__file__).parent

# One arrow: a room imports from rooms on the lines above its own, and from itself.
FLOORS = (
    {"errors", "types", "config", "jax_defaults"},
    {"formulas"},
    {"rules", "networks", "exact"},
    {"envs"},
    {"parallel", "diagnostics", "storage"},
    {"training"},
    {"analysis", "exporting"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Rooms on one floor that know each other all the same.
NEIGHBOURS = {
    ("config", "errors"),
    ("exact", "rules"),  # `practice` tries the training rules on a table
    ("__main__", "__init__"),
}
# Third-party packages that only these modules or rooms may import.
ONLY = {
    "matplotlib": {"analysis.plots"},
    "rich": {"cli"},
    "ray": {"parallel.ray"},
    "pickle": set(),
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
}
FORMULAS_PACKAGES = {
    *(
        "jax",
        "jaxtyping",
        "numpy",
        "scipy",
        "collections",
        "typing",
        "functools",
        "math",
        "dataclasses",
    ),
}


def modules():
    """Every module, as `rules.npg`; a package has its own name."""
    names = (path.relative_to(SOURCE).with_suffix("").parts for path in SOURCE.rglob("*.py"))
    return sorted(".".join(n[:-1] if len(n) > 1 and n[-1] == "__init__" else n) for n in names)


def path_of(name):
    path = SOURCE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_module(full_name):
    inside = full_name.removeprefix("surefoot.")
    return inside != full_name and path_of(inside).exists()


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


def inner(name):
    """The surefoot modules that a module imports."""
    return {
        full.removeprefix("surefoot.") for full in imports(name) if full.startswith("surefoot.")
    }


def packages(name):
    """The other packages that a module imports."""
    return {full.partition(".")[0] for full in imports(name)} - {"surefoot"}


def room(name):
    return name.partition(".")[0]


def test_every_module_lives_in_a_room():
    assert {room(name) for name in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize("name", modules())
def test_imports_follow_the_arrow(name):
    here = room(name)
    others = {room(imported) for imported in inner(name)} - {here}
    beside = {other for other in others if (here, other) in NEIGHBOURS}
    above = {other for other in others - beside if FLOOR_OF[other] >= FLOOR_OF[here]}
    assert not above


def test_exact_quantities_share_no_code_with_what_trains():
    sharing = {
        name
        for name in modules()
        if room(name) == "exact" and {"formulas", "rules"} & {room(other) for other in inner(name)}
    }
    assert sharing == {"exact.practice"}


def test_no_modules_import_each_other_in_a_circle():
    seen, done = [], set()

    def visit(name):
        assert name not in seen, f"circle: {' -> '.join([*seen, name])}"
        if name not in done:
            seen.append(name)
            for other in sorted(inner(name)):
                visit(other)
            seen.pop()
            done.add(name)

    for name in modules():
        visit(name)


@pytest.mark.parametrize("name", [name for name in modules() if room(name) == "formulas"])
def test_formulas_are_read_without_leaving_the_mathematics(name):
    assert packages(name) <= FORMULAS_PACKAGES


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_only_where_it_is_at_home(package):
    importers = {name for name in modules() if package in packages(name)}
    homes = tuple(f"{home}." for home in ONLY[package])
    assert all(f"{name}.".startswith(homes) for name in importers)


@pytest.mark.parametrize("name", [name for name in modules() if room(name) in ("config", "errors")])
def test_settings_and_errors_load_without_jax(name):
    assert packages(name).isdisjoint({"jax", "jaxtyping", "numpy", "gymnasium"})
