"""The documentation site: pages from outside docs/, links that leave it, and tables that are made from the code.

A hook of MkDocs (mkdocs.yml names it). The files stay as GitHub shows them; what a site needs otherwise is done here.

- The guides beside the cards, CONTRIBUTING.md and CHANGELOG.md are pages; the notebook is one, too.
- A link to a file that is not a page leads to a copy of it.
- A line `[text](FILE#heading)<!-- include -->` becomes that section of FILE. On the page of FILE it becomes a link.
- `<!-- table: NAME -->` becomes a table of `tools.card_tables`.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = "docs/"
GUIDES = [
    *(f"{name}/README.md" for name in ("models", "attacks", "datasets", "recipes", "suites", "benchmarks")),
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
ELSEWHERE = {"README.md": "docs/index.md", "results/leaderboard.md": "results/leaderboard.html"}
SHOWN_AS_TEXT = (".py", ".toml")  # a browser would offer to save them
NOTEBOOK = "quickstart"

LINK = re.compile(r'(\]\(|<img [^>]*?src=")([^)\s"]+)')
INCLUDE = re.compile(r"^\[.*\]\(([^)\s#]+)#([^)\s]+)\)<!-- include -->$", re.MULTILINE)
TABLE = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$")
ITEM = re.compile(r"^(?:[-*]|\d+\.) +")

_included: dict[tuple[str, str], str] = {}  # file and heading, and the page that has that section


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of whole directories in the navigation."""
    config.nav = _expanded(config.nav)
    return config


def _expanded(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_expanded(part) for part in nav]
    if isinstance(nav, dict):
        return {title: _expanded(part) for title, part in nav.items()}
    if isinstance(nav, str) and nav.endswith("/*"):
        return [path.relative_to(ROOT / DOCS).as_posix() for path in sorted((ROOT / DOCS).glob(f"{nav[:-1]}*.md"))]
    return nav


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and note which sections are shown where."""
    for guide in GUIDES:
        files.append(File.generated(config, guide, abs_src_path=str(ROOT / guide)))
    notebook = json.loads((ROOT / DOCS / f"{NOTEBOOK}.ipynb").read_text())
    files.append(File.generated(config, f"{NOTEBOOK}.md", content="\n\n".join(_cells(notebook, files, config))))
    _included.clear()
    for file in files.documentation_pages():
        if file.src_uri not in GUIDES:
            for target, anchor in INCLUDE.findall(file.content_string):
                _included[_resolved(target, DOCS + file.src_uri), anchor] = file.src_uri
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What Python-Markdown makes the same of as GitHub, with links that lead somewhere on the site."""
    uri = page.file.src_uri
    origin = uri if uri in GUIDES else DOCS + uri
    for (path, anchor), shown_on in _included.items():
        if path == origin:
            markdown = _without_section(markdown, anchor, posixpath.relpath(shown_on, posixpath.dirname(uri)))
    markdown = TABLE.sub(lambda found: _table(found[1]), markdown)
    parts: list[str] = []
    end = 0
    for found in INCLUDE.finditer(markdown):
        parts.append(_relinked(markdown[end : found.start()], origin, uri, files, config))
        source = _resolved(found[1], origin)
        parts.append(_relinked(_section((ROOT / source).read_text(), found[2]), source, uri, files, config))
        end = found.end()
    return _indented("".join([*parts, _relinked(markdown[end:], origin, uri, files, config)]))


def _table(name: str) -> str:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tools.card_tables import table

    return table(name)


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _bounds(lines: list[str], anchor: str) -> tuple[int, int]:
    """Where a section begins, with its heading, and ends. Raises KeyError where there is none."""
    level, start = 0, 0
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith("```")
        heading = None if fenced else HEADING.match(line)
        if heading and level and len(heading[1]) <= level:
            return start, number
        if heading and not level and slugify(heading[2], "-") == anchor:
            level, start = len(heading[1]), number
    if not level:
        raise KeyError(f"there is no section '{anchor}'")
    return start, len(lines)


def _section(markdown: str, anchor: str) -> str:
    lines = markdown.splitlines()
    start, end = _bounds(lines, anchor)
    return "\n".join(lines[start:end])


def _without_section(markdown: str, anchor: str, link: str) -> str:
    """The text with a link in place of what a section says; the link is not to be resolved again."""
    lines = markdown.splitlines()
    start, end = _bounds(lines, anchor)
    name = lines[start].lstrip("# ")
    return "\n".join([*lines[: start + 1], "", f"[{name}](site:{link}#{anchor})", "", *lines[end:]])


# ---------------------------------------------------------------------------------------------------------------------
# Links


def _resolved(target: str, origin: str) -> str:
    """The path in the repository of a relative link in the file `origin`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _relinked(markdown: str, origin: str, uri: str, files: Files, config: MkDocsConfig) -> str:
    """Text of the file `origin` with its links as they must be on the page `uri`; code stays as it is."""

    def replaced(found: re.Match[str]) -> str:
        target, hash_, anchor = found[2].partition("#")
        if target.startswith("site:"):
            return found[1] + found[2].removeprefix("site:")
        if not target or ":" in target:
            return found[0]
        path = _resolved(target, origin)
        page = _included.get((path, anchor)) or _on_site(path, files, config)
        return f"{found[1]}{posixpath.relpath(page, posixpath.dirname(uri))}{hash_}{anchor}"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(replaced, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replaced, markdown[end:])])


def _on_site(path: str, files: Files, config: MkDocsConfig) -> str:
    """Where the site has this file of the repository; one that it lacks is copied. A missing one stays missing."""
    path = ELSEWHERE.get(path, path)
    within = path.removeprefix(DOCS)
    if path.startswith(DOCS) and files.get_file_from_path(within) is not None:
        return within
    if path in GUIDES:
        return path
    source = ROOT / path
    if source.is_dir():
        names = sorted(file.name for file in source.iterdir() if file.is_file())
        links = [posixpath.basename(_on_site(f"{path}/{name}", files, config)) for name in names]
        rows = "".join(f'<li><a href="{escape(link)}">{escape(link)}</a></li>' for link in links)
        listing = f"<!doctype html><meta charset=utf-8><title>{path}</title><h1>{path}</h1><ul>{rows}</ul>\n"
        return _added(File.generated(config, f"source/{path}/index.html", content=listing), files)
    if not source.is_file():
        return path
    uri = f"source/{path}" + ".txt" * path.endswith(SHOWN_AS_TEXT)
    return _added(File.generated(config, uri, abs_src_path=str(source)), files)


def _added(file: File, files: Files) -> str:
    if files.get_file_from_path(file.src_uri) is None:
        files.append(file)
    return file.src_uri


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def _indented(markdown: str) -> str:
    """Lists as Python-Markdown wants them: what belongs to an item is indented by four, where GitHub takes two."""
    lines: list[str] = []
    width, fenced = 0, False
    for line in markdown.splitlines():
        if not fenced and (item := ITEM.match(line)):
            width = len(item[0])
        elif line.strip() and not line.startswith(" " * max(width, 1)) and not fenced:
            width = 0 if lines and not lines[-1].strip() else width
        belongs = width and line.startswith(" " * width)
        lines.append(" " * (4 - width) + line if belongs and width < 4 else line)
        fenced ^= line.lstrip().startswith("```")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The notebook


def _cells(notebook: dict[str, Any], files: Files, config: MkDocsConfig) -> Iterator[str]:
    """The cells of a notebook, with what they printed and drew, as Markdown."""
    import base64

    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                uri = f"{NOTEBOOK}/{number}-{place}.png"
                picture = base64.b64decode("".join(data["image/png"]))
                files.append(File.generated(config, uri, content=picture))
                yield f"![What the cell above draws]({uri})"
            elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
                yield f"```text\n{text}\n```"
