"""The files of the project, as the tests here read them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "canal_dns"

_NOT_OURS = {"build", "dist", "__pycache__", "htmlcov"}
_TEXT = {
    ".py",
    ".pyi",
    ".pyx",
    ".c",
    ".md",
    ".yaml",
    ".yml",
    ".json",
    ".cfg",
    ".toml",
    ".txt",
    ".sh",
    ".tpl",
    ".in",
    ".ini",
    "",
}


def modules():
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def texts():
    """Every text file of the project."""
    return sorted(path for path in _walk(ROOT) if path.suffix in _TEXT)


def documents():
    """Every Markdown file."""
    return [path for path in texts() if path.suffix == ".md"]


def name(path):
    """The path as a test's name."""
    return str(path.relative_to(ROOT))


def _walk(folder):
    for path in folder.iterdir():
        hidden = path.name.startswith(".") and path.name not in (".ci", ".github")
        if hidden or path.name in _NOT_OURS or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.stat().st_size < 2_000_000:
            yield path
