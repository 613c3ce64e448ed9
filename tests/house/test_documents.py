"""What the documents promise exists: commands, options, files, make targets; and they stay short enough to be read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pageone.cli import build_app
from pageone.engine.metrics import as_markdown

ROOT = Path(__file__).resolve().parents[2]
LAB = sorted((ROOT / "docs" / "lab").glob("*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
#: What says how things are now; changes and the lab's diary do not.
REFERENCE = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
WORDS_MAX = 12_000  #: of the reference and of all help texts: more would not be read


def _walk() -> dict[str, Any]:
    """Return every command by its name, ``bench tree`` and the like included."""
    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        found[name] = command
        for child, inner in getattr(command, "commands", {}).items():
            walk(f"{name} {child}".strip(), inner)

    walk("", typer.main.get_command(build_app()))
    return found


def commands() -> dict[str, set[str]]:
    """Return the options of each command."""
    return {
        name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        for name, command in _walk().items()
    }


def words(text: str) -> int:
    """Return how many words a text has: what stands between spaces and has a letter or digit (no rules of tables)."""
    return sum(1 for word in text.split() if re.search(r"\w", word))


def spoken() -> list[tuple[str, str]]:
    """Return every ``pageone …`` that a document has as code, with the document."""
    uses = []
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = re.findall(r"^ {4}(?:sudo )?(pageone [^\n#]*)", text, re.MULTILINE)
        for fence in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
            blocks += re.findall(r"^\$? ?(?:sudo )?(pageone [a-z][^\n#]*)", fence, re.MULTILINE)
        blocks += re.findall(r"`(?:sudo )?(pageone [^`\n]*)`", text)
        uses += [(document.name, block.strip()) for block in blocks]
    return uses


def test_documents_speak_of_commands_at_all() -> None:
    assert len(spoken()) > 5


@pytest.mark.parametrize(("document", "use"), spoken())
def test_a_command_in_a_document_exists_with_its_options(document: str, use: str) -> None:
    known = commands()
    words = use.split(" -- ")[0].split()[1:]
    name = ""
    while words and f"{name} {words[0]}".strip() in known:
        name = f"{name} {words.pop(0)}".strip()
    assert name, f"{document}: no such command: {use}"
    for word in words:
        if word.startswith("-") and word != "--":
            assert word.split("=")[0].rstrip("],.") in known[name], f"{document}: {name} has no option {word}"


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, *LAB], ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        if "://" not in target:
            there = (document.parent / target) if target else document
            assert there.exists(), f"{document.name} links to {target}"
            assert not heading or heading in anchors(there), f"{document.name} links to {target}#{heading}"


def test_the_reference_and_all_help_texts_stay_short_enough_to_be_read() -> None:
    counts = {path.name: words(path.read_text()) for path in REFERENCE}
    counts["help texts"] = sum(
        words(command.help or "") + sum(words(getattr(parameter, "help", None) or "") for parameter in command.params)
        for command in _walk().values()
    )
    assert min(counts.values()) > 20, counts
    total = sum(counts.values())
    assert total <= WORDS_MAX, f"{total} words; what is not how things are now belongs in docs/lab: {counts}"


def test_what_was_measured_or_tried_on_a_day_is_in_the_lab_under_its_date() -> None:
    named = (ROOT / "docs" / "lab" / "index.md").read_text()
    for path in LAB:
        if path.name != "index.md":
            assert re.match(r"20\d\d-\d\d-\d\d-[a-z-]+\.md$", path.name), path.name
            assert f"({path.name})" in named, f"docs/lab/index.md does not name {path.name}"


@pytest.mark.parametrize("document", REFERENCE, ids=lambda path: path.name)
def test_tests_that_a_document_names_exist(document: Path) -> None:
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for name in re.findall(r"\btest_\w+\.py", document.read_text()):
        assert name in files, f"{document.name} names {name}"


def test_every_hazard_names_the_scenario_or_the_test_that_shows_it() -> None:
    rows = re.findall(r"^\|(?!-)(.*)\|(.*)\|(.*)\|$", (ROOT / "docs" / "hazards.md").read_text(), re.MULTILINE)
    scenarios = set(re.findall(r'strcmp\(what, "([a-z-]+)"\)', (ROOT / "tests/live/stress/stress.c").read_text()))
    functions = "\n".join(path.read_text() for path in (ROOT / "tests" / "live").rglob("test_*.py"))
    assert len(rows) > 30
    for hazard, _, shown in rows:
        names = re.findall(r"`([^`]+)`", shown)
        assert names or hazard.strip() == "hazard", f"nothing shows: {hazard}"
        for name in names:
            known = name.endswith(".py") or name in scenarios or f"def {name.rstrip('…')}" in functions
            assert known, f"{hazard}: there is no {name}"


def test_the_examples_of_one_give_what_they_say() -> None:
    said: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "one.md").read_text(), re.DOTALL):
        exec(block, said)
        if "rows" in said and "pages" not in said:
            assert said["rows"].tolist() == [[3, 4], [1, 2]]
            assert [said[name].tolist() for name in ("index", "inverse", "counts")] == [[0, 1], [0, 1, 0], [2, 1]]
        if "pages" in said and "tree" not in said:
            assert (said["ids"].tolist(), said["is_new"].tolist()) == ([0, 0], [True, False])
            assert sorted(said["words"]) == [b"", b"a", b"a\0"]
    assert (said["ids"].tolist(), said["is_new"].tolist()) == ([0, 1, 0], [True, True, False])


def test_before_a_commit_runs_what_the_suite_begins_with() -> None:
    assert "entry: make lint\n" in (ROOT / ".pre-commit-config.yaml").read_text()
    suite = re.search(r"^test:.*?^\S", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert suite
    assert " lint " in suite[0]


@pytest.mark.parametrize("target", ["demo", "test", "build", "lint", "soak", "bench", "docs", "clean", "help"])
def test_make_has_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_help_tells_every_target_that_is_meant_to_be_used() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "build", "soak", "bench", "docs", "clean"):
        assert re.search(rf"^{target}\b", told, re.MULTILINE)


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    assert as_markdown() in (ROOT / "docs" / "engine.md").read_text()


def test_every_command_has_a_help_of_its_own(pageone: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in commands():
        if name and " " not in name:
            done = pageone(name, "--help")
            assert done.returncode == 0, done.stderr
            assert "Usage" in done.stdout
