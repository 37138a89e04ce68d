"""What editors and type checkers see of the front door is what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_stub_is_up_to_date():
    pytest.importorskip("ruff", reason="the stub is formatted by ruff")
    words = [sys.executable, str(ROOT / "scripts" / "write_stub.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run scripts/write_stub.py"
