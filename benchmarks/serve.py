"""Tokens a second of `lpo serve` under concurrent clients, against the same requests given to the sampler offline; the same random weights.

Each client is a coroutine with OpenAI's own client, all of them in a process of their own, and asks its share of the requests one after the
other. Greedy, no end token, so that every way makes the same tokens; they are compared first. Weights are float32, compilation isn't counted.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import openai

from benchmarks import common
from foundation.files import Json
from lpo_jax.config import MeshConfig, ModelConfig
from lpo_jax.decode import LoadedModel, Request, Sampler, SamplingConfig
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
    )
    args = parser.parse_args(argv)

    heads, longest = args.width // 32, args.prompt + args.new
    config = ModelConfig("llama", args.vocab, args.width, args.layers, heads, heads // 2, 32, 3 * args.width, longest)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = Model(config)
    loaded = LoadedModel(model, model.init(jax.random.key(0)), mesh)
    tok = common.number_tokenizer(args.vocab)
    prompts = common.random_prompts(args.clients * args.turns, args.prompt, args.vocab)
    greedy = SamplingConfig(temperature=0, max_new_tokens=args.new)

    def sampler(steps: int) -> Sampler:
        return Sampler(loaded, tok, greedy, args.rows, longest, segment_steps=steps)

    alone, driver = sampler(16), Driver(sampler(args.segment), args.clients)
    driver.warm_up()
    served = Served("bench", tok, args.vocab - 1, longest, lambda _: [], "")
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
    server.should_exit = True
    thread.join()
    rows = common.table(seconds, "offline", dict.fromkeys(ways, len(prompts) * args.new), "tokens")
    common.write_json(args.json, {"arguments": vars(args), "agree": agree, "rows": rows, "seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
