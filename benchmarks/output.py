"""Where a benchmark writes: a temporary folder for its data, and its section of a page of figures."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workplace(name: str, parent: Path | None) -> Iterator[Path]:
    """Make a folder, below `parent` if one is given, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"benchmark-{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_section(path: Path, new: str) -> None:
    """Replace the section of the same heading in the page at `path`, or append it; the page is made if need be."""
    path.write_text(replace_section(path.read_text() if path.exists() else "", new))


def replace_section(page: str, new: str) -> str:
    """Return the page with its section of the same heading replaced, or appended.

    Args:
        page: Markdown whose sections begin with `## `.
        new: a section; its first line is the heading.
    """
    before, found, rest = page.partition(new.partition("\n")[0] + "\n")
    after = rest.partition("\n## ")
    return before.rstrip() + "\n\n" + new + (f"\n## {after[2]}" if found and after[1] else "")
