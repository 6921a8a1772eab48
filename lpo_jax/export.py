"""A run as a Hugging Face directory: weights or adapters, config, tokenizer, generation config and a model card."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from etils import epath

from data_pipeline import template, tokenizer
from data_pipeline.shards import Manifest
from foundation.files import Json, foreign, hold_directory, read_json, read_object, read_text, write_json, write_text
from foundation.stores import HUB_ID
from lpo_jax.config import ConfigError, RunConfig, to_dict
from lpo_jax.model import adapters, hf, lora, peft
from lpo_jax.objectives.heldout import ENGLISH
from lpo_jax.train.checkpoint import Progress
from lpo_jax.train.distributed import all_or_none, first
from lpo_jax.train.evaluate import read_summary
from lpo_jax.train.run_dir import stage_data
from lpo_jax.train.weights import float_base, open_run, restore_run, tokenizer_directory

_COPIED = "tokenizer*", "chat_template*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json"
"""Files that lie beside the tokenizer."""

WRITTEN = (
    *_COPIED,
    template.FILE,
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "data*.json",
    "README.md",
)
"""What an export may consist of."""


DTYPES = "float32", "bfloat16", "float16"
"""That weights may be written in."""


@dataclass(frozen=True)
class _How:
    """The arguments of `export`."""

    merge: bool
    best: bool
    dtype: str | None
    base: str | None
    license: str | None
    data_license: str | None
    address: str | None


@dataclass(frozen=True)
class Exported:
    """What was exported: where it stood in its run, and how to load it."""

    progress: Progress
    loader: str
    dtype: str


def export(
    run_dir: str | Path,
    out: str | Path,
    merge: bool = False,
    best: bool = False,
    *,
    dtype: str | None = None,
    base: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    address: str | None = None,
) -> Exported:
    """Write what a run has trained to `out`. An earlier export there goes; what others put beside it stays.

    All processes call it together; process 0 writes.

    Args:
      merge: a LoRA run gives an adapter in PEFT's format, or with this a whole model, whose weights were never quantised.
      best: its best checkpoint instead of the newest.
      dtype: one of DTYPES, of the weights; None: the base's, of adapters float32.
      base: the base's hub id, for the card and adapters; None: as far as it is known.
      license: for the card; None: the base's, as far as it is known.
      data_license: of the training data, for the card.
      address: what the card loads it from; None: `out`.

    Raises:
      ConfigError: the directory holds no run, the run has no checkpoint, there is nothing to merge, or `out` holds something else.
      DataError: another process is writing to `out`, or it can't be made or written.
    """
    source, out, how = epath.Path(run_dir), Path(out), _How(merge, best, dtype, base, license, data_license, address)
    config = run_of(run_dir, merge)
    if config.model.path is not None and Path(config.model.path).expanduser().resolve() == out.resolve():
        raise ConfigError(f"{out}: the model that the run began with; give another directory to export to")
    with ExitStack() as held:
        with all_or_none():
            if first():
                held.enter_context(hold_directory(out))
                _earlier(out)
        return _export(source, config, out, how)


def run_of(run_dir: str | Path, merge: bool) -> RunConfig:
    """The config of a run that can be exported so; nothing else of it is read.

    Raises:
      ConfigError: the directory holds no run, or there is nothing to merge.
    """
    config = open_run(run_dir)
    if config is None:
        raise ConfigError(f"{run_dir}: no run's config.json; give the run_dir of a trained config")
    if merge and config.model.lora is None:
        raise ConfigError(f"{run_dir}: --merge is for LoRA runs; this one trained the weights themselves")
    return config


def _earlier(out: Path) -> list[Path]:
    """The files of an earlier export in `out`, that which tells it as one last.

    Raises:
      ConfigError: `out` holds something else.
    """
    if not (out / template.FILE).is_file() and (other := foreign(out)):
        raise ConfigError(f"{out}: holds {other[0]}, and no earlier export; give an empty directory to export to")
    return sorted(
        {file for pattern in WRITTEN for file in out.glob(pattern) if file.is_file()}, key=lambda file: file.name == template.FILE
    )


def _export(source: epath.Path, config: RunConfig, out: Path, how: _How) -> Exported:
    progress, model, params, frozen = restore_run(source, float_base(config) if how.merge else config, best=how.best)
    manifest = Manifest.read(source / "data.json")
    base = _base(config, how)
    adapter = model.lora is not None and not how.merge
    dtype = how.dtype or ("float32" if adapter else base.dtype or config.model.param_dtype)
    data = [_data(manifest)]
    for name, stage in config.stages.items():
        for index, own in enumerate(stage.data or ()):
            data.append(f"### Stage {name}: {own.path}\n\n{_data(Manifest.read(source / stage_data(name, index)))}")
    ids = {"bos_token_id": manifest.bos_id, "eos_token_id": manifest.eos_id}
    tokenizer_dir = tokenizer_directory(config)
    if config.model.path is not None:
        raw = read_json(tokenizer_dir / "config.json")
        ids |= {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in raw}
    asked = template.of_facts(manifest.template, source / "data.json")
    found = tokenizer.load(config.data.tokenizer or tokenizer_dir)
    if first():
        for file in _earlier(out):
            file.unlink()
        write_json(out / template.FILE, dataclasses.asdict(asked))  # first: it tells an export, also one that was stopped
    loader = f"transformers.AutoModelForCausalLM.from_pretrained({(how.address or str(out))!r})"
    if model.lora is None:
        hf.write_params(out, model, params, ids, dtype)
    elif how.merge:
        hf.write_params(out, adapters.untied(model, params), lora.merge(frozen, params, model.lora), ids, dtype)
    else:
        peft.save_peft(out, model, params, model.lora, base.id or config.model.path or "", dtype)
        loader = f"peft.PeftModel.from_pretrained(base, {(how.address or str(out))!r})"
    if not first():
        return Exported(progress, loader, dtype)
    for pattern in _COPIED:
        for file in tokenizer_dir.glob(pattern):
            shutil.copyfile(file, out / file.name)
    if config.data.tokenizer is not None:
        found.save(out)  # the model may come without one
    if asked.chat is not None and asked.chat != found.chat:
        write_text(out / tokenizer.CHAT_FILE, asked.chat)  # it was trained with that of its shards
    generation = out / "generation_config.json"
    settings = read_json(generation) if generation.is_file() else ids
    eos = settings.get("eos_token_id")
    eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if more := set(template.ends(asked, found)) - set(eos):
        settings |= {"eos_token_id": [*eos, *sorted(more)]}
    write_json(generation, settings)
    if how.merge and config.model.quantize is not None:
        loader += f"\n# adapters trained beside {config.model.quantize}, merged into the weights as they were before"
    for file in source.glob("data*.json"):
        write_text(out / file.name, read_text(file))
    exported = Exported(progress, loader, dtype)
    prompt = template.prompt(asked, "Write a function that ...", found, asked.thinks).shown
    summary = read_summary(source, config)
    write_text(out / "README.md", _card(config, how, base, exported, data, summary, (asked.name, prompt)))
    return exported


@dataclass(frozen=True)
class _Base:
    """The model that a run began with, as far as it says."""

    id: str | None = None  # on the hub
    dtype: str | None = None  # of its weights
    license: str | None = None


def _base(config: RunConfig, how: _How) -> _Base:
    """What is known of the base: by its config.json and its card, where it has one. A new model has no base."""
    path = config.model.path
    if path is None:
        return _Base(how.base)
    directory = hf.locate(path)
    raw = read_object(directory / "config.json")
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{directory.absolute()}/")  # as the hub's own cache names it
    names = (how.base, None if Path(path).expanduser().is_dir() else path, f"{cached[1]}/{cached[2]}" if cached else None)
    known = next((name for name in names if isinstance(name, str) and HUB_ID.fullmatch(name)), None)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    card = directory / "README.md"
    front = read_text(card).split("---\n")[1:2] if card.is_file() and read_text(card).startswith("---\n") else []
    said = yaml.safe_load(front[0]) if front else {}
    licence = said.get("license") if isinstance(said, dict) else None
    return _Base(known, dtype if dtype in DTYPES else None, licence if isinstance(licence, str) else None)


def _data(manifest: Manifest) -> str:
    """A shard set, for a model card."""
    splits = ", ".join(f"{name}: {s['pairs']} pairs ({s['tokens']} tokens)" for name, s in manifest.splits.items())
    inputs = "\n".join(f"- `{file['file']}` (sha256 `{file['sha256']}`)" for file in manifest.inputs)
    asked = template.of_facts(manifest.template).name
    return f"{splits}; masks `{manifest.masks['mode']}`; template `{asked}`; tokenizer sha256 `{manifest.tokenizer_sha256}`.\n\n{inputs}\n"


def _card(
    config: RunConfig,
    how: _How,
    base: _Base,
    exported: Exported,
    data: list[str],
    summary: Mapping[str, Mapping[str, float]],
    prompt: tuple[str, str],
) -> str:
    """The model card: what it is, how it is loaded and asked, its held-out numbers, the data, the licences and the settings.

    Args:
      data: of the run's shards, and of each stage's own.
      prompt: the template's name, and a prompt in it.
    """
    adapter, licence = "PeftModel" in exported.loader, how.license or base.license
    front: Json = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["code", "security", "lpo"],
    }
    if base.id is not None:
        front["base_model"] = base.id
        front["base_model_relation"] = "adapter" if adapter else "finetune"
    if licence is not None:
        front["license"] = licence
    step = f"step {exported.progress.total_step} (stage {exported.progress.stage}, step {exported.progress.step})"
    began = "a randomly initialised model" if config.model.path is None else base.id or f"`{Path(config.model.path).name}`"
    rows = [f"| {name} | " + " | ".join(f"{row[k]:.3f}" if k in row else "-" for k in ENGLISH) + " |" for name, row in summary.items()]
    stages = ", then ".join(f"{name} ({stage.objective.name})" for name, stage in config.stages.items())
    return "\n".join(
        [
            "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
            f"# {Path(config.run_dir).name}",
            f"\nTrained with lpo-jax for secure code (LPO: https://arxiv.org/abs/2506.00419): {stages}, from {began}. These are the weights of "
            f"{step}, as {exported.dtype}.\n",
            f"```python\n{exported.loader}\n```\n",
            "## Prompt\n",
            f"Trained with the template `{prompt[0]}`; ask in it:\n",
            f"````text\n{prompt[1]}\n````\n",
            "## Held-out pairs\n",
            "| after | " + " | ".join(ENGLISH) + " |",
            "|---" * (len(ENGLISH) + 1) + "|",
            *rows,
            "",
            *(f"- `{name}`: {text}" for name, text in ENGLISH.items()),
            "\n## Data\n",
            *data,
            "## Licences\n",
            f"- the base: {base.license or 'not known here; see its own card'}",
            f"- the data: {how.data_license or 'not known here; ask whoever made them before you publish this'}",
            f"- this: {licence or 'not stated; the licences of base and data bind it'}\n",
            "## Settings\n",
            "```yaml\n" + yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True) + "```\n",
        ]
    )
