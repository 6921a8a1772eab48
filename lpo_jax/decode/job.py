"""`lpo generate`: a file of prompts to a file of completions, going on where it was stopped."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
from tqdm import tqdm

from data_pipeline import template as templates
from data_pipeline.tokenizer import Tokenizer
from foundation.console import ticking
from foundation.files import Json, differing, hold, read_journal, write_json
from lpo_jax.config import ConfigError
from lpo_jax.decode import prompts as asked
from lpo_jax.decode.load import Found, Models, find, open_sampler
from lpo_jax.decode.prompts import Asking, Prompt
from lpo_jax.decode.request import Completion, Request, SamplingConfig
from lpo_jax.train.distributed import all_or_none, first, from_first
from lpo_jax.train.weights import identity

_FREE = {"prompts", "out", "samples", "tokenizer", "security_tokenizer", "rows", "block", "max_len_tokens", "cache_gib", "mesh", "dtype"}
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
    think: bool = True  # an instruction's prompt asks for a security thought first, if the model has learned that
    template: str | None = None  # how instructions are put; default: as the model was trained, see `prompts.asking`
    system: str = ""  # the system text of a chat
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class _Work:
    """What is missing of a job."""

    prompts: dict[str, Prompt]  # by id
    done: int  # samples
    requests: list[Request]
    stop_tokens: list[int]  # that end an answer to the way in which the model is asked


def run(job: Job) -> int:
    """Generate what is missing of a job; returns the number of samples written.

    All processes of a job call it together. Process 0 reads the prompts and writes the output; the others need the model alone.

    Raises:
      ConfigError: a row, the output file or the model can't be used; with the remedy.
    """
    with ExitStack() as held:
        with all_or_none():
            if first():
                held.enter_context(hold(Path(job.out)))
            found = find(job.models)
            work = _work(job, found) if first() else None
        if jax.process_count() == 1:
            assert work is not None
            requests, stop_tokens = work.requests, work.stop_tokens
        else:
            rows, stop_tokens = from_first(work and ([vars(request) for request in work.requests], work.stop_tokens))
            requests = [Request(**row) for row in rows]
        if not requests:
            return 0
        longest = max(len(request.prompt) for request in requests) + job.sampling.max_new_tokens
        sampling = replace(job.sampling, stop_tokens=(*job.sampling.stop_tokens, *stop_tokens))
        sampler = open_sampler(found, sampling, longest, alignments=Path(job.out).parent)
        completions = sampler.generate(requests)
        if work is None:
            return sum(1 for _ in completions)
        _write(job, found, work, completions)
        return len(requests)


def check(job: Job) -> None:
    """Refuse what can be refused without weights and devices.

    Raises:
      ConfigError: a model or a prompt can't be used.
    """
    found = find(job.models)
    _read(job, found, _asking(job, found), _asking_adapters(job, found))


def _work(job: Job, found: Found) -> _Work:
    """Read a job's prompts, and what is done of it already."""
    how, others = _asking(job, found), _asking_adapters(job, found)
    for each in (how, *others.values()):
        each.warn()
    prompts = _read(job, found, how, others)
    done = _open_journal(job, found.dtype, prompts)
    missing = [
        Request(p.id, p.ids, request_seed(job.seed, p.id), k, adapter=p.adapter)
        for p in prompts
        for k in range(job.samples)
        if (p.id, k) not in done
    ]
    ends = dict.fromkeys(end for each in (how, *others.values()) for end in templates.ends(each.template, found.tokenizer))
    return _Work({prompt.id: prompt for prompt in prompts}, len(done), missing, list(ends))


def _read(job: Job, found: Found, how: Asking, others: dict[str, Asking]) -> list[Prompt]:
    """A job's prompts, if all of them fit."""
    prompts = asked.read(job.prompts, found.tokenizer, how, others)
    new, limit = job.sampling.max_new_tokens, found.max_len_tokens
    for prompt in prompts:
        length = len(prompt.ids)
        if length + new > limit:
            raise ConfigError(
                f"{prompt.where}: prompt {prompt.id} has {length} tokens; with {new} new ones it exceeds {limit}, "
                + ("what the model was made for: " if limit != job.models.max_len_tokens else "--max-len-tokens: raise that, ")
                + "shorten the prompt or lower --max-new-tokens"
            )
    return prompts


def _write(job: Job, found: Found, work: _Work, completions: Iterator[Completion]) -> None:
    """Write completions as they come."""
    tokens, start, total = 0, time.perf_counter(), work.done + len(work.requests)
    with (
        open(job.out, "a", encoding="utf-8") as out,
        ticking(tqdm(total=total, initial=work.done, desc="generate", unit=" samples", dynamic_ncols=True)) as bar,
    ):
        for completion in completions:
            prompt = work.prompts[completion.id]
            record = {
                "id": completion.id,
                **({"adapter": prompt.adapter} if prompt.adapter else {}),
                "sample": completion.sample,
                "text": completion.text,
                "finish": completion.finish,
                "tokens": len(completion.tokens),
                **({"taken": int(sum(completion.facts["accepted"]))} if "accepted" in completion.facts else {}),
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


def asking_of(job: Job) -> Asking:
    """How a job's model is asked for instructions."""
    return _asking(job, find(job.models))


def read_prompts(job: Job) -> list[Prompt]:
    """A job's prompts, as its model is asked.

    Raises:
      ConfigError: the file or a row can't be used.
    """
    found = find(job.models)
    return asked.read(job.prompts, found.tokenizer, _asking(job, found), _asking_adapters(job, found))


def _asking(job: Job, found: Found) -> Asking:
    return asked.asking(job.models.model, found.tokenizer, job.template, job.system, job.think, job.models.adapter)


def _asking_adapters(job: Job, found: Found) -> dict[str, Asking]:
    """How the adapters beside the model are asked: each as it was trained."""
    return {
        name: asked.asking(job.models.model, found.tokenizer, job.template, job.system, job.think, directory)
        for name, directory in (job.models.adapters or {}).items()
    }


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


def _weights(models: Models) -> dict[str, str]:
    """What tells the weights at each path from what may lie there at another time: a run may have been trained further."""
    paths = [models.model, models.adapter, models.security, models.security_adapter, *(models.adapters or {}).values()]
    return {path: identity(path) for path in paths if path is not None}


def _open_journal(job: Job, dtype: str, prompts: list[Prompt]) -> set[tuple[str, int]]:
    """The (id, sample)s that the output holds already."""
    out, settings_file = Path(job.out), Path(job.out + ".settings.json")
    settings = {key: value for key, value in (asdict(job.models) | asdict(job)).items() if key not in _FREE | {"models"}}
    settings |= {"dtype": dtype, "weights": _weights(job.models)}
    if not out.is_file() or out.stat().st_size == 0:  # nothing was written yet
        try:
            write_json(settings_file, settings)
            out.touch()
        except OSError as error:
            raise ConfigError(f"{out} can't be written: {error.strerror}") from None
        return set()
    if not settings_file.is_file():
        raise ConfigError(f"{out} exists and isn't of `lpo generate` ({settings_file.name} is missing): give another -o, or move it away")
    # A job of an earlier version doesn't say what its weights were.
    if differ := differing(settings_file, settings, upgrade=lambda theirs: {"weights": settings["weights"]} | theirs):
        raise ConfigError(f"{out} was begun with another {', '.join(differ)} (see {settings_file}): repeat them, or give another -o")
    hashes, done = {prompt.id: prompt.sha256 for prompt in prompts}, set()
    for number, record in enumerate(read_journal(out, {"id": str, "sample": int, "prompt_sha256": str}), 1):
        if hashes.get(record["id"], record["prompt_sha256"]) != record["prompt_sha256"]:
            raise ConfigError(f"{out}:{number}: prompt {record['id']} was another text then: give another -o, or restore it")
        if record["id"] in hashes and record["sample"] < job.samples:
            done.add((record["id"], record["sample"]))
    return done
