"""Where completions come from: the benchmark itself, a file, an endpoint that speaks OpenAI's protocol, or our own sampler."""

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from data_pipeline import records
from evaluation.tasks import Task
from foundation.console import ticking
from foundation.errors import UserError, masked
from foundation.files import Json, read_journal

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models


class EvaluationError(UserError):
    """Something that was given to an evaluation can't be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn, for whoever draws it."""

    temperature: float = 0.4
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0


class Answer(NamedTuple):
    """A completion of a task; `finish`: why it ended, as OpenAI's `finish_reason` says ("length": cut off at its longest), "" where nobody knows;
    `taken`: under co-decoding how many of its tokens the security model has proposed, and how many it has."""

    task_id: str
    sample: int
    text: str
    finish: str = ""
    taken: tuple[int, int] | None = None


@dataclass(frozen=True)
class Completions:
    """A source. What `read(directory)` costs to get, it keeps in `directory`."""

    model: str
    samples: int  # of each task
    read: Callable[[Path], Iterator[Answer]]
    sampling: Json = field(default_factory=dict)
    asked: str = "nobody is asked"  # how, and why so; for people


def from_benchmark(which: str, tasks: Sequence[Task]) -> Completions:
    """What the benchmark itself has: its "canonical" solutions, or its known-"insecure" programs."""
    rows = [Answer(task.task_id, 0, text, "stop") for task in tasks if (text := getattr(task, which)) is not None]
    if len(rows) < len(tasks):
        what = {"canonical": "solution", "insecure": "known-insecure code"}[which]
        raise EvaluationError(f"--completions {which}: {len(tasks) - len(rows)} of {len(tasks)} tasks come without {what}")
    return Completions(which, 1, lambda _: iter(rows))


def from_file(path: Path, tasks: Sequence[Task], samples: int | None) -> Completions:
    """A file of {task_id, completion[, sample, finish_reason]}, or of what `lpo generate` writes ({id, text, sample, finish}, a task's id each).

    Samples are numbered as they come where they have no number.

    Raises:
      EvaluationError: a row can't be read, twice the same sample, another task, or a task without all its samples.
    """
    wanted, rows, count = {task.task_id for task in tasks}, {}, Counter[str]()
    for where, row in records.read(path, records.raising(EvaluationError)):
        number = where.rpartition(":")[2]
        try:
            task_id, text = (str(row["task_id"]), row["completion"]) if "task_id" in row else (str(row["id"]), row["text"])
            key = task_id, row.get("sample", count[task_id])
            if type(key[1]) is not int:
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise EvaluationError(
                f'{path}:{number}: write {{"task_id": ..., "completion": TEXT}}, and "sample": NUMBER if you like; or {{"id": ..., "text": TEXT}}'
            ) from None
        finish = row.get("finish_reason", row.get("finish"))
        if not isinstance(text, str) or key in rows:
            problem = "its completion is no text" if key not in rows else f"sample {key[1]} of {task_id} stands above already"
            raise EvaluationError(f"{path}:{number}: {problem}")
        count[task_id] += 1
        rows[key] = Answer(*key, text, finish if isinstance(finish, str) else "", _taken(row))
    if not rows:
        raise EvaluationError(f"{path}: it holds no completion; write a line for each task")
    unknown = sorted(count.keys() - wanted)
    if unknown and not count.keys() & wanted:
        raise EvaluationError(f"{path}: {unknown[0]} is no task of this benchmark, nor is any other: is it another benchmark's?")
    samples = samples or max((count[task_id] for task_id in wanted), default=1)
    missing = [f"{task.task_id} sample {k}" for task in tasks for k in range(samples) if (task.task_id, k) not in rows]
    if missing:
        raise EvaluationError(f"{path}: {len(missing)} completions are missing, {missing[0]} first: every task needs {samples}, even empty")
    kept = [rows[task.task_id, k] for task in tasks for k in range(samples)]
    return Completions(str(path), samples, lambda _: iter(kept))


def from_endpoint(
    url: str | None, model: str, tasks: Sequence[Task], form: str, samples: int, sampling: Sampling, *, concurrency: int = 8
) -> Completions:
    """An OpenAI-compatible endpoint: /completions for the completion form, /chat/completions for instructions. The key is read from OPENAI_API_KEY.

    Answers are kept in the run's completions.jsonl as they come; of a prompt that the endpoint's filter turns down, an empty one.
    """
    from data_pipeline.endpoint import Endpoint, address, each

    chat, url = form == "instruction", address(url)
    prompts = {task.task_id: task.instruction if chat else task.prompt for task in tasks}
    options: Json = {"model": model, "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}

    def read(directory: Path) -> Iterator[Answer]:
        import openai

        from data_pipeline.distill.journal import read_completion

        key = os.environ.get("OPENAI_API_KEY", "")
        journal = directory / "completions.jsonl"
        done = {(row["id"], row["sample"]) for row in read_journal(journal, {"id": str, "sample": int})}
        missing = [(task_id, k) for task_id in prompts for k in range(samples) if (task_id, k) not in done]

        async def ask() -> None:
            endpoint = Endpoint(url, api_key=key or "none", timeout_s=300, tries=7)

            async def one(wanted: tuple[str, int]) -> None:
                task_id, sample = wanted
                prompt = {"messages": [{"role": "user", "content": prompts[task_id]}]} if chat else {"prompt": prompts[task_id]}
                body = options | prompt | {"seed": (sampling.seed + sample) % 2**31}
                try:
                    if chat:
                        read = lambda a: itemgetter("text", "finish_reason")(read_completion(a.to_dict(warnings=False)))  # noqa: E731
                        said = await endpoint.ask(lambda c: c.chat.completions.create(**body), read)
                    else:
                        read = lambda a: (a.choices[0].text, a.choices[0].finish_reason)  # noqa: E731
                        said = await endpoint.ask(lambda c: c.completions.create(**body), read)
                except openai.APIStatusError as error:
                    if error.code != "content_filter":
                        raise
                    said = "", error.code  # it would turn down this prompt whenever it is asked
                text, finish = (each if isinstance(each, str) else "" for each in said)
                out.write(json.dumps({"id": task_id, "sample": sample, "text": text, "finish": finish}) + "\n")
                out.flush()
                bar.update()

            async with contextlib.aclosing(endpoint):
                await each(missing, one, concurrency)

        with (
            journal.open("a", encoding="utf-8") as out,
            ticking(
                tqdm(total=len(done) + len(missing), initial=len(done), desc=f"ask {model}", unit=" samples", dynamic_ncols=True)
            ) as bar,
        ):
            try:
                asyncio.run(ask())
            except (openai.OpenAIError, ValueError) as error:
                text = masked(" ".join(str(error).split()))
                raise EvaluationError(
                    f"{_host(url)} gave no completion ({type(error).__name__}: {text[:300]}): run the same command again to go on"
                ) from None
        yield from _kept(journal)

    settings = vars(sampling) | {"endpoint": ("chat at " if chat else "completions at ") + _host(url)}
    asked = "in the template that the server has for chats" if chat else "as it stands, in no template"
    return Completions(model, samples, read, settings, asked)


def from_model(models: "Models", tasks: Sequence[Task], form: str, samples: int, sampling: Sampling, *, preset: str = "aligned", think: bool = True, template: str | None = None, system: str = "") -> Completions:  # fmt: skip
    """Our own sampler on a Hugging Face directory, a hub id, a PEFT adapter's directory (on the base that its config names) or the run directory
    of a training: `lpo generate` into the run's completions.jsonl. All processes of a job read it together, and process 0 gets the answers.

    A prompt is given as it is, an instruction as the model was trained to read it: see `lpo_jax.decode.prompts.asking`.

    Args:
      preset: what `models.rule` is called.
      think, template, system: instead of the model's own.

    Raises:
      ConfigError, DataError: the model, its tokenizer or the template can't be used; with the remedy.
      EvaluationError: an adapter is to be merged into an adapter.
    """
    from lpo_jax.decode import PRESETS, CoDecoding, SamplingConfig, job
    from lpo_jax.model.peft import base_of
    from lpo_jax.train.distributed import first

    path, base = models.model, base_of(models.model)
    if base and models.adapter:
        raise EvaluationError(f"--adapter {models.adapter}: {path} is an adapter itself: give its base model, {base}, and one adapter")
    key = "prompt" if form == "completion" else "instruction"
    config = SamplingConfig(temperature=sampling.temperature, top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens)
    own = replace(models, model=base, adapter=path) if base else models
    what = job.Job("", "", own, samples=samples, seed=sampling.seed, think=think, template=template, system=system, sampling=config)

    def read(directory: Path) -> Iterator[Answer]:
        prompts, out = directory / "prompts.jsonl", directory / "completions.jsonl"
        if first():
            lines = [json.dumps({"id": task.task_id, key: getattr(task, key)}) + "\n" for task in tasks]
            prompts.write_text("".join(lines), encoding="utf-8")
        job.run(replace(what, prompts=str(prompts), out=str(out)))
        if first():
            yield from _kept(out)

    settings = vars(sampling) | {k: v for k in ("adapter", "quantize") if (v := getattr(models, k)) is not None}
    if models.security is not None:
        settings |= {"security": models.security, "preset": preset}
        settings |= {k: v for k in ("security_adapter", "security_tokenizer") if (v := getattr(models, k)) is not None}
        if isinstance(models.rule, CoDecoding):
            settings |= {"threshold": models.rule.threshold}
            drafts = models.rule.draft_temperature
            settings |= {} if drafts == PRESETS[preset].draft_temperature else {"draft_temperature": drafts}
        elif models.rule is not None:
            settings |= {"weight": models.rule.weight}
    if form == "completion":
        return Completions(path, samples, read, settings, "as it stands, in no template")
    how = job.asking_of(what)
    return Completions(path, samples, read, settings | how.facts, f"in the template {how.template.name}: {how.why}")


def _kept(journal: Path) -> Iterator[Answer]:
    rows = read_journal(journal, {"id": str, "sample": int, "text": str})
    return (Answer(row["id"], row["sample"], row["text"], row.get("finish", ""), _taken(row)) for row in rows)


def _taken(row: Json) -> tuple[int, int] | None:
    taken, tokens = row.get("taken"), row.get("tokens")
    return (taken, tokens) if isinstance(taken, int) and isinstance(tokens, int) else None


def _host(url: str) -> str:
    """Where a URL leads, without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
