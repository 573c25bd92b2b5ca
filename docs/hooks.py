"""Bring the pages that lie outside docs/ into the site, and let links lead to them there as they do in the repository.

README.md, RESULTS.md and others are at the top of the repository, and pages link to them by relative paths. mkdocs
knows files of docs/ only; mkdocs.yml names this file under `hooks`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

BROUGHT = ("README.md", "RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
RENAMED = {"README.md": "readme.md"}  # README.md would be the first page, which index.md is
FOLDERS = "reference/files.md"  # where links to a folder lead, since a site does not list folders
CODE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""(?P<start>\]\(|\b(?:src|href|srcset)=["'])(?P<path>[^)\s"'#]*)(?P<anchor>#[^)\s"']*)?""")


def links(text: str) -> Iterator[re.Match[str]]:
    """Yield the links of a page within the repository, with `path` and `anchor`; code has none."""
    without_code = CODE.sub(lambda match: " " * len(match[0]), text)
    for match in LINK.finditer(without_code):
        if not is_outside(match["path"]):
            yield match


def is_outside(path: str) -> bool:
    """Tell whether a link leads out of the repository."""
    return re.match(r"[a-z][a-z0-9+.-]*:|//", path) is not None


def uri_of(path: Path, root: Path) -> str | None:
    """Return where a file of the repository is in the site, None for what lies outside of the repository."""
    if path.is_dir():
        return FOLDERS
    for folder in (root / "docs", root):
        if path.is_relative_to(folder):
            name = path.relative_to(folder).as_posix()
            return RENAMED.get(name, name)
    return None


def reached(pages: list[Path], root: Path) -> set[Path]:
    """Return every file of the repository to which the pages link, or pages to which these link."""
    found: set[Path] = set()
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for link in links(page.read_text(encoding="utf-8")):
            path = (page.parent / link["path"]).resolve()
            if path not in found and path.is_file() and path.is_relative_to(root):
                found.add(path)
                waiting += [path] if path.suffix == ".md" else []
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of BROUGHT, and every file to which a page links and that is not in docs/."""
    root = Path(config.config_file_path).parent.resolve()
    known = {Path(str(file.abs_src_path)).resolve() for file in files}
    brought = [path for name in BROUGHT if (path := root / name).is_file()]
    pages = [path for path in known if path.suffix == ".md"] + brought
    for path in sorted({*brought, *reached(pages, root)} - known):
        files.append(File.generated(config, str(uri_of(path, root)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page with links to where files are in the site."""
    root, source = Path(config.config_file_path).parent.resolve(), Path(str(page.file.abs_src_path)).resolve()
    return relinked(markdown, source, page.file.src_uri, root)


def relinked(text: str, source: Path, uri: str, root: Path) -> str:
    """Return the text of the page `source`, which is at `uri` in the site, with its links changed accordingly."""

    def changed(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if not path or is_outside(path):
            return match[0]
        target = Path(os.path.normpath(source.parent / path))
        new = uri_of(target, root)
        if new is None:
            return match[0]
        anchor = "" if target.is_dir() else anchor
        new = posixpath.relpath(new, posixpath.dirname(uri) or ".")
        is_html = match["start"] != "]("  # which mkdocs leaves as it is
        return match["start"] + (re.sub(r"\.md$", ".html", new) if is_html else new) + anchor

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
    return "".join(parts)
