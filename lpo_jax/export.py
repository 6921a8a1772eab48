"""A run as a Hugging Face directory: weights or adapters, config, tokenizer, generation config and a model card."""

import dataclasses
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import yaml
from etils import epath

from data_pipeline import template, tokenizer
from data_pipeline.shards import Manifest
from foundation.files import foreign, hold_directory, read_json, write_json, write_text
from lpo_jax.config import ConfigError, RunConfig, to_dict
from lpo_jax.model import adapters, hf, lora, peft
from lpo_jax.objectives.heldout import ENGLISH
from lpo_jax.train.distributed import all_or_none, first
from lpo_jax.train.evaluate import read_summary
from lpo_jax.train.run_dir import stage_data
from lpo_jax.train.weights import float_base, open_run, restore_params, tokenizer_directory

_COPIED = "tokenizer*", "chat_template*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json"
"""Files that lie beside the tokenizer."""

_WRITTEN = *_COPIED, template.FILE, "config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "README.md"
"""What an export may consist of."""


def export(run_dir: str | Path, out: str | Path, merge: bool = False, best: bool = False) -> str:
    """Write what a run has trained to `out`; returns how to load it. `best`: its best checkpoint instead of the newest.

    A LoRA run gives an adapter in PEFT's format, or with `merge` a whole model, whose weights were never quantised. An earlier export in `out` goes; what others put beside it stays.
    All processes call it together; process 0 writes.

    Raises:
      ConfigError: the directory holds no run, the run has no checkpoint, there is nothing to merge, or `out` holds something else.
      DataError: another process is writing to `out`, or it can't be made or written.
    """
    source, out = epath.Path(run_dir), Path(out)
    config = open_run(run_dir)
    if config is None:
        raise ConfigError(f"{run_dir}: no run's config.json; give the run_dir of a trained config")
    if merge and config.model.lora is None:
        raise ConfigError(f"{run_dir}: --merge is for LoRA runs; this one trained the weights themselves")
    if config.model.path is not None and Path(config.model.path).expanduser().resolve() == out.resolve():
        raise ConfigError(f"{out}: the model that the run began with; give another directory to export to")
    with ExitStack() as held:
        with all_or_none():
            if first():
                held.enter_context(hold_directory(out))
                _earlier(out)
        return _export(source, config, out, merge, best)


def _earlier(out: Path) -> list[Path]:
    """The files of an earlier export in `out`, that which tells it as one last.

    Raises:
      ConfigError: `out` holds something else.
    """
    if not (out / template.FILE).is_file() and (other := foreign(out)):
        raise ConfigError(f"{out}: holds {other[0]}, and no earlier export; give an empty directory to export to")
    return sorted(
        {file for pattern in _WRITTEN for file in out.glob(pattern) if file.is_file()}, key=lambda file: file.name == template.FILE
    )


def _export(source: epath.Path, config: RunConfig, out: Path, merge: bool, best: bool) -> str:
    model, params, frozen = restore_params(source, float_base(config) if merge else config, best=best)
    manifest = Manifest.read(source / "data.json")
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
    loader = f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    if model.lora is None:
        hf.write_params(out, model, params, ids)
    elif merge:
        hf.write_params(out, adapters.untied(model, params), lora.merge(frozen, params, model.lora), ids)
    else:
        peft.save_peft(out, model, params, model.lora, config.model.path or "")
        loader = f"peft.PeftModel.from_pretrained(base, {str(out)!r})"
    if not first():
        return loader
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
    if merge and config.model.quantize is not None:
        loader += f"\n# adapters trained beside {config.model.quantize}, merged into the weights as they were before"
    (out / "README.md").write_text(_card(config, data, read_summary(source, config), loader), encoding="utf-8")
    return loader


def _data(manifest: Manifest) -> str:
    """A shard set, for a model card."""
    splits = ", ".join(f"{name}: {s['pairs']} pairs ({s['tokens']} tokens)" for name, s in manifest.splits.items())
    inputs = "\n".join(f"- `{file['file']}` (sha256 `{file['sha256']}`)" for file in manifest.inputs)
    asked = template.of_facts(manifest.template).name
    return f"{splits}; masks `{manifest.masks['mode']}`; template `{asked}`; tokenizer sha256 `{manifest.tokenizer_sha256}`.\n\n{inputs}\n"


def _card(config: RunConfig, data: list[str], summary: Mapping[str, Mapping[str, float]], loader: str) -> str:
    """The model card: what it is, its held-out numbers, the data and the settings. `data`: of the run's shards, and of each stage's own."""
    front = {"library_name": "transformers", "tags": ["code", "security", "lpo"]}
    if config.model.path is not None:
        front["base_model"] = config.model.path
    rows = [f"| {name} | " + " | ".join(f"{row[k]:.3f}" if k in row else "-" for k in ENGLISH) + " |" for name, row in summary.items()]
    stages = ", then ".join(f"{name} ({stage.objective.name})" for name, stage in config.stages.items())
    return "\n".join(
        [
            "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
            f"# {Path(config.run_dir).name}",
            f"\nTrained with lpo-jax for secure code (LPO: https://arxiv.org/abs/2506.00419): {stages}.\n",
            f"```python\n{loader}\n```\n",
            "## Held-out pairs\n",
            "| after | " + " | ".join(ENGLISH) + " |",
            "|---" * (len(ENGLISH) + 1) + "|",
            *rows,
            "",
            *(f"- `{name}`: {text}" for name, text in ENGLISH.items()),
            "\n## Data\n",
            *data,
            "## Settings\n",
            "```yaml\n" + yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True) + "```\n",
        ]
    )
