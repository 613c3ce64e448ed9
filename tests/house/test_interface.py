"""What callers see of the package: every public function says what it does, and its signature says with what."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pageone

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "pageone"
#: What people write against: of benchmarks only the command line is meant for anybody.
MODULES = [path for path in sorted(PACKAGE.rglob("*.py*")) if path.suffix in (".py", ".pyi")]
MODULES = [path for path in MODULES if "bench" not in path.relative_to(PACKAGE).parts]

#: Where a signature has ``Any`` as the type of a value, and why it can say no more.
ANY = {
    "engine/queue.py: Workers.drain": "results of whatever jobs were pushed; those who push them name the type",
    "live/patience.py: read": "handed on to `work` as they are",
    "live/patience.py: spare": "handed on to `work` as they are, and its result is dropped",
    "one/tree.py: ArrowStrings.type": "pyarrow's, which has no types of its own",
    "one/tree.py: ArrowStrings.buffers": "pyarrow's, which has no types of its own",
    "scan/report.py: ScanReport.to_dataframe": "pandas's, which need not be installed",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(path: Path) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield the public classes and functions of a module, and the methods of the former, as ``path: name``."""
    below = [(str(path.relative_to(PACKAGE)) + ": ", ast.parse(path.read_text()).body)]
    while below:
        prefix, body = below.pop()
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                special = re.fullmatch(r"__\w+__", node.name)
                if special or not node.name.startswith("_"):
                    yield prefix + node.name, node
                    if isinstance(node, ast.ClassDef):
                        below.append((f"{prefix}{node.name}.", node.body))


def asks(function: Function) -> list[ast.arg]:
    """Return what a function is given, but for ``self``."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [argument for argument in named if argument is not None and argument.arg not in ("self", "cls")]


def says_nothing(annotation: ast.expr) -> bool:
    """Whether ``Any`` stands for a value: not so in ``dict[str, Any]`` (JSON) and ``NDArray[Any]`` (any dtype)."""
    text = re.sub(r"\b(dict\[str, |npt\.NDArray\[)Any\]", "", ast.unparse(annotation))
    return re.search(r"\bAny\b", text) is not None


def vague(path: Path) -> Iterator[str]:
    """Yield the public functions of a module whose signatures say nothing of some value."""
    for name, node in public(path):
        if isinstance(node, Function):
            types = [argument.annotation for argument in asks(node)] + [node.returns]
            if any(annotation is None or says_nothing(annotation) for annotation in types):
                yield name


def test_a_type_that_says_nothing_is_found() -> None:
    said = {"dict[str, Any]": False, "npt.NDArray[Any] | None": False, "Any": True, "Sequence[Any]": True}
    said |= {"Any | None": True, "Callable[..., Any]": True, "dict[Any, int]": True}
    assert {text: says_nothing(ast.parse(text, mode="eval").body) for text in said} == said


def is_said_by_its_class(function: Function, owner: str | None) -> bool:
    """Whether the docstring ``owner`` of a class covers a method: how one is made, or an attribute that it names."""
    attribute = "property" in [ast.unparse(decorator) for decorator in function.decorator_list]
    return owner is not None and (function.name.startswith("__") or (attribute and f"``{function.name}``" in owner))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_name_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    said = {name: ast.get_docstring(node) for name, node in public(path)}
    for name, node in public(path):
        overload = any("overload" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))
        covered = isinstance(node, Function) and is_said_by_its_class(node, said.get(name.rpartition(".")[0]))
        assert said[name] or overload or covered, name


def test_no_signature_leaves_open_what_a_value_is_without_a_reason() -> None:
    found = {name for path in MODULES for name in vague(path)}
    assert found == set(ANY)


def documented() -> list[str]:
    """Return the names that the page of the interface shows."""
    return re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def test_the_page_of_the_interface_shows_what_the_package_exports() -> None:
    shown = {name.rsplit(".", 1)[-1] for name in documented()}
    assert set(pageone.__all__) - {"__version__", "PageOneError"} <= shown
    assert "pageone.errors" in documented()


@pytest.mark.parametrize("name", documented())
def test_what_the_page_of_the_interface_shows_is_there_and_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(pkgutil.resolve_name(name))


def test_an_engine_takes_its_options_by_name_alone() -> None:
    options = list(inspect.signature(pageone.Engine).parameters.values())
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    described = inspect.getdoc(pageone.Engine) or ""
    assert not [option.name for option in options if f"\n    {option.name}: " not in described]
