"""Sphinx's settings; `make docs` builds with every warning an error."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from cluster import config
from cluster.version import __version__

project = "cluster"
author = "The cluster developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"cluster {version}"
exclude_patterns = ["_build"]
nitpicky = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files outside of docs/; tests/tree checks that they exist
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": True, "undoc-members": False}


def _settings_table() -> str:
    """The settings with the sentence that stands below each in the code, as a MyST table."""
    source = inspect.getsource(config.Settings)
    sentences = dict(re.findall(r"^    (\w+): [^\n]+\n    \"\"\"(.+?)\"\"\"", source, re.MULTILINE | re.DOTALL))
    lines = ["| setting | type | default | what it is |", "|---|---|---|---|"]
    for field in dataclasses.fields(config.Settings):
        default = "of this machine" if field.default is dataclasses.MISSING else repr(field.default)
        sentence = " ".join(sentences[field.name].split())
        lines.append(f"| `{field.name}` | {str(field.type).replace('|', 'or')} | {default} | {sentence} |")
    return "\n".join(lines) + "\n"


_generated = Path(__file__).with_name("_build") / "generated"
_generated.mkdir(parents=True, exist_ok=True)
(_generated / "settings.md").write_text(_settings_table(), encoding="utf-8")


def _as_markdown(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings here mark code with single backquotes, which reStructuredText calls a reference."""
    lines[:] = [re.sub(r"(?<![`:\w])`([^`\n]+)`(?!`)", r"``\1``", line) for line in lines]


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_markdown)  # type: ignore[attr-defined]
