"""Tables of a method's parameters and presets, from its source."""

from __future__ import annotations

from lvlm_attn.hooks.index import Method, index


def cell(text: str) -> str:
    """Text of one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def parameter_tables(name: str) -> str:
    """The parameters of a method, its presets, and how it is written.

    Args:
        name: as `parse` reads it.
    """
    method = index()[name]
    lines = ["| parameter | default | values | what it does |", "|---|---|---|---|"]
    for item in method.parameters:
        default = "required" if item.default is None else f"`{item.default}`"
        values = ", ".join(dict.fromkeys(part for part in (item.kind, item.allowed) if part))
        text = item.text + (" In code only." if item.in_code_only else "")
        lines.append(f"| `{item.name}` | {default} | {cell(values)} | {cell(text)} |")
    return "\n".join([*lines, "", *presets(method), "", f"Written as text: `{method.example}`."])


def presets(method: Method) -> list[str]:
    """The table of presets; nothing where there are none."""
    if not method.presets:
        return []
    lines = ["| preset | sets | options of `generate` | from |", "|---|---|---|---|"]
    for item in method.presets:
        settings = f"`{item.settings}`" if item.settings else ""
        options = f"`{item.generate}`" if item.generate else ""
        lines.append(f"| {cell(item.name)} | {cell(settings)} | {cell(options)} | {cell(item.source)} |")
    return lines
