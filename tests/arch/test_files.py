"""What may not stand in any file of the project: places of one machine, registries, leftovers."""

import re

from tests.arch.sources import text_files

SELF = "tests/arch/test_files.py"

# Split so that this file does not find itself.
FORBIDDEN = {
    "a folder of one machine": r"(?<![\w.$}])/(?:work|home/\w|Users/\w)[/\w]",
    "a package registry": r"py" r"pi\.org|pythonhosted|registry\.npmjs|index-url|extra-index",
    "a leftover": r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b(?!\w)",
}


def test_no_forbidden_words() -> None:
    found = []
    for path, text in text_files():
        if path == SELF:
            continue
        for what, pattern in FORBIDDEN.items():
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path}:{line} names {what}: {match.group()}")
    assert found == []


def test_lock_files_pin_versions_and_name_no_place() -> None:
    locks = {path: text for path, text in text_files() if path.endswith(".lock")}
    assert {"requirements.lock", "requirements-dev.lock"} <= set(locks)
    for path, text in locks.items():
        for number, line in enumerate(text.splitlines(), start=1):
            requirement = line.split(";")[0].strip()
            pinned = re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][\w.+!]*", requirement)
            assert pinned or not requirement or requirement.startswith("#"), f"{path}:{number}"
