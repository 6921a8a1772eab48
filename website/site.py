"""What mkdocs calls: it adds the pages that are made of something else, and leads links out of docs/ where they belong.

Pages that stand elsewhere in the tree, as CHANGELOG.md does, are shown as they are. The commands' page is made of their parsers, the config's of
the schema, that of Python's names of `lpo_jax.__all__`.
"""

import argparse
import dataclasses
import os
import posixpath
import re
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from data_pipeline import cli as lpo_data
from evaluation import cli as lpo_eval
from foundation.files import read_text
from lpo_jax import _PLACES, objectives
from lpo_jax import cli as lpo
from lpo_jax.config import load
from lpo_jax.config.explain import explain, texts
from lpo_jax.config.optim import OPTIMIZERS
from website import ROOT

SOURCE = "https://github.com/lpo-jax/lpo-jax/blob/main/"
COPIES = {"launching.md": "launch/README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that stand outside docs/: name in the site -> file in the tree."""

LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")


def pages() -> dict[str, str]:
    """The pages that docs/ doesn't hold, as Markdown."""
    made = {"reference/cli.md": commands(), "reference/config.md": settings(), "reference/python.md": names(), "citing.md": citing()}
    return {page: read_text(ROOT / file) for page, file in COPIES.items()} | made


def led(markdown: str, page: str) -> str:
    """A page's Markdown, its links to files outside docs/ made links to their page, or to the source."""
    source = COPIES.get(page, f"docs/{page}")

    def lead(found: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        shown = {file: page for page, file in COPIES.items()}.get(file, file.removeprefix("docs/"))
        if shown == file:  # the site has no page of it
            return f"{found[1]}{SOURCE}{file}{found[3]}"
        return f"{found[1]}{posixpath.relpath(shown, posixpath.dirname(page) or '.')}{found[3]}"

    return LINK.sub(lead, markdown)


def commands() -> str:
    """Every command's --help."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "What `--help` says, of every command. Sizes, times and bounds stand with their options.", ""]
    for program in (lpo.program(), lpo_data.program(), lpo_eval.program()):
        parts += [f"## {program.name}", ""]
        for name, parser in program.commands.items():
            parts += [f"### {program.name} {name}", "", "```text", _plain(parser), "```", ""]
    return "\n".join(parts)


def _plain(parser: argparse.ArgumentParser) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", parser.format_help()).strip()  # Python 3.14 colours it


def settings() -> str:
    """Every key of a config: a whole one, then the options of each objective and optimizer."""
    lines = [
        "# Config",
        "",
        "What `lpo config configs/tiny_cpu.yaml` prints: each key, what it means, and where this config differs from the default.",
        "",
    ]
    lines += ["```yaml", explain(load(ROOT / "configs" / "tiny_cpu.yaml")).rstrip(), "```", ""]
    objective = {name: record.options for name, record in objectives.OBJECTIVES.items()}
    for title, key, classes in (("Objectives", "objective", objective), ("Optimizers", "optim", OPTIMIZERS)):
        lines += [f"## {title}", "", f"`stages.NAME.{key}: {{name: ..., ...}}`", ""]
        for name, options in classes.items():
            lines += [f"### {name}", "", "| key | | default |", "|---|---|---|", *_rows(options), ""]
    return "\n".join(lines)


def _rows(cls: Any, within: str = "") -> Iterator[str]:
    """A line of the table for each option of a dataclass, and of those that it holds."""
    told, hints = texts(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, kinds = f"{within}{field.name}", (hints[field.name], *typing.get_args(hints[field.name]))
        if nested := [kind for kind in kinds if dataclasses.is_dataclass(kind)]:
            yield from _rows(nested[0], f"{key}.")
        elif key != "name":
            choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is typing.Literal else ()
            text = told.get(field.name, "") + "".join([" [", " or ".join(choices), "]"] if choices else [])
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            default = "" if needed else f"`{'null' if field.default is None else field.default}`"
            yield f"| `{key}` | {text.replace('|', chr(92) + '|')} | {default} |"


def names() -> str:
    """The library's front."""
    lines = [
        "# Python",
        "",
        "`import lpo_jax` has these names, and loads each when it is asked for. [An example](../training.md#from-python).",
        "",
    ]
    for name, place in sorted(_PLACES.items(), key=lambda item: item[0].lower()):
        lines += [f"## lpo_jax.{name}", "", f"::: {place.replace(':', '.')}", ""]
    return "\n".join(lines)


def citing() -> str:
    """How to cite, from CITATION.cff."""
    found = yaml.safe_load(read_text(ROOT / "CITATION.cff"))
    lines = [
        "# How to cite",
        "",
        found["message"],
        "",
        "```bibtex",
        "@software{lpo_jax,",
        f"  title = {{{found['title']}: {found['abstract']}}},",
    ]
    lines += [f"  author = {{{{{found['authors'][0]['name']}}}}},", f"  url = {{{found['repository-code']}}}", "}", ""]
    for work in found["references"]:
        key = f"{work['authors'][0]['family-names'].lower()}{work['year']}"
        authors = " and ".join(f"{each['family-names']}, {each['given-names']}" for each in work["authors"])
        fields = {"title": work["title"], "author": authors, "booktitle": work["collection-title"], "year": work["year"]}
        fields |= {name: work[name] for name in ("doi", "url") if name in work}
        lines += [f"@inproceedings{{{key},", ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items()), "}", ""]
    return "\n".join([*lines[:-1], "```", "", "The same stands in CITATION.cff, which GitHub and Zenodo read.", ""])


def on_files(files: Any, config: Any) -> Any:
    """mkdocs': the files of the site."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs': a page before it becomes HTML."""
    return led(markdown, page.file.src_uri)
