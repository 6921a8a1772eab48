"""`lpo generate`: a file of prompts to a file of completions, going on where it was stopped."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foundation.files import write_json
from lpo_jax.config import ConfigError, MeshConfig
from lpo_jax.decode import load
from lpo_jax.decode.request import Completion, Request, SamplingConfig, Tokenizer, encode, encode_task
from lpo_jax.decode.rules import vocab_map
from lpo_jax.decode.rules.codecode import CoDecoding
from lpo_jax.decode.rules.crosec import CroSec, CrossSampler
from lpo_jax.decode.sampler import Sampler
from lpo_jax.sharding import make_mesh

ROWS_PER_CUT = 16
"""Rows at work for each cut of the batch, by default."""


@dataclass(frozen=True)
class Job:
    """What to generate. Mesh, rows, block and lengths may change between a job and its continuation; everything else may not."""

    prompts: str
    out: str
    model: str
    adapter: str | None = None
    security: str | None = None  # a second model, which proposes the tokens, or (CroSec) is mixed in
    security_adapter: str | None = None
    rule: CoDecoding | CroSec | None = None
    block: int | None = None  # see `Sampler`
    trace: bool = False  # write what each model thought of each token
    samples: int = 1  # of each prompt
    seed: int = 0
    think: bool = True  # an instruction's prompt asks for a security thought first
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    dtype: str | None = None  # default: float32 on CPUs, else bfloat16
    rows: int | None = None
    max_len_tokens: int | None = None
    mesh: MeshConfig = MeshConfig(data=-1, fsdp=1)  # whole copies of the model


@dataclass(frozen=True)
class Prompt:
    """A row of the prompts' file."""

    id: str
    where: str  # file and line, for errors
    tokens: list[int]
    left: str  # the prompt's last characters that no token holds: the model begins with them
    text: str  # as the model reads it

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def run(job: Job, tokenizer: Tokenizer, task_prompt: Callable[[str, bool], str], security_tokenizer: Tokenizer | None = None) -> int:
    """Generate what is missing of a job; returns the number of samples written.

    Args:
      task_prompt: (instruction, think) -> the prompt that training puts it into.
      security_tokenizer: the second model's own, for CroSec.

    Raises:
      ConfigError: a row, the output file or the model can't be used; with the remedy.
    """
    dtype = job.dtype or load.default_dtype()
    prompts = read_prompts(job, tokenizer, task_prompt)
    readers = [job.model] if job.security is None or isinstance(job.rule, CroSec) else [job.model, job.security]  # of `tokenizer`'s tokens
    limit = min(load.shape(path).max_positions for path in readers)
    limit = limit if job.max_len_tokens is None else min(limit, job.max_len_tokens)
    new = job.sampling.max_new_tokens
    for prompt in prompts:
        if len(prompt.tokens) + new > limit:
            raise ConfigError(
                f"{prompt.where}: prompt {prompt.id} has {len(prompt.tokens)} tokens; with {new} new ones it exceeds {limit}: "
                "shorten it, lower --max-new-tokens or raise --max-len-tokens"
            )
    for path in readers:
        load.check_tokenizer(path, tokenizer)
    if isinstance(job.rule, CroSec):
        assert job.security is not None and security_tokenizer is not None
        load.check_tokenizer(job.security, security_tokenizer)
    done = _open_journal(job, dtype, prompts)
    missing = [
        Request(p.id, p.tokens, request_seed(job.seed, p.id), k) for p in prompts for k in range(job.samples) if (p.id, k) not in done
    ]
    if not missing:
        return 0
    mesh = make_mesh(job.mesh)
    rows = job.rows or ROWS_PER_CUT * mesh.shape["data"] * mesh.shape["fsdp"]
    longest = max(len(request.prompt) for request in missing) + new
    target = load.load_model(job.model, mesh, dtype, job.adapter)
    security = None if job.security is None else load.load_model(job.security, mesh, dtype, job.security_adapter)
    sampler: Sampler | CrossSampler
    if isinstance(job.rule, CroSec):
        assert security is not None and security_tokenizer is not None
        sides = vocab_map.vocabulary(target, tokenizer), vocab_map.vocabulary(security, security_tokenizer)
        alignment = vocab_map.load_or_align(Path(job.out).parent, *sides)
        sampler = CrossSampler(target, security, tokenizer, security_tokenizer, alignment, job.sampling, rows, longest, rule=job.rule)
    else:
        sampler = Sampler(target, tokenizer, job.sampling, rows, longest, security=security, rule=job.rule, block=job.block)
    by_id = {prompt.id: prompt for prompt in prompts}
    tokens, start = 0, time.perf_counter()
    with (
        open(job.out, "a", encoding="utf-8") as out,
        tqdm(total=len(done) + len(missing), initial=len(done), desc="generate", unit=" samples", dynamic_ncols=True) as bar,
    ):
        for completion in sampler.generate(missing):
            prompt = by_id[completion.id]
            record = {
                "id": completion.id,
                "sample": completion.sample,
                "text": completion.text.removeprefix(prompt.left),
                "finish": completion.finish,
                "tokens": len(completion.tokens),
                "logprob": round(sum(completion.logprobs), 4),
                "prompt_sha256": prompt.sha256,
            }
            if job.trace:
                record["trace"] = _trace(completion, tokenizer)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            tokens += len(completion.tokens)
            bar.set_postfix({"tok/s": f"{tokens / (time.perf_counter() - start):.0f}"}, refresh=False)
            bar.update()
    return len(missing)


def _trace(completion: Completion, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For each token its text and log-probability; with a security model what it was worth to the target (p) and to that model (q), and if one
    proposed: what, and whether that was taken."""

    def text(token: float) -> str:
        return tokenizer.backend.decode([int(token)], skip_special_tokens=False)

    rows: list[dict[str, Any]] = [
        {"token": text(token), "logprob": round(logp, 4)} for token, logp in zip(completion.tokens, completion.logprobs, strict=True)
    ]
    show: dict[str, Callable[[float], Any]] = {"draft": text, "accepted": bool}
    for name, values in completion.facts.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = show[name](value) if name in show else float(f"{value:.3g}")
    return rows


def request_seed(seed: int, request_id: str) -> int:
    """A seed for each request, whatever else is asked for: prompts don't share their noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{request_id}".encode()).digest()[:4], "big")


def read_prompts(job: Job, tokenizer: Tokenizer, task_prompt: Callable[[str, bool], str]) -> list[Prompt]:
    """The prompts of a JSONL file: rows {"prompt": ...} as they are, rows {"instruction": ...} in the template of training.

    Raises:
      ConfigError: no such file, or a row is no object, has neither or both, or an id that another row has; file and line are named.
    """
    try:
        lines = Path(job.prompts).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{job.prompts}: {error.strerror}") from None
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{job.prompts}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error}") from None
        keys = [key for key in ("prompt", "instruction") if isinstance(row, dict) and key in row]
        if len(keys) != 1 or not isinstance(row[keys[0]], str):
            raise ConfigError(f'{where}: write {{"id": ..., "prompt": TEXT}} or {{"id": ..., "instruction": TEXT}}')
        name = str(row.get("id", number))
        if name in found:
            raise ConfigError(f"{where}: id {name} stands at {found[name].where} already")
        text = row[keys[0]] if keys[0] == "prompt" else task_prompt(row[keys[0]], job.think)
        tokens, left = (encode(tokenizer, text), "") if keys[0] == "prompt" else encode_task(tokenizer, text)
        found[name] = Prompt(name, where, tokens, left, text)
    if not found:
        raise ConfigError(f"{job.prompts}: no prompt")
    return list(found.values())


def _open_journal(job: Job, dtype: str, prompts: list[Prompt]) -> set[tuple[str, int]]:
    """The (id, sample)s that the output holds already; a line that a kill has cut short is removed."""
    out, settings_file = Path(job.out), Path(job.out + ".settings.json")
    free = {"prompts", "out", "samples", "rows", "block", "max_len_tokens", "mesh"}
    settings = {key: value for key, value in asdict(job).items() if key not in free} | {"dtype": dtype}
    settings = json.loads(json.dumps(settings))
    if not out.is_file():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(settings_file, settings)
            out.touch()
        except OSError as error:
            raise ConfigError(f"{out} can't be written: {error.strerror}") from None
        return set()
    if not settings_file.is_file():
        raise ConfigError(f"{out} exists and isn't of `lpo generate` ({settings_file.name} is missing): give another -o, or move it away")
    before: dict[str, Any] = json.loads(settings_file.read_text())
    differ = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
    if differ:
        raise ConfigError(f"{out} was begun with another {', '.join(differ)} (see {settings_file}): repeat them, or give another -o")
    raw = out.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(out, len(whole))
    hashes, done = {prompt.id: prompt.sha256 for prompt in prompts}, set()
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        record = json.loads(line)
        if hashes.get(record["id"], record["prompt_sha256"]) != record["prompt_sha256"]:
            raise ConfigError(f"{out}:{number}: prompt {record['id']} was another text then: give another -o, or restore it")
        if record["id"] in hashes and record["sample"] < job.samples:
            done.add((record["id"], record["sample"]))
    return done
