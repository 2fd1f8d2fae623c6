"""Pages of the site whose text lies outside docs/, and links from docs/ to files outside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

OUTSIDE = {
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "experiments/benchmarks": "benchmarks/README.md",
    "experiments/measurements": "benchmarks/archive/measurements.md",
}
"""Page of the site -> file, relative to the repository. In docs/ the page is a stub with a link to the file."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def text(docs: Path, docname: str, source: str) -> str:
    """The Markdown of a page, with links that the site can follow.

    Args:
        docs: The folder docs/.
        docname: Path of the page below docs/, without its ending.
        source: The text of the file in docs/.

    Returns:
        The text of the outside file for the pages of `OUTSIDE`, else `source`. Links to files that are no page become plain text.

    Raises:
        FileNotFoundError: If a link leads to no file.
    """
    root = docs.parent
    file = root / OUTSIDE[docname] if docname in OUTSIDE else docs / f"{docname}.md"
    content = file.read_text(encoding="utf-8") if docname in OUTSIDE else source
    pages = {(root / path).resolve(): page for page, path in OUTSIDE.items()}
    pages[(root / "README.md").resolve()] = "index"

    def rewrite(link: re.Match[str]) -> str:
        image, label, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = (file.parent / target).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{file}: the link to {target} leads to no file")
        if path in pages:
            return f"[{label}](/{pages[path]}.md{anchor})"
        if path.is_relative_to(docs.resolve()):
            return f"{image}[{label}](/{os.path.relpath(path, docs)}{anchor})"
        return label

    return LINK.sub(rewrite, content)
