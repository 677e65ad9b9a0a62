"""Hooks of the documentation site: pages from outside docs/, links that leave it, no foreign hosts.

Links in the documents are relative to the checkout, so that a code host can follow them. On the
site a link into docs/ stays a link, with the title of its page in place of a file's name; one to
another file of the checkout becomes plain text.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Documents of the checkout's root that are pages too."""
LATER = {"serve.md": "Begin"}
"""Pages that stand in a section of the navigation as soon as they exist."""
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|link)\b[^>]*?\b(?:src|href)="
    r"[\"']?((?:https?:)?//[^\"'> ]+)"
)


def on_config(config: Any) -> Any:
    """Put pages into the navigation that need not exist yet."""
    for page, section in LATER.items():
        if (ROOT / "docs" / page).exists():
            next(s[section] for s in config.nav if isinstance(s, dict) and section in s).append(
                page
            )
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the documents of `BESIDE`, and the notebooks as pages."""
    from mkdocs.structure.files import File

    for name in BESIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    for path in sorted((ROOT / "docs").glob("notebooks/*.ipynb")):
        content = notebook_page(json.loads(path.read_text("utf-8")))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as a page: its text, its code, and what came out when it was executed."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                encoded = "".join(data["image/png"]).strip()
                parts.append(f'<img alt="output" src="data:image/png;base64,{encoded}">')
            elif printed := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bring the links of a page from the checkout to the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """The text with its links as the site has them.

    Args:
        page: the page's path on the site, as "recipes/prune.md".
    """
    place = page if page in BESIDE else f"docs/{page}"

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if not (ROOT / path).exists():
            return link[0]  # mkdocs says so
        if path.startswith("docs/"):
            path = re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
        elif path not in BESIDE:
            return text
        if text.endswith(".md"):  # a reader of the site knows no files
            text = title_of(path)
        return f"[{text}]({posixpath.relpath(path, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(replaced, markdown)


def title_of(path: str) -> str:
    """The first heading of a page of the site."""
    file = ROOT / path if path in BESIDE else ROOT / "docs" / path
    return file.read_text("utf-8").split("\n", 1)[0].removeprefix("# ")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from another host."""
    if loaded := _LOADED.search(output):
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri}: loads {loaded[1]}")
    return output
