"""What the documents promise exists: commands, options, files, make targets."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from pageone.cli import build_app
from pageone.engine.metrics import as_markdown

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def commands() -> dict[str, set[str]]:
    """Return the options of each command, ``bench tree`` and the like included."""
    found: dict[str, set[str]] = {}

    def walk(name: str, command: object) -> None:
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]
        found[name] = options | {"--help", "-h"}
        for child, inner in getattr(command, "commands", {}).items():
            walk(f"{name} {child}".strip(), inner)

    walk("", typer.main.get_command(build_app()))
    return found


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("target", ["demo", "test", "build", "lint", "soak", "bench", "clean", "help"])
def test_make_has_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_help_tells_every_target_that_is_meant_to_be_used() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "build", "soak", "bench", "clean"):
        assert re.search(rf"^{target}\b", told, re.MULTILINE)


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    assert as_markdown() in (ROOT / "docs" / "engine.md").read_text()


def test_every_command_has_a_help_of_its_own(pageone: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in commands():
        if name and " " not in name:
            done = pageone(name, "--help")
            assert done.returncode == 0, done.stderr
            assert "Usage" in done.stdout
