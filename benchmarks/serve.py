"""Tokens a second of `lpo serve` under concurrent clients, against the same requests given to the sampler offline; the same random weights.

Each client is a coroutine with OpenAI's own client, all of them in a process of their own, and asks its share of the requests one after the
other. Greedy, no end token, so that every way makes the same tokens; they are compared first. Weights are float32, compilation isn't counted.

Then long prompts arrive, one after the other, while all rows but one decode: how long each waits for its first token, and how long the others wait
for news (of --segment tokens) while a prompt is read and otherwise.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import openai

from benchmarks import common
from foundation.files import Json
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
from lpo_jax.decode.load import load_model
from lpo_jax.model.decoder import Model
from lpo_jax.serve import server as serving
from lpo_jax.serve.driver import Driver
from lpo_jax.serve.protocol import Served
from lpo_jax.sharding import make_mesh


def ask(url: str, prompts: list[list[int]], clients: int, new: int, stream: bool) -> dict[str, str]:
    """All prompts' completions, by their numbers."""

    async def client(session: openai.AsyncOpenAI, share: range) -> dict[str, str]:
        found = {}
        for number in share:
            asked: Json = {"model": "bench", "prompt": prompts[number], "max_tokens": new, "temperature": 0}
            if stream:
                text = ""
                async for chunk in await session.completions.create(**asked, stream=True):
                    text += chunk.choices[0].text
                found[str(number)] = text
            else:
                found[str(number)] = (await session.completions.create(**asked)).choices[0].text
        return found

    async def crowd() -> dict[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as session:
            shares = [range(start, len(prompts), clients) for start in range(clients)]
            return {k: v for found in await asyncio.gather(*(client(session, share) for share in shares)) for k, v in found.items()}

    return asyncio.run(crowd())


def arrive(url: str, prompts: list[list[int]], new: int, newcomers: list[list[int]]) -> dict[str, list[float]]:
    """Seconds: newcomers' to their first token, beside clients that stream one completion after the other; and these clients' between news."""
    waits: list[tuple[float, float]] = []  # from when to when each newcomer waited
    news: list[list[float]] = []  # of each completion, when it came

    async def stream(session: openai.AsyncOpenAI, prompt: list[int], tokens: int, times: list[float]) -> None:
        """Until all is over: who leaves early is cancelled by the server."""
        asked: Json = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        async with await session.completions.create(**asked, stream=True) as chunks:
            async for chunk in chunks:
                if chunk.choices[0].text:
                    times.append(time.perf_counter())
                if len(waits) == len(newcomers):
                    return

    async def client(session: openai.AsyncOpenAI, prompt: list[int]) -> None:
        while len(waits) < len(newcomers):
            news.append([])
            await stream(session, prompt, new, news[-1])

    async def others(session: openai.AsyncOpenAI) -> None:
        while sum(map(len, news)) < 3 * len(prompts):  # all are at work
            await asyncio.sleep(0.01)
        for prompt in newcomers:
            start, times = time.perf_counter(), list[float]()
            await stream(session, prompt, 1, times)
            waits.append((start, times[0]))
            await asyncio.sleep(times[0] - start)  # as long without anybody

    async def crowd() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as session:
            await asyncio.gather(others(session), *(client(session, prompt) for prompt in prompts))

    asyncio.run(crowd())
    gaps: dict[str, list[float]] = {"first token": [end - start for start, end in waits], "news meanwhile": [], "news otherwise": []}
    for times in news:
        for last, now in zip(times, times[1:], strict=False):
            meanwhile = any(last < end and start < now for start, end in waits)
            gaps["news meanwhile" if meanwhile else "news otherwise"].append(now - last)
    return gaps


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_numbers(
        parser,
        ("rows", 16, "rows of the sampler"),
        ("clients", 16, "concurrent clients"),
        ("turns", 3, "requests of each client"),
        ("prompt", 64, "tokens of the longest prompt; the shortest has half"),
        ("new", 128, "tokens to generate for each"),
        ("segment", 8, "tokens between looks at what is new, 8 as in `lpo serve`; offline: 16"),
        ("width", 256, "the model's d_model"),
        ("layers", 4, "the model's layers"),
        ("vocab", 8192, "the model's vocabulary"),
        ("repeats", 5, "turns"),
        ("long", 3000, "tokens of a long prompt"),
        ("arrivals", 5, "long prompts"),
    )
    parser.add_argument("--model", help="directory with the weights (default: random ones, of the numbers above)")
    args = parser.parse_args(argv)

    heads, longest = args.width // 32, max(args.prompt, args.long) + args.new
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    if args.model:
        loaded = replace(load_model(args.model, mesh, "float32"), eos_ids=())
    else:
        model = Model(ModelConfig("llama", args.vocab, args.width, args.layers, heads, heads // 2, 32, 3 * args.width, longest))
        loaded = LoadedModel(model, model.init(jax.random.key(0)), mesh)
    loaded, vocab = loaded.for_decoding(), loaded.model.config.vocab_size
    tok = common.number_tokenizer(vocab)
    prompts = common.random_prompts(args.clients * args.turns, args.prompt, vocab)
    long = [p[: args.long] for p in common.random_prompts(args.arrivals, 2 * args.long, vocab)]
    greedy = SamplingConfig(temperature=0, max_new_tokens=args.new)

    def sampler(steps: int) -> Sampler:
        return Sampler(loaded, tok, greedy, args.rows, longest, segment_steps=steps)

    alone, driver = sampler(16), Driver(sampler(args.segment), args.clients)
    driver.warm_up()
    served = Served("bench", tok, vocab - 1, longest, lambda _: [], "")
    bound = serving.bind("127.0.0.1", 0)
    server = serving.Server(driver, served, None, grace_s=1)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients:

        def over_http(stream: bool) -> dict[str, str]:
            return clients.submit(ask, serving.address(bound), prompts, args.clients, args.new, stream).result()

        ways = {
            "offline": lambda: {c.id: c.text for c in alone.generate(requests)},
            "served": lambda: over_http(False),
            "served, streamed": lambda: over_http(True),
        }
        found = {name: run() for name, run in ways.items()}
        agree = {name: statistics.mean(texts[key] == found["offline"][key] for key in texts) for name, texts in found.items()}
        print("completions equal to the offline ones:", ", ".join(f"{name} {share:.2%}" for name, share in agree.items()))
        seconds = common.interleave(ways, args.repeats)
        busy = prompts[: args.rows - 1]
        gaps = clients.submit(arrive, serving.address(bound), busy, longest - args.prompt, long).result()
    server.should_exit = True
    thread.join()
    rows = common.table(seconds, "offline", dict.fromkeys(ways, len(prompts) * args.new), "tokens")
    print(
        f"\nbeside {len(busy)} rows that decode, {args.arrivals} prompts of {args.long} tokens: seconds to their first token, and of the others between news"
    )
    print(f"{'':16} {'p50':>8} {'p95':>8} {'longest':>8}")
    for name, times in gaps.items():
        print(f"{name:16} " + " ".join(f"{x:8.3f}" for x in (*np.quantile(times, [0.5, 0.95]), max(times))))
    common.write_json(args.json, {"arguments": vars(args), "agree": agree, "rows": rows, "seconds": seconds, "arrivals": gaps})
    return 0


if __name__ == "__main__":
    sys.exit(main())
