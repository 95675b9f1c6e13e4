"""Imports point down: import-linter's contracts in pyproject.toml hold and cover everything."""

import tomllib

from importlinter.cli import lint_imports

from tests.arch.sources import ROOT, modules

LOADED_BY_PATH = "src/isochrone/adapters/postgres/migrations"  # by Alembic


def test_contracts_hold() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_package_is_left_out() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    first = settings["tool"]["importlinter"]["contracts"][0]
    assert first["exhaustive"], "the contract of layers must not skip a package"
    assert first["exhaustive_ignores"] == ["__main__"]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {
        (ROOT / module.path).parent
        for module in modules("src")
        if not module.path.startswith(LOADED_BY_PATH)
    }
    missing = sorted(str(each) for each in folders if not (each / "__init__.py").exists())
    assert missing == [], "import-linter does not see folders without __init__.py"
