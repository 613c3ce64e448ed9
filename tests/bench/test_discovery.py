"""The bench command finds benchmarks by their modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pageone import bench
from pageone.cli import build_app


def test_a_module_with_register_becomes_a_subcommand_and_one_without_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zz_probe.py").write_text(
        "def register(app):\n    @app.command('zz-probe')\n    def run(): print('measured')\n"
    )
    (tmp_path / "zz_helper.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(bench, "__path__", [*bench.__path__, str(tmp_path)])
    try:
        result = CliRunner().invoke(build_app(), ["bench", "zz-probe"])
        assert result.exit_code == 0, result.output
        assert result.output == "measured\n"
        listing = CliRunner().invoke(build_app(), ["bench", "--help"]).output
        assert "zz-probe" in listing
        assert "zz-helper" not in listing
        assert "zz_helper" not in listing
    finally:
        for name in ("zz_probe", "zz_helper"):
            sys.modules.pop(f"{bench.__name__}.{name}", None)
