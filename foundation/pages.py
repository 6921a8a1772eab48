"""The look of our pages, and how text from outside gets onto them. A page is one file that loads nothing."""

from pathlib import Path

import jinja2

HERE = Path(__file__).parent
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
"""Control characters can't stand in HTML: `text.translate(CONTROLS)` shows their pictures."""


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders, with page.css at hand. All that is put into a page is escaped, and a name that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
