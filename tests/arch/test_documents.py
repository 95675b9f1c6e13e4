"""Documents match the code: glossary, decisions, packaged data, and the map of folders."""

import ast
import re
from pathlib import Path

import pytest

from tests.arch.sources import PACKAGE, ROOT, files, modules

DOCS = ROOT / "docs"
DATA = PACKAGE / "data"
ADRS = sorted((DOCS / "adr").glob("[0-9]*.md"))

# One word per concept: the nouns that the design fixes.
NOUNS = (
    "Site", "Host", "Gpu", "Link", "Circuit", "Model", "Deployment", "Replica", "Gateway", "Agent",
    "View", "Digest", "Choice", "Class", "Contract", "Entitlement", "Allowance", "Hold", "Usage",
    "Charge", "Entry", "Invoice", "Lease", "Receipt",
)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def glossary() -> list[tuple[str, str]]:
    """(noun, where) of each row of the table in docs/glossary.md."""
    rows = re.findall(r"^\| \*\*([\w ]+)\*\* \| .+? \| (.+?) \|$", read(DOCS / "glossary.md"), re.M)
    return [(noun, where) for noun, where in rows]


def defined() -> set[tuple[str, str]]:
    """(path within the package, name) of everything that is defined at the top of a module."""
    found = set()
    for module in modules("src/isochrone"):
        path = module.path.removeprefix("src/isochrone/")
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                found.add((path, node.name))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.add((path, node.targets[0].id))
    return found


def test_every_noun_of_the_design_is_in_the_glossary() -> None:
    assert set(NOUNS) <= {noun for noun, _ in glossary()}


def test_every_noun_exists_where_the_glossary_says_or_is_planned() -> None:
    known = defined()
    for noun, where in glossary():
        if where == "planned":
            built = [path for path, name in known if name == noun and path.startswith("core/")]
            assert built == [], f"{noun} exists: say where"
            continue
        place = re.fullmatch(r"`(\w+)` in `([\w/]+\.py)`", where)
        assert place, f"{noun}: expected `Name` in `path.py`, or planned; not {where}"
        assert (place[2], place[1]) in known, f"{noun}: no {place[1]} in {place[2]}"


def test_decisions_are_numbered_and_indexed() -> None:
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))
    index = read(DOCS / "adr" / "README.md")
    for path in ADRS:
        assert f"({path.name})" in index, f"{path.name} is not in the index"
    linked = re.findall(r"\((\d{4}[\w-]+\.md)\)", index)
    assert sorted(linked) == [path.name for path in ADRS]


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.stem)
def test_a_decision_is_one_page_with_its_parts(path: Path) -> None:
    text = read(path)
    assert re.match(rf"# {path.name[:4]} \S", text)
    assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.M)
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.M)
    for part in ("Context", "Decision", "Consequences", "Alternatives"):
        assert f"## {part}\n" in text, f"no {part}"
    assert text.count("\n") <= 60


def test_packaged_files_state_their_origin() -> None:
    for path in files("src/isochrone/data"):
        if path.name == "README.md":
            continue
        folder = next(each for each in path.parents if (each / "README.md").exists())
        name = str(path.relative_to(folder))
        assert name in read(folder / "README.md"), f"{folder / 'README.md'} does not name {name}"


def test_every_folder_is_on_the_map() -> None:
    maps = read(ROOT / "README.md") + read(ROOT / "ARCHITECTURE.md")
    inits = (*PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("*/*/__init__.py"))
    packages = [path.parent for path in inits]
    for folder in sorted((*packages, DATA)):
        assert f"{folder.name}/" in maps, f"no document says what {folder} is for"


def test_links_between_documents_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(path)):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
