"""A pair as text: what a model reads (the prompt), and what it is to write (the answer).

A template is a Jinja file with two blocks, `prompt` and `answer`; those in `data_pipeline/templates/` come with us. One is chosen when shards are
built, and goes with them: into the run, into its exports, and from there to whoever asks the model anything.

| block | may use |
|---|---|
| prompt | `instruction`; `history`: what was said before, as (role, text); `think`: a thought is asked for; `system`; |
|        | `chat(instruction, system)`: history and both in the tokenizer's own chat template |
| answer | `reasoning`, which may be empty; `answer`: the code in a fence, or a whole answer as it stands; or else `code` and `language` |

A pair without an instruction is a completion task, which no template touches: its prompt is the code in front of the first changed line.

A template may write control tokens (`<|im_end|>`): they become tokens. In what users give they are text.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import chat
from data_pipeline.pairs import Pair
from data_pipeline.tokenizer import CLOSE, OPEN, Tokenizer
from foundation.errors import DataError
from foundation.files import Json, read_text

_SPLIT, _HERE = "\ufdd2", "\ufdd3"
"""Noncharacters too. `_SPLIT` stands within a control token that a user has written; `_HERE` stands for what isn't known yet."""
RESERVED = frozenset((OPEN, CLOSE, _SPLIT, _HERE))

History = Sequence[tuple[str, str]]
"""(role, text) of what was said before."""

SHIPPED = Path(__file__).parent / "templates"
FILE = "prompt_template.json"
"""Where an exported model holds the template that it was trained with."""


@dataclass(frozen=True)
class Template:
    """How instructions are put. Manifests, runs and exports hold these four."""

    name: str  # for messages: "alpaca", or a file's name
    source: str  # Jinja
    system: str = ""  # what `chat` puts in front as the system's
    thinks: bool = True  # pairs with reasoning were seen: a thought is asked for


@dataclass(frozen=True)
class Prompt:
    """A prompt as text; control tokens stand between OPEN and CLOSE."""

    text: str
    whole: bool = False  # a chat template wrote it, BOS and all

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        return tokenizer.encode(self.text).ids if self.whole else tokenizer.document(self.text)

    @property
    def shown(self) -> str:
        """For people."""
        return self.text.replace(OPEN, "").replace(CLOSE, "")


@dataclass(frozen=True)
class Text:
    """A pair's prompt, and for each side the text after it with the code's place in that text."""

    prompt: Prompt
    before_code: str  # answer text in front of the code, the same on both sides
    chosen: str
    rejected: str
    after_code: str
    end: int | None  # the token that ends the answer; None: end-of-text

    def answer(self, code: str) -> str:
        return self.before_code + code + self.after_code


def load(name: str | None, tokenizer: Tokenizer | None, system: str = "") -> tuple[Template, str]:
    """A template by its name or file, and why it is this one. Without a name: chat if the tokenizer has a template for it, else alpaca.

    Raises:
      DataError: there is no such template, it is no Jinja, or lacks a block.
    """
    why = "as asked for"
    if name is None:
        has = tokenizer is not None and tokenizer.chat is not None
        name, why = ("chat", "the tokenizer has a chat template") if has else ("alpaca", "the tokenizer has no chat template")
    shipped = SHIPPED / f"{name}.j2"
    file = shipped if shipped.is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.j2")))
        raise DataError(f"template {name}: no such file, and none of ours ({known})")
    template = Template(name if file == shipped else file.name, read_text(file), system)
    check(template, tokenizer, f"template {name}")
    return template, why


def check(template: Template, tokenizer: Tokenizer | None, where: str) -> None:
    """Try a template.

    Raises:
      DataError: it is no Jinja, lacks a block, or can't be written; `where` it stands is named.
    """
    try:
        blocks = chat.compiled(template.source, strict=True).blocks
        if missing := {"prompt", "answer"} - blocks.keys():
            raise chat.TemplateError(f"it lacks the block {', '.join(sorted(missing))}")
        prompt(template, "instruction", tokenizer)
        _answer(template, "thought", "python", code=True)
    except chat.TemplateError as error:
        raise DataError(f"{where}: {error}") from None


def alpaca() -> Template:
    """The papers'."""
    return Template("alpaca", read_text(SHIPPED / "alpaca.j2"))


def of_facts(facts: Json, where: str = "", remedy: str = "copy it again, or choose one with --template") -> Template:
    """A template as manifests and exports hold it; {}: they were written before there was more than Alpaca's.

    Raises:
      DataError: it is none; `where` it stands is named.
    """
    if not facts:
        return alpaca()
    types = {each.name: bool if each.name == "thinks" else str for each in dataclasses.fields(Template)}
    if (
        not facts.keys() <= types.keys()
        or not {"name", "source"} <= facts.keys()
        or any(type(facts[key]) is not types[key] for key in facts)
    ):
        raise DataError(f"{where}: damaged (template: none of ours); {remedy}")
    return Template(**facts)


def prompt(template: Template, instruction: str, tokenizer: Tokenizer | None, think: bool = True, history: History = ()) -> Prompt:
    """The prompt for an instruction; with `think` the model goes on with a thought, where the template tells the two apart.

    Blanks around the instruction don't count.

    Raises:
      chat.TemplateError: the template fails, or the instruction holds what no text holds.
    """
    used = False

    def write(user: str, system: str = "") -> str:
        nonlocal used
        used = True
        if tokenizer is None or tokenizer.chat is None:
            raise chat.TemplateError("the tokenizer has no chat template: give one that has, or another --template")
        first = [("system", system)] if system and not any(role == "system" for role, _ in said) else []
        messages = [{"role": role, "content": text} for role, text in (*first, *said, ("user", user))]
        return chat.write(tokenizer.chat, messages, tokenizer.specials)

    said = [(role, _guarded(text, tokenizer)) for role, text in history]
    given = {
        "instruction": _guarded(instruction.strip(), tokenizer),
        "history": said,
        "think": think,
        "chat": write,
        "system": _guarded(template.system, tokenizer),
    }
    text = _block(template, "prompt", given)
    return Prompt(_marked(text, tokenizer), used)


def as_it_stands(text: str) -> Prompt:
    """A user's text as a prompt, without a template; it holds no control tokens.

    Raises:
      chat.TemplateError: it holds what no text holds.
    """
    return Prompt(_guarded(text, None))


def conversation(messages: list[dict[str, str]], tokenizer: Tokenizer) -> Prompt:
    """Messages (role, content) in the tokenizer's chat template, up to where the assistant goes on.

    Raises:
      chat.TemplateError: the template refuses them.
    """
    assert tokenizer.chat is not None
    guarded = [message | {"content": _guarded(message["content"], tokenizer)} for message in messages]
    return Prompt(_marked(chat.write(tokenizer.chat, guarded, tokenizer.specials), tokenizer), whole=True)


def render(pair: Pair, template: Template, tokenizer: Tokenizer | None) -> Text:
    """The text that a model is trained on. `tokenizer`: whose control tokens the template writes; None: it isn't there yet.

    Raises:
      chat.TemplateError: the template fails, or the pair holds what no text holds.
    """
    for text in (pair.chosen, pair.rejected):
        _guarded(text, None)
    if not pair.instruction and not pair.plain:
        cut = first_changed_line(pair.rejected, pair.chosen)
        return Text(Prompt(pair.chosen[:cut]), "", pair.chosen[cut:], pair.rejected[cut:], "", None)
    asked = prompt(template, pair.instruction, tokenizer, bool(pair.reasoning), pair.history)
    answer = _answer(template, _guarded(pair.reasoning, tokenizer), pair.language, pair.code)
    before, after = (_marked(part, tokenizer) for part in answer)
    end = _end_of_turn(tokenizer) if asked.whole and tokenizer is not None else None
    return Text(asked, before, pair.chosen, pair.rejected, after, end)


def ends(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens besides end-of-text that end an answer in this template."""
    end = _end_of_turn(tokenizer) if prompt(template, "x", tokenizer).whole else None
    return () if end is None else (end,)


def first_changed_line(rejected: str, chosen: str) -> int:
    """Character index where the first line that differs begins."""
    same = 0
    while same < min(len(rejected), len(chosen)) and rejected[same] == chosen[same]:
        same += 1
    return chosen.rfind("\n", 0, same) + 1


def _answer(template: Template, reasoning: str, language: str, code: bool) -> tuple[str, str]:
    """What stands in front of the code, and behind it."""
    answer = f"```{language}\n{_HERE}\n```" if code else _HERE
    given = {"reasoning": reasoning, "language": language, "code": _HERE, "answer": answer}
    parts = _block(template, "answer", given).split(_HERE)
    if len(parts) != 2:
        raise chat.TemplateError(f"its answer holds the code {len(parts) - 1} times: write {{{{ answer }}}} or {{{{ code }}}} once")
    return parts[0], parts[1]


def _block(template: Template, name: str, given: Mapping[str, object]) -> str:
    found = chat.compiled(template.source, strict=True)
    return chat.limited(lambda: "".join(found.blocks[name](found.new_context(dict(given)))))


@functools.lru_cache(maxsize=16)
def _turn_ends_with(source: str, specials: tuple[tuple[str, str], ...]) -> str:
    """What a chat template writes behind the assistant's words."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _HERE}]
    try:
        return chat.write(source, messages, dict(specials), goes_on=False).rpartition(_HERE)[2]
    except chat.TemplateError:
        return ""


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The control token by which a chat template ends what the assistant says."""
    if tokenizer.chat is None or tokenizer.control is None:
        return None
    found = tokenizer.control.search(_turn_ends_with(tokenizer.chat, tuple(sorted(tokenizer.specials.items()))))
    return tokenizer.backend.token_to_id(found[0]) if found else None


def _guarded(text: str, tokenizer: Tokenizer | None) -> str:
    """What a user has written, for a template: its control tokens don't look like any."""
    if found := RESERVED.intersection(text):
        raise chat.TemplateError(f"the text holds U+{ord(min(found)):04X}, which is no character")
    if tokenizer is None or tokenizer.control is None:
        return text
    return tokenizer.control.sub(lambda name: name[0][0] + _SPLIT + name[0][1:], text)


def _marked(text: str, tokenizer: Tokenizer | None) -> str:
    """What a template has written: its control tokens between OPEN and CLOSE, the user's as text."""
    if tokenizer is not None and tokenizer.control is not None:
        text = tokenizer.control.sub(lambda name: OPEN + name[0] + CLOSE, text)
    return text.replace(_SPLIT, "")
