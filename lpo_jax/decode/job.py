"""`lpo generate`: a file of prompts to a file of completions, going on where it was stopped."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_pipeline.template import task_prompt
from data_pipeline.tokenizer import Tokenizer
from foundation.files import Json, differing, read_journal, write_json
from lpo_jax.config import ConfigError
from lpo_jax.decode.load import Models, find, open_sampler
from lpo_jax.decode.request import Completion, Request, SamplingConfig, encode, encode_task

_FREE = {"prompts", "out", "samples", "tokenizer", "security_tokenizer", "rows", "block", "max_len_tokens", "mesh", "dtype"}
"""What may change between a job and its continuation. The dtype may not: it is written as what it comes to."""


@dataclass(frozen=True)
class Job:
    """What to generate."""

    prompts: str
    out: str
    models: Models
    trace: bool = False  # write what each model thought of each token
    samples: int = 1  # of each prompt
    seed: int = 0
    think: bool = True  # an instruction's prompt asks for a security thought first
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class Prompt:
    """A row of the prompts' file."""

    id: str
    where: str  # file and line, for errors
    text: str  # as the model reads it
    instruction: bool  # the text is the template's

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def encode(self, tokenizer: Tokenizer) -> tuple[list[int], str]:
        """Its tokens, and its last characters that no token holds: the model begins with them."""
        return encode_task(tokenizer, self.text) if self.instruction else (encode(tokenizer, self.text), "")


def run(job: Job) -> int:
    """Generate what is missing of a job; returns the number of samples written.

    Raises:
      ConfigError: a row, the output file or the model can't be used; with the remedy.
    """
    prompts, found = read_prompts(job.prompts, job.think), find(job.models)
    encoded = {prompt.id: prompt.encode(found.tokenizer) for prompt in prompts}
    new, limit = job.sampling.max_new_tokens, found.max_len_tokens
    for prompt in prompts:
        length = len(encoded[prompt.id][0])
        if length + new > limit:
            raise ConfigError(
                f"{prompt.where}: prompt {prompt.id} has {length} tokens; with {new} new ones it exceeds {limit}: "
                "shorten it, lower --max-new-tokens or raise --max-len-tokens"
            )
    done = _open_journal(job, found.dtype, prompts)
    missing = [
        Request(p.id, encoded[p.id][0], request_seed(job.seed, p.id), k)
        for p in prompts
        for k in range(job.samples)
        if (p.id, k) not in done
    ]
    if not missing:
        return 0
    longest = max(len(request.prompt) for request in missing) + new
    sampler = open_sampler(found, job.sampling, longest, alignments=Path(job.out).parent)
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
                "text": completion.text.removeprefix(encoded[prompt.id][1]),
                "finish": completion.finish,
                "tokens": len(completion.tokens),
                "logprob": round(sum(completion.logprobs), 4),
                "prompt_sha256": prompt.sha256,
            }
            if job.trace:
                record["trace"] = _trace(completion, found.tokenizer)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            tokens += len(completion.tokens)
            bar.set_postfix({"tok/s": f"{tokens / (time.perf_counter() - start):.0f}"}, refresh=False)
            bar.update()
    return len(missing)


def _trace(completion: Completion, tokenizer: Tokenizer) -> list[Json]:
    """For each token its text and log-probability; with a security model what it was worth to the target (p) and to that model (q), and if one
    proposed: what, and whether that was taken."""

    def text(token: float) -> str:
        return tokenizer.backend.decode([int(token)], skip_special_tokens=False)

    rows: list[Json] = [
        {"token": text(token), "logprob": round(logp, 4)} for token, logp in zip(completion.tokens, completion.logprobs, strict=True)
    ]
    show: dict[str, Callable[[float], object]] = {"draft": text, "accepted": bool}
    for name, values in completion.facts.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = show[name](value) if name in show else float(f"{value:.3g}")
    return rows


def request_seed(seed: int, request_id: str) -> int:
    """A seed for each request, whatever else is asked for: prompts don't share their noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{request_id}".encode()).digest()[:4], "big")


def read_prompts(path: str, think: bool) -> list[Prompt]:
    """The prompts of a JSONL file: rows {"prompt": ...} as they are, rows {"instruction": ...} in the template of training.

    Raises:
      ConfigError: no such file, or a row is no object, has neither or both, or an id that another row has; file and line are named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    found: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
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
        instruction = keys[0] == "instruction"
        found[name] = Prompt(name, where, task_prompt(row["instruction"], think) if instruction else row["prompt"], instruction)
    if not found:
        raise ConfigError(f"{path}: no prompt")
    return list(found.values())


def _open_journal(job: Job, dtype: str, prompts: list[Prompt]) -> set[tuple[str, int]]:
    """The (id, sample)s that the output holds already."""
    out, settings_file = Path(job.out), Path(job.out + ".settings.json")
    settings = {key: value for key, value in (asdict(job.models) | asdict(job)).items() if key not in _FREE | {"models"}} | {"dtype": dtype}
    if not out.is_file():
        try:
            write_json(settings_file, settings)
            out.touch()
        except OSError as error:
            raise ConfigError(f"{out} can't be written: {error.strerror}") from None
        return set()
    if not settings_file.is_file():
        raise ConfigError(f"{out} exists and isn't of `lpo generate` ({settings_file.name} is missing): give another -o, or move it away")
    if differ := differing(settings_file, settings):
        raise ConfigError(f"{out} was begun with another {', '.join(differ)} (see {settings_file}): repeat them, or give another -o")
    hashes, done = {prompt.id: prompt.sha256 for prompt in prompts}, set()
    for number, record in enumerate(read_journal(out), 1):
        if hashes.get(record["id"], record["prompt_sha256"]) != record["prompt_sha256"]:
            raise ConfigError(f"{out}:{number}: prompt {record['id']} was another text then: give another -o, or restore it")
        if record["id"] in hashes and record["sample"] < job.samples:
            done.add((record["id"], record["sample"]))
    return done
