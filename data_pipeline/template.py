"""A pair as text: what a model reads (the prompt), and what it is to write (the answer).

A template is a Jinja file with two blocks, `prompt` and `answer` (what it sets beside them, both see); those in `data_pipeline/templates/` come with us. One is chosen when shards are
built, and goes with them: into the run, into its exports, and from there to whoever asks the model anything.

| block | may use |
|---|---|
| prompt | `instruction`; `history`: what was said before, as (role, text); `think`: a thought is asked for; `system`; |
|        | `chat(instruction, system)`: history and both in the tokenizer's own chat template |
| answer | `reasoning`, which may be empty; `answer`: the code in a fence, or a whole answer as it stands; or else `code` and `language` |

A pair without an instruction is a completion task, which no template touches: its prompt is the code in front of the first changed line.

A template may write control tokens (`<|im_end|>`): they become tokens. In what users give they are text.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_type_hints

from data_pipeline import chat, records
from data_pipeline.pairs import Pair
from data_pipeline.tokenizer import CLOSE, OPEN, Tokenizer
from foundation.errors import DataError
from foundation.files import Json, read_text

log = logging.getLogger(__name__)

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
    """How instructions are put. Manifests, runs and exports hold these five."""

    name: str  # for messages: "alpaca", or a file's name
    source: str  # Jinja
    system: str = ""  # what `chat` puts in front as the system's
    thinks: bool = True  # pairs with reasoning were seen: a thought is asked for
    chat: str | None = None  # the tokenizer's chat template as it was then, if this one writes with it; tokenizers change theirs


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


def ours() -> list[str]:
    """The names of the templates that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.j2"))


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
        raise DataError(f"template {name}: no such file, and none of ours ({', '.join(ours())})")
    template = checked(Template(name if file == shipped else records.shown(file), read_text(file)), tokenizer, f"template {name}")
    if tokenizer is not None and tokenizer.chat is not None and prompt(template, "instruction", tokenizer).whole:
        template = replace(template, chat=tokenizer.chat)
        if begins := _turn(template, tokenizer)[0]:
            log.warning("the chat template ignores add_generation_prompt: answers begin without its %r", begins)
    return with_system(template, system, tokenizer) if system else template, why


def checked(template: Template, tokenizer: Tokenizer | None, where: str) -> Template:
    """The template, which has shown that it writes.

    Raises:
      DataError: it is no Jinja, lacks a block, or fails; `where` it stands is named.
    """
    try:
        blocks = chat.compiled(template.source, strict=True).blocks
        if missing := {"prompt", "answer"} - blocks.keys():
            raise chat.TemplateError(f"it lacks the block {', '.join(sorted(missing))}")
        prompt(template, "instruction", tokenizer)
        _answer(template, "thought", "python", code=True)
    except chat.TemplateError as error:
        raise DataError(f"{where}: {error}; mend it, or give another --template") from None
    return template


def with_system(template: Template, system: str, tokenizer: Tokenizer | None) -> Template:
    """A template with another system text.

    Raises:
      DataError: it refuses a system text, or has no place for it.
    """
    found = replace(template, system=system)
    try:
        asked = prompt(found, "instruction", tokenizer)
        if asked == prompt(template, "instruction", tokenizer) and system.strip() not in asked.shown:
            raise chat.TemplateError("it has no place for a system text: leave --system out, or give another --template")
    except chat.TemplateError as error:
        raise DataError(f"template {template.name} with --system: {error}") from None
    return found


def alpaca() -> Template:
    """The papers'."""
    return Template("alpaca", read_text(SHIPPED / "alpaca.j2"))


def of_facts(facts: Json, where: str | Path = "", remedy: str = "copy it again, or choose one with --template") -> Template:
    """A template as manifests and exports hold it; {}: they were written before there was more than Alpaca's.

    Raises:
      DataError: it is none; `where` it stands is named.
    """
    if facts == {}:
        return alpaca()
    kinds, needed = get_type_hints(Template), {"name", "source"}
    known = isinstance(facts, dict) and needed <= facts.keys() <= kinds.keys()
    if not known or not all(isinstance(value, kinds[name]) for name, value in facts.items()):
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
        return _chat(template, [*said, ("user", user)], system, tokenizer)

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


def conversation(template: Template, messages: History, tokenizer: Tokenizer) -> Prompt:
    """Messages as the tokenizer's chat template writes them, up to where the assistant goes on, whoever spoke last.

    Raises:
      chat.TemplateError: the template refuses them.
    """
    said = [(role, _guarded(text, tokenizer)) for role, text in messages]
    return Prompt(_marked(_chat(template, said, _guarded(template.system, tokenizer), tokenizer), tokenizer), whole=True)


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
    end = _end_of_turn(template, tokenizer) if asked.whole and tokenizer is not None else None
    return Text(asked, before, pair.chosen, pair.rejected, after, end)


def ends(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens besides end-of-text that end an answer in this template."""
    end = _end_of_turn(template, tokenizer) if prompt(template, "x", tokenizer).whole else None
    return () if end is None else (end,)


def first_changed_line(rejected: str, chosen: str) -> int:
    """Character index where the first line that differs begins."""
    same = 0
    while same < min(len(rejected), len(chosen)) and rejected[same] == chosen[same]:
        same += 1
    return chosen.rfind("\n", 0, same) + 1


def _chat(template: Template, said: History, system: str, tokenizer: Tokenizer | None) -> str:
    """What was said in the tokenizer's chat template; `system` goes first, unless a system text was said."""
    source = template.chat if template.chat is not None or tokenizer is None else tokenizer.chat
    if tokenizer is None or source is None:
        raise chat.TemplateError("the tokenizer has no chat template")
    first = [("system", system)] if system and not any(role == "system" for role, _ in said) else []
    try:
        return chat.write(source, [{"role": role, "content": text} for role, text in (*first, *said)], tokenizer.specials)
    except chat.TemplateError as error:
        raise chat.TemplateError(f"the tokenizer's chat template: {error}") from None


def _answer(template: Template, reasoning: str, language: str, code: bool) -> tuple[str, str]:
    """What stands in front of the code, and behind it."""
    answer = f"```{language}\n{_HERE}\n```" if code else _HERE
    given = {"reasoning": reasoning, "language": language, "code": _HERE, "answer": answer}
    parts = _block(template, "answer", given).split(_HERE)
    if len(parts) != 2:
        raise chat.TemplateError(f"its answer holds the code {len(parts) - 1} times: write {{{{ answer }}}} or {{{{ code }}}} once")
    return parts[0], parts[1]


def _block(template: Template, name: str, given: Mapping[str, object]) -> str:
    return chat.limited(chat.compiled(template.source, strict=True), given, name)


def _turn(template: Template, tokenizer: Tokenizer) -> tuple[str, str]:
    """What a chat template writes in front of the assistant's words that no prompt has, even if it is to end where they begin; and behind them."""
    source = template.chat or tokenizer.chat
    return ("", "") if source is None else _turn_of(source, tuple(sorted(tokenizer.specials.items())))


@functools.lru_cache(maxsize=16)
def _turn_of(source: str, specials: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    asked = [{"role": "user", "content": "x"}]
    try:
        prompt, bare = (chat.write(source, asked, dict(specials), goes_on) for goes_on in (True, False))
        before, _, after = chat.write(source, [*asked, {"role": "assistant", "content": _HERE}], dict(specials), False).partition(_HERE)
    except chat.TemplateError:
        return "", ""
    return before.removeprefix(prompt).strip() if prompt == bare and before.startswith(prompt) else "", after


def _end_of_turn(template: Template, tokenizer: Tokenizer) -> int | None:
    """The control token by which a chat template ends what the assistant says."""
    if tokenizer.control is None:
        return None
    found = tokenizer.control.search(_turn(template, tokenizer)[1])
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
