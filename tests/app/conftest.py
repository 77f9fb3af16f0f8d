"""What tests of other users share."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def folder():
    """Everybody may come to it, which pytest's own folders do not allow."""
    made = Path(tempfile.mkdtemp(prefix="canal-dns-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
