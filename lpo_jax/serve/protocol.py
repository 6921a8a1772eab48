"""OpenAI's JSON, with no network in it: a body becomes requests, completions become an answer.

What would change the result and isn't computed here is refused by name; what changes nothing is accepted. `top_k` is an extension, and so is the
`seed` of an answer, which repeats it.
"""

import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tokenizers.decoders import DecodeStream

from data_pipeline.template import as_it_stands
from data_pipeline.tokenizer import Tokenizer
from foundation.files import Json
from lpo_jax.decode.request import Completion, Request, SamplingConfig
from lpo_jax.decode.sample import CONTEXT
from lpo_jax.decode.session import Progress

Chat = Callable[[list[dict[str, str]]], list[int]]
"""Messages (role, content) -> a prompt. Raises ValueError at messages that can't be one."""

_IGNORED = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
    + ("safety_identifier", "service_tier", "store", "user")
)
"""Parameters that change no completion."""

_NEUTRAL: Json = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "suffix": "",
    "tool_choice": "none",
    "top_logprobs": 0,
}
"""Parameters that aren't computed here, with the value at which they change nothing."""


class Refusal(Exception):  # noqa: N818
    """An answer that isn't 200."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> Json:
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Served:
    """What is served."""

    name: str  # what clients call it
    tokenizer: Tokenizer
    vocab: int  # a prompt's tokens lie below
    max_len_tokens: int  # of a prompt and its completion
    chat_prompt: Chat
    fingerprint: str  # of all that decides results, besides the request
    adapters: Mapping[str, Chat] = field(default_factory=dict)  # those beside the model: what clients call each, and how it is asked


# --- Bodies.


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_what_matters(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        asked = {k: v for k, v in given.items() if v is not None and k not in _IGNORED}
        return {k: v for k, v in asked.items() if k in cls.model_fields or (v not in ([], {}) and (k not in _NEUTRAL or v != _NEUTRAL[k]))}


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Body(_Strict):
    model: str
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1, ge=0, le=2)
    top_p: float = Field(1, ge=1e-6, le=1)
    top_k: int = Field(0, ge=-1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, temperature: float) -> float:
        if 0 < temperature < 0.01:
            raise ValueError("give 0 (greedy) or at least 0.01")
        return temperature


_Item = TypeVar("_Item")
_Many = Annotated[list[_Item], Field(min_length=1, max_length=2048, fail_fast=True)]  # the first fault is enough
_Tokens = Annotated[list[int], Field(fail_fast=True)]


class _CompletionBody(_Body):
    prompt: str | _Many[str] | _Tokens | _Many[_Tokens]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = None

    @field_validator("logprobs")
    @classmethod
    def _only_chosen(cls, logprobs: int | None) -> int | None:
        if logprobs:
            raise ValueError("only the chosen tokens' are computed: give 0")
        return logprobs


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | _Many[_Part]
    name: str = ""

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class _ChatBody(_Body):
    messages: _Many[_Message]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False


@dataclass(frozen=True)
class Asked:
    """What a body asks for."""

    chat: bool
    requests: list[Request]  # one a prompt; samples are numbered through: a sample's number is its choice's index
    stream: bool
    include_usage: bool
    logprobs: bool


def read(raw: bytes, chat: bool, served: Served) -> Asked:
    """A body of /v1/completions, or of /v1/chat/completions.

    Raises:
      Refusal: it is malformed, names another model, asks what isn't computed, or doesn't fit; with the parameter's name.
    """
    body: _CompletionBody | _ChatBody
    try:
        body = _ChatBody.model_validate_json(raw) if chat else _CompletionBody.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from None
    names = [served.name, *served.adapters]
    if body.model not in names:
        there = f"{', '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'}"
        raise Refusal(404, f"the model {body.model!r} isn't served here, {there}", "model", "model_not_found")
    adapter = None if body.model == served.name else body.model
    if isinstance(body, _ChatBody):
        try:
            tokens = served.adapters.get(body.model, served.chat_prompt)([message.plain() for message in body.messages])
        except ValueError as error:
            raise Refusal(400, f"messages: {error}", "messages") from None
        prompts, new, logprobs = [tokens], body.max_completion_tokens or body.max_tokens, body.logprobs
    else:
        prompts, new, logprobs = _tokens(body.prompt, served.tokenizer), body.max_tokens, body.logprobs is not None
    if logprobs and body.stream:
        raise Refusal(400, "logprobs: only without stream", "logprobs")
    seed = secrets.randbelow(2**32) if body.seed is None else body.seed
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    requests = []
    for number, prompt in enumerate(prompts):
        length = _length(prompt, new, served, "messages" if chat else "prompt")
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        sampling = SamplingConfig(body.temperature, min(max(body.top_k, 0), served.vocab), body.top_p, length, stop)
        requests.append(Request(f"{name}.{number}", prompt, seed, number * body.n, body.n, sampling, adapter))
    return Asked(chat, requests, body.stream, body.stream_options.include_usage, logprobs)


def _refusal(error: ValidationError) -> Refusal:
    """The first parameter that is wrong, with all that is wrong with it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    if not first["loc"]:
        return Refusal(400, f"the body: {first['msg']}")
    if first["type"] == "extra_forbidden":
        param = ".".join(map(str, first["loc"]))
        return Refusal(400, f"{param}: unknown, or not computed here", param, "unsupported_parameter")
    param = str(first["loc"][0])
    said = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in found if e["loc"][0] == param)
    return Refusal(400, f"{param}: {'; or: '.join(said)}", param)


def _tokens(prompt: str | list[str] | list[int] | list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    one = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt)
    several = cast("list[str | list[int]]", [prompt] if one else prompt)
    try:
        return [as_it_stands(each).ids(tokenizer) if isinstance(each, str) else each for each in several]
    except ValueError as error:
        raise Refusal(400, f"prompt: {error}", "prompt") from None


def _length(prompt: list[int], new: int | None, served: Served, param: str) -> int:
    """How many tokens to generate; a chat that doesn't say gets all that fit."""
    if not prompt:
        raise Refusal(400, f"{param}: no token", param)
    if not all(0 <= token < served.vocab for token in prompt):
        raise Refusal(400, f"{param}: tokens lie in 0 .. {served.vocab - 1}", param)
    most = served.max_len_tokens
    length = max(most - len(prompt), 1) if new is None else new
    if len(prompt) + length > most:
        message = f"{param}: {len(prompt)} tokens and {length} of the completion are more than the {most} that fit here"
        raise Refusal(400, message, param, "context_length_exceeded")
    return length


# --- Answers.


@dataclass
class Answer:
    """What a client gets, at once (`whole`) or as it comes (`begin`, `more` for each news, `end`)."""

    asked: Asked
    served: Served
    _done: dict[int, Completion] = field(default_factory=dict)
    _sent: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self.asked.requests[0]
        kind = ("chat.completion.chunk" if self.asked.stream else "chat.completion") if self.asked.chat else "text_completion"
        self._frame = {
            "id": first.id.rpartition(".")[0],
            "object": kind,
            "created": int(time.time()),
            "model": first.adapter or self.served.name,
            "system_fingerprint": self.served.fingerprint,
            "seed": first.seed,
        }

    def whole(self, done: Mapping[int, Completion]) -> Json:
        """Completions by sample -> the body."""
        self._done = dict(done)
        choices = []
        for index, request in self._samples():
            text, c = done[index].text, done[index]
            said: Json = {"message": {"role": "assistant", "content": text}} if self.asked.chat else {"text": text}
            logprobs = self._logprobs(request, c) if self.asked.logprobs else None
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": c.finish})
        return {**self._frame, "choices": choices, "usage": self._usage()}

    def begin(self) -> list[Json]:
        """Chunks in front of all news."""
        role = {"role": "assistant", "content": ""}
        return [self._chunk(index, role, None) for index, _ in self._samples()] if self.asked.chat else []

    def more(self, news: Progress) -> Json | None:
        """The chunk that news of a sample make, if any."""
        if news.done is not None:
            self._done[news.sample] = news.done
        text = news.text
        delta = text[len(self._sent.get(news.sample, "")) :]
        self._sent[news.sample] = text
        if not delta and news.done is None:
            return None
        said = ({"content": delta} if delta else {}) if self.asked.chat else delta
        return self._chunk(news.sample, said, news.done.finish if news.done else None)

    def end(self) -> list[Json]:
        """Chunks behind all news."""
        return [{**self._frame, "choices": [], "usage": self._usage()}] if self.asked.include_usage else []

    def _samples(self) -> Iterator[tuple[int, Request]]:
        """Each choice's index, and the request that it is of."""
        return ((index, r) for r in self.asked.requests for index in range(r.sample, r.sample + r.n))

    def _chunk(self, index: int, said: Json | str, finish: str | None) -> Json:
        choice = {"index": index, "delta" if self.asked.chat else "text": said, "logprobs": None, "finish_reason": finish}
        return {**self._frame, "choices": [choice]} | ({"usage": None} if self.asked.include_usage else {})

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(request.prompt) for request in self.asked.requests)
        new = sum(len(completion.tokens) for completion in self._done.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _logprobs(self, request: Request, completion: Completion) -> Json:
        """Of all tokens generated, those of an end included; a token that ends no character has no text."""
        assert not isinstance(request.prompt, str)
        stream = DecodeStream(ids=list(request.prompt[-CONTEXT:]), skip_special_tokens=True)
        texts = [stream.step(self.served.tokenizer.backend, token) or "" for token in completion.tokens]
        logprobs = [max(logprob, -9999.0) for logprob in completion.logprobs]  # -inf isn't JSON
        if self.asked.chat:
            facts = zip(texts, logprobs, strict=True)
            return {"content": [{"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []} for t, p in facts]}
        offsets = [*accumulate(map(len, texts), initial=0)]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": offsets[:-1]}
