"""Commands that documents show."""

import re
import shlex

COMMAND = re.compile(r"(lpo|lpo-data|lpo-eval|make|python -m|pip install)( \S.*)?")
ANY = "configs/pods/codellama_7b_v5e_4x4.yaml"  # where a reader puts a config of their own
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text, kinds=None):
    """A page's blocks of code: of the languages `kinds`, or all."""
    return [code for kind, code in FENCE.findall(text) if kinds is None or kind in kinds]


def spans(text):
    """What stands in a page's lines as code."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def lines_of(text):
    """A text's lines, in their order, but for remarks. Continued lines are joined; of a shell's loop the first round is taken."""
    loop = None  # a name, and its first value
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        line = re.sub(r"(^|\s+)# .*|\s{2,}[(#].*", "", line.strip().removeprefix("$ "))
        if begun := re.match(r"for (\w+) in (\S+).*; do$", line):
            loop = begun.groups()
        elif line == "done":
            loop = None
        elif line:
            yield line if loop is None else line.replace(f"${loop[0]}", loop[1])


def commands_of(text):
    """The commands among a text's lines, in their order."""
    return [line for line in lines_of(text) if COMMAND.fullmatch(line)]


def words_of(line):
    """A command's words: what only a shell would read, and dots that stand for more, left out."""
    line = re.split(r" (?:[|>]|&&) ", line)[0].replace("CONFIG=...", f"CONFIG={ANY}").replace("JOB=...", "JOB=mine").replace('"..."', '""')
    line = re.sub(r"\[(--[\w-]+ ?\S*)\]", r"\1", line)
    return [word for word in shlex.split(line, comments=True) if word != "..."]
