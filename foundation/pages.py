"""The look of our pages, and how text from outside gets onto them. A page is one file that loads nothing."""

from pathlib import Path

import jinja2

HERE = Path(__file__).parent
_SEEN: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_SEEN |= {0x7F: 0x2421} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SEEN |= {
    code: f"\\u{code:04x}" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF)
}


def visible(text: str) -> str:
    """A text whose control characters are seen, not obeyed: those that steer terminals, can't stand in HTML, or turn the direction of writing."""
    return text.translate(_SEEN)


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders, with page.css at hand. All that is put into a page is `visible` and escaped; a name that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, HERE]),
        autoescape=True,
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
