"""`lpo serve` under OpenAI's own client: what clients get is what the sampler gives offline, and nothing of a client is left when it has gone."""

import asyncio
import contextlib
import copy
import dataclasses
import json
import random
import signal
import threading
import time

import httpx2
import jax
import openai
import pytest
import tokenizers

from lpo_jax.config import ConfigError
from lpo_jax.decode import CoDecoding, Request, Sampler, SamplingConfig
from lpo_jax.decode.load import with_adapters
from lpo_jax.decode.sampler import Session
from lpo_jax.serve import server as serving
from lpo_jax.serve.driver import Driver
from lpo_jax.serve.protocol import Served
from tests.helpers.sampling import load, tokenizer, torch_model, write_adapter

ROWS, LONGEST = 8, 64


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A target and a smaller security model."""
    out = tmp_path_factory.mktemp("models")
    for family in ("llama untied", "qwen2 tied"):
        torch_model(family).save_pretrained(out / family)
    return load(out / "llama untied"), load(out / "qwen2 tied")


def chat_prompt(messages):
    if len(messages) % 2 == 0:
        raise ValueError("roles must alternate")
    return tokenizer().backend.encode(" ".join(f"w{len(m['role'])} {m['content']}" for m in messages)).ids


@contextlib.contextmanager
def serve(sampler, max_waiting=256, key=None, grace_s=5.0, adapters=None):
    """A server in a thread; the thread's result is its driver's state at the end."""
    driver = Driver(sampler, max_waiting)
    driver.warm_up()
    served = Served("tiny", sampler.tokenizer, sampler.vocab, sampler.max_len_tokens, chat_prompt, "fp_test", adapters or {})
    bound = serving.bind("127.0.0.1", 0)
    server = serving.Server(driver, served, key, grace_s)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(serving.address(bound), driver, server, thread)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive() and not driver._thread.is_alive()


@dataclasses.dataclass
class Running:
    url: str
    driver: Driver
    server: serving.Server
    thread: threading.Thread

    def client(self, key="none", kind=openai.OpenAI):
        return kind(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path="completions", content=None, **more):
        if content is None:
            content = json.dumps({"model": "tiny", "prompt": "w1"} | more)
        return httpx2.post(f"{self.url}/v1/{path}", content=content, headers={"Content-Type": "application/json"}, timeout=30)

    def settle(self):
        """Wait until nothing is at work, and look for what is left."""
        for _ in range(1000):
            if not self.driver._session.busy and self.driver._orders.empty() and not self.driver._tickets:
                break
            time.sleep(0.01)
        session = self.driver._session
        assert not self.driver._tickets and self.driver.unfinished() == 0
        assert not session._work and not session._waiting and session.room == ROWS
        assert not jax.device_get(session._state.active).any()


@pytest.fixture(scope="module")
def server(models):
    with serve(Sampler(models[0], tokenizer(), SamplingConfig(), ROWS, LONGEST, segment_steps=4)) as running:
        yield running


# --- Results.


def wish(number):
    """What client `number` asks: parameters, and the same offline."""
    draw = random.Random(number)
    chat, n, seed = number % 2 == 1, draw.choice([1, 1, 2, 3]), draw.randrange(2**32)
    words = " ".join(f"w{draw.randrange(1, 97)}" for _ in range(draw.choice([1, 5, 20, 33])))
    settings = {"temperature": draw.choice([0, 0.7, 1]), "top_p": draw.choice([0.9, 1]), "max_tokens": draw.choice([1, 9, 25, 30])}
    top_k, stop = draw.choice([0, 5]), draw.choice([[], f"w{draw.randrange(1, 97)}", ["w1 w2", "w3", "w4"]])
    prompt = draw.choice([words, tokenizer().backend.encode(words).ids])
    if chat:
        messages = [{"role": "user", "content": words}]
        about, tokens = {"messages": messages}, chat_prompt(messages)
    else:
        about, tokens = {"prompt": prompt}, prompt
    asked = {"model": "tiny", "n": n, "seed": seed, "stop": stop or None, "extra_body": {"top_k": top_k}} | settings | about
    sampling = SamplingConfig(
        settings["temperature"], top_k, settings["top_p"], settings["max_tokens"], (stop,) if isinstance(stop, str) else tuple(stop)
    )
    return chat, asked, Request(str(number), tokens, seed, 0, n, sampling)


async def ask(client, number, leave):
    """A client's texts and finish reasons by choice; None if it leaves."""
    chat, asked, _ = wish(number)
    create = client.chat.completions.create if chat else client.completions.create
    if number % 4 < 2:
        work = asyncio.ensure_future(create(**asked))
        if leave:
            await asyncio.sleep(number / 200)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return None
        return {c.index: (c.message.content if chat else c.text, c.finish_reason) for c in (await work).choices}
    texts, reasons, usage = {}, {}, None
    async with await create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        async for chunk in stream:
            usage = chunk.usage
            for choice in chunk.choices:
                assert choice.index not in reasons
                texts[choice.index] = texts.get(choice.index, "") + ((choice.delta.content if chat else choice.text) or "")
                if choice.finish_reason is not None:
                    reasons[choice.index] = choice.finish_reason
            if leave and any(texts.values()):
                return None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    return {index: (text, reasons[index]) for index, text in texts.items()}


def offline(sampler, requests):
    found = {}
    for c in sampler.generate(requests):
        found.setdefault(c.id, {})[c.sample] = (c.text, c.finish)
    return found


def test_64_clients_get_what_offline_generation_gives(server, monkeypatch):
    """Long and short, whole and streamed, chats and completions, and every fifth leaves early; nothing compiles, nothing is left."""
    programs = server.driver.sampler.compilations()
    leaving, freed, cancel = set(range(0, 64, 5)), [], Session.cancel

    def counted(session, request_id):
        before = len(session._work)
        cancel(session, request_id)
        freed.append(before - len(session._work))

    monkeypatch.setattr(Session, "cancel", counted)
    advance = server.driver._session.advance
    monkeypatch.setattr(server.driver._session, "advance", lambda: (time.sleep(0.005), advance())[1])  # so that there is time to leave

    async def crowd():
        async with server.client(kind=openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(ask(client, number, number in leaving) for number in range(64)))

    found = asyncio.run(crowd())
    server.settle()
    assert sum(freed) > 0  # some left while their rows were at work
    stayed = [number for number in range(64) if number not in leaving]
    expected = offline(server.driver.sampler, [wish(number)[2] for number in stayed])
    assert {str(number): found[number] for number in stayed} == expected
    assert {reason for texts in expected.values() for _, reason in texts.values()} == {"stop", "length"}
    assert len({text for texts in expected.values() for text, _ in texts.values()}) > 40
    assert server.driver.sampler.compilations() == programs


def test_co_decoding_is_served(models):
    sampler = Sampler(models[0], tokenizer(), SamplingConfig(), ROWS, 32, security=models[1], rule=CoDecoding(0.2), block=2)
    prompts = [f"w{i + 1} w{3 * i + 1}" for i in range(6)]
    asked = {"model": "tiny", "prompt": prompts, "n": 2, "seed": 5, "max_tokens": 20, "logprobs": 0}
    with serve(sampler) as running:
        answer = running.client().completions.create(**asked)
        running.settle()
    config = SamplingConfig(1.0, 0, 1.0, 20)
    found = {c.sample: c for c in sampler.generate([Request(str(i), p, 5, 2 * i, 2, config) for i, p in enumerate(prompts)])}
    assert [choice.index for choice in answer.choices] == list(range(12))  # a choice's index is its sample's number
    for choice in answer.choices:
        c = found[choice.index]
        assert (choice.text, choice.finish_reason) == (c.text, c.finish)
        assert choice.logprobs.token_logprobs == pytest.approx(c.logprobs, abs=1e-4)
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(choice.text.startswith(t, at) for t, at in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))
    assert answer.usage.completion_tokens == sum(len(c.tokens) for c in found.values())
    taken = [a for c in found.values() for a in c.facts["accepted"]]
    assert 0 < sum(taken) < len(taken)


def test_a_stream_never_takes_back_what_it_said(server):
    """Tokens are single bytes, so that characters come in pieces and most sequences are none; the deltas joined are the whole text."""
    symbols = {"<end>": 0} | {c: i + 1 for i, c in enumerate(dict.fromkeys("éèaĠæĹ¥ðŁĺĢÃ©ĊbcdeÅĵÄ±Â¬"))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(symbols, []))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    driver = server.driver
    spelled = dataclasses.replace(tokenizer(), backend=backend)
    sampler = copy.copy(driver.sampler)  # the same compiled engine
    sampler.tokenizer = spelled
    session = Session(sampler, streams=True)
    stops = ("ab", "\ufffdc", "é")
    for seed in range(12):
        session.add(Request(str(seed), [1], seed, 0, 2, SamplingConfig(1.0, 0, 1.0, 40, stops[: seed % 4])))
    said, whole = {}, {}
    while session.busy:
        for news in session.advance():
            key = news.id, news.sample
            assert news.text.startswith(said.get(key, ""))
            said[key] = news.text
            if news.done:
                whole[key] = news.done
    assert {key: done.text for key, done in whole.items()} == said and len(said) == 24
    assert any("\ufffd" in text for text in said.values())


# --- Refusals.

REFUSED = [
    ({"prompt": "w1 " * 60}, 400, "prompt", "60 tokens and 16 of the completion are more than the 64"),
    ({"prompt": [1] * 64, "max_tokens": 1}, 400, "prompt", "64 tokens and 1"),
    ({"prompt": [97]}, 400, "prompt", "tokens lie in 0 .. 96"),
    ({"prompt": [-1]}, 400, "prompt", "tokens lie in"),
    ({"prompt": [2**70]}, 400, "prompt", "tokens lie in"),
    ({"prompt": []}, 400, "prompt", "no token"),
    ({"prompt": [[]]}, 400, "prompt", "no token"),
    ({"prompt": 3}, 400, "prompt", "valid string"),
    ({"prompt": ["w1", 1]}, 400, "prompt", ""),
    ({"prompt": [None] * 100_000}, 400, "prompt", "valid string"),
    ({"prompt": [[1]] * 3000}, 400, "prompt", "at most 2048"),
    ({"prompt": None}, 400, "prompt", "required"),
    ({"model": "other"}, 404, "model", "'tiny' is"),
    ({"model": None}, 400, "model", "required"),
    ({"temperature": -0.1}, 400, "temperature", "greater"),
    ({"temperature": 1e-9}, 400, "temperature", "at least 0.01"),
    ({"temperature": "hot"}, 400, "temperature", "number"),
    ({"temperature": []}, 400, "temperature", "number"),
    ({"stream": {}}, 400, "stream", "boolean"),
    ({"top_p": 0}, 400, "top_p", "greater"),
    ({"top_k": 1.5}, 400, "top_k", "integer"),
    ({"n": 0}, 400, "n", "greater"),
    ({"n": True}, 400, "n", "integer"),
    ({"n": 100, "prompt": ["w1"] * 3}, 400, "n", "300 completions in one request are more than the 264"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater"),
    ({"seed": 2**32}, 400, "seed", "less"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4"),
    ({"stop": ""}, 400, "stop", "at least 1"),
    ({"logprobs": 1}, 400, "logprobs", "only the chosen"),
    ({"logprobs": 0, "stream": True}, 400, "logprobs", "without stream"),
    ({"echo": True}, 400, "echo", "not computed"),
    ({"best_of": 2}, 400, "best_of", "not computed"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not computed"),
    ({"logit_bias": {"5": 10}}, 400, "logit_bias", "not computed"),
    ({"temperatur": 0.5}, 400, "temperatur", "unknown"),
    ({"stream_options": {"every": 2}}, 400, "stream_options.every", "unknown"),
    (b"{", 400, None, "JSON"),
    (b"", 400, None, "JSON"),
    (b"[]", 400, None, "object"),
    (b"\xff\xfe", 400, None, "JSON"),
    (b"[" * 100_000, 400, None, "JSON"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', 400, None, "JSON"),
    (b'{"model": "tiny", "prompt": "w1", "temperature": NaN}', 400, "temperature", "finite"),
    (b" " * (2**20 + 1), 413, None, "more than 1048576 bytes"),
]


@pytest.mark.parametrize(("change", "status", "param", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_answered_is_refused_by_name(server, change, status, param, message):
    answer = server.post(content=change) if isinstance(change, bytes) else server.post(**change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert message in error["message"]
    assert not server.driver._tickets


def test_chats_are_refused_by_name_too(server):
    good = {"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": " w2"}]}
    for messages, change, message in (
        ([], {}, "at least 1 item"),
        ([{"role": "tool", "content": "x"}], {}, "'system'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {}, "'text'"),
        ([good, good], {}, "roles must alternate"),
        ([good], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: unknown, or not computed here"),
        ([good], {"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ([good], {"max_completion_tokens": 63}, "3 tokens and 63"),
    ):
        answer = server.post("chat/completions", json.dumps({"model": "tiny", "messages": messages} | change))
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    harmless = {"user": "me", "tools": [], "presence_penalty": 0, "response_format": {"type": "text"}, "top_logprobs": 0, "logprobs": True}
    replied = {"role": "assistant", "content": "w5", "refusal": None, "annotations": []}
    answer = server.post("chat/completions", json.dumps({"model": "tiny", "messages": [good, replied, good]} | harmless)).json()
    assert answer["usage"]["total_tokens"] <= LONGEST  # all that fits
    again = server.post("chat/completions", json.dumps({"model": "tiny", "messages": [good, replied, good], "seed": answer["seed"]})).json()
    assert again["choices"][0]["message"] == answer["choices"][0]["message"]
    assert "".join(t["token"] for t in answer["choices"][0]["logprobs"]["content"]) == again["choices"][0]["message"]["content"]


def test_the_rest_of_http(server):
    assert httpx2.get(f"{server.url}/health").json() == {"status": "ok", "rows": ROWS, "unfinished": 0}
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert httpx2.get(f"{server.url}/v1/nowhere").json()["error"]["message"] == "Not Found"
    assert httpx2.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx2.post(f"{server.url}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    with pytest.raises(ConfigError, match="give another --host or --port"):
        serving.bind("127.0.0.1", int(server.url.rpartition(":")[2]))


def test_a_request_names_its_adapter(models, tmp_path):
    """By OpenAI's `model`: the answer is what that adapter writes in the sampler, and a chat is put as it was trained."""
    base = tmp_path / "base"
    torch_model("llama untied").save_pretrained(base)
    made = {f"a{i}": write_adapter(tmp_path / f"a{i}", base, i) for i in range(2)}
    sampler = Sampler(with_adapters(models[0], made), tokenizer(), SamplingConfig(), ROWS, LONGEST, segment_steps=4)
    with serve(sampler, adapters={"a0": chat_prompt, "a1": lambda messages: [7, 8]}) as running:
        client = running.client()
        assert [model.id for model in client.models.list()] == ["tiny", "a0", "a1"]
        asked, texts = {"max_tokens": 9, "temperature": 0}, {}
        for name in ("tiny", "a0", "a1"):
            answer = client.completions.create(model=name, prompt=[7, 8], **asked)
            assert answer.model == name
            texts[name] = answer.choices[0].text
        chat = client.chat.completions.create(model="a1", messages=[{"role": "user", "content": "w1"}], **asked)
        assert chat.choices[0].message.content == texts["a1"]
        with pytest.raises(openai.NotFoundError, match="'b' isn't served here, 'tiny', 'a0', 'a1' are"):
            client.completions.create(model="b", prompt="w1")
        running.settle()
    greedy = SamplingConfig(temperature=0, max_new_tokens=9)
    requests = [Request(name, [7, 8], sampling=greedy, adapter=None if name == "tiny" else name) for name in texts]
    assert {c.id: c.text for c in sampler.generate(requests)} == texts
    assert len(set(texts.values())) == 3


# --- Load, and the end.


@pytest.fixture
def sampler(server):
    """The module's, with its compiled programs."""
    return server.driver.sampler


def hold(driver, monkeypatch):
    """Stop decoding between segments until the event is set."""
    go, advance = threading.Event(), driver._session.advance
    monkeypatch.setattr(driver._session, "advance", lambda: (go.wait(30), advance())[1])
    return go


def test_too_many_and_strangers_are_turned_away(sampler, monkeypatch):
    with serve(sampler, max_waiting=2, key="sesame") as running:
        for key in ("wrong", "", "sesame2"):
            with pytest.raises(openai.AuthenticationError):
                running.client(key or "-").models.list()
        assert httpx2.get(f"{running.url}/health").status_code == 200
        go, client = hold(running.driver, monkeypatch), running.client("sesame")
        with client.completions.create(model="tiny", prompt="w1", n=ROWS + 2, stream=True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model="tiny", prompt="w1")
            assert caught.value.response.headers["Retry-After"] == "1" and "10 completions" in str(caught.value)
        while running.driver.unfinished():  # it notices that the stream has been left
            time.sleep(0.01)
        work = threading.Timer(0.1, go.set)
        work.start()
        assert client.completions.create(model="tiny", prompt="w1", n=ROWS + 2).usage.prompt_tokens == 1
        running.settle()


def test_a_failure_is_heard_by_all_and_ends_the_server(sampler, monkeypatch):
    with serve(sampler) as running:
        go = threading.Event()

        def fail():
            if go.wait(0.05):
                raise RuntimeError("device lost")
            return []

        monkeypatch.setattr(running.driver._session, "advance", fail)

        async def clients():
            async with running.client(kind=openai.AsyncOpenAI) as client:
                stream = await client.completions.create(model="tiny", prompt="w1", stream=True)
                whole = [asyncio.ensure_future(client.completions.create(model="tiny", prompt=f"w{i}")) for i in range(1, 12)]
                while running.driver.unfinished() < 12:
                    await asyncio.sleep(0.01)
                go.set()
                with pytest.raises(openai.APIError, match="decoding has failed: RuntimeError"):
                    [chunk async for chunk in stream]
                return await asyncio.gather(*whole, return_exceptions=True)

        errors = asyncio.run(clients())
        assert {(type(e), e.status_code, e.type) for e in errors} == {(openai.InternalServerError, 500, "server_error")}
        running.thread.join(30)
        assert running.driver.failed and not running.thread.is_alive()


@pytest.mark.parametrize(("grace_s", "signals", "result"), [(30, 1, "finished"), (0.3, 1, "refused"), (30, 2, "refused")])
def test_what_is_at_work_may_finish_but_not_for_ever(sampler, monkeypatch, grace_s, signals, result):
    """Not beyond the time of grace, and not beyond a second signal."""
    found = []
    with serve(sampler, grace_s=grace_s) as running:
        go, client = hold(running.driver, monkeypatch), running.client()

        def work():
            try:
                client.completions.create(model="tiny", prompt="w1")
                found.append("finished")
            except openai.InternalServerError as error:
                found.append("refused" if (error.status_code, error.code) == (503, "shutting_down") else error)

        thread = threading.Thread(target=work)
        thread.start()
        while not running.driver.unfinished():
            time.sleep(0.01)
        for _ in range(signals):
            running.server.handle_exit(signal.SIGTERM, None)
        if result == "finished":
            threading.Timer(0.3, go.set).start()
        thread.join(30)
        go.set()
        running.thread.join(30)
    assert found == [result]
