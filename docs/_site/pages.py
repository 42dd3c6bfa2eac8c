"""Hooks of mkdocs: pages made from the source, and links from the pages into the repository.

A page of a method holds the line `{{ parameters }}`, which becomes the tables of its parameters and presets, read
off its dataclass and docstring. Every family gets a page. CONTRIBUTING and CHANGELOG become pages as they are.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from families import page_of  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402
from methods import parameter_tables  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

from lvlm_attn.families import models  # noqa: E402
from lvlm_attn.hooks.index import index  # noqa: E402

_COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_UPWARDS = re.compile(r"\]\((?:\.\./)+([^)#]+)(#[^)]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_INTO_DOCS = re.compile(r"\]\(docs/([^)]+)\)")


def on_config(config: Any) -> Any:
    """Lists the pages of methods and families in the navigation."""
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] += [f"methods/{name}.md" for name in index()]
        if "Families" in entry:
            entry["Families"] += [
                {family.title: f"families/{name}.md"} for name, family in sorted(models().items())
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made or copied."""
    for name, source in _COPIED.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, name, content=_INTO_DOCS.sub(r"](\1)", text)))
    for name, family in models().items():
        files.append(File.generated(config, f"families/{name}.md", content=page_of(family)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in a method's tables, and points links that leave the pages at the repository."""
    path = page.file.src_uri
    if path.startswith("methods/") and "{{ parameters }}" in markdown:
        markdown = markdown.replace("{{ parameters }}", parameter_tables(Path(path).stem))

    def link(found: re.Match[str]) -> str:
        target = found[1]
        anchor = found[2] or ""
        name = next((page for page, source in _COPIED.items() if source == target), None)
        up = "../" * path.count("/")
        if name is not None:
            return f"]({up}{name}{anchor})"
        if target in {file.src_uri for file in files}:
            return f"]({up}{target}{anchor})"
        return f"]({config['repo_url']}/blob/main/{target}{anchor})"

    return _UPWARDS.sub(link, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Formulas become MathML, which browsers show without a script."""

    def formula(found: re.Match[str]) -> str:
        return str(convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline"))

    return _FORMULA.sub(formula, content)
