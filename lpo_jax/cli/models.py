"""The flags by which `lpo generate`, `lpo serve` and `lpo-eval` say which models decode, how two of them do it together, and where."""

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.commands import number, whole

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models
    from lpo_jax.decode.rules.codecode import CoDecoding
    from lpo_jax.decode.rules.crosec import CroSec

CROSEC = ("crosec", "crosec_published")
"""The presets for two models that share no tokenizer."""


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a hub id, or the run_dir of a trained config")
    add_decoding(parser)


def add_decoding(parser: argparse._ActionsContainer, data_axis: str = "--data") -> None:
    """The flags beside the model's own, which `lpo-eval` calls otherwise."""
    parser.add_argument("--adapter", action="append", default=[], metavar="[NAME=]DIR", help="a PEFT adapter to merge into it; with a NAME it stays beside the model, and there may be several, from which each request chooses")  # fmt: skip
    parser.add_argument("--tokenizer", metavar="DIR", help="default: the model's own")
    parser.add_argument("--security", metavar="MODEL", help="co-decode with this security model, given as --model is")
    parser.add_argument("--security-adapter", metavar="DIR", help="a PEFT adapter to merge into that")
    rule = (
        "the rule: as published, or (aligned, the default) with rejected tokens replaced as --temperature, --top-k and --top-p ask; crosec: mix the "
        "two, the security model reading the text in its own tokens"
    )
    parser.add_argument("--preset", choices=("aligned", "cosec_plus", "cosec_v1", *CROSEC), default="aligned", help=rule)
    parser.add_argument(
        "--weight", type=number(most=1), metavar="W", help="crosec: the security model's share of the mixture (default: 0.3)"
    )
    parser.add_argument("--security-tokenizer", metavar="DIR", help="crosec: default: the security model's own")
    for flag, kind, metavar, text in (
        ("--threshold", number(most=1), "TAU", "keep a proposed token if min(1, p / q) exceeds this: 0 keeps all, 1 none (default: 0.3)"),
        ("--draft-temperature", number(), "T", "of the proposals (default: cosec_v1: 0.4, else --temperature)"),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    add_room(parser, data_axis)


def add_room(parser: argparse._ActionsContainer, data_axis: str = "--data") -> None:
    """The flags that say how much decodes at once, and where. `data_axis`: of these the name of one, where --data is a file."""
    for flag, kind, metavar, text in (
        (
            "--block",
            whole(1),
            "K",
            "propose K tokens before the model looks; the text is the same (default: by what is accepted, at most 8)",
        ),
        ("--rows", whole(1), "N", "sequences at work at once (default: 16 for each device that cuts the batch)"),
        (
            "--max-len-tokens",
            whole(2),
            "N",
            "refuse what is longer, prompt and completion (default: the model's limit; serve: at most 4096)",
        ),
    ):
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--cache-gib",
        type=number(),
        metavar="GIB",
        help="memory for keys and values, all devices together; where texts need more, some wait (default: what all rows' longest texts need)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and matmuls (default: float32 on CPUs, else bfloat16)")
    text = "hold the layers' matrices as 8-bit codes with a scale for each output, those of both models: a quarter of float32's memory, half of bfloat16's"
    parser.add_argument("--quantize", choices=("int8",), help=text)
    for axis, default, what in (
        ("data", -1, "copies of the model; -1: all devices left"),
        ("fsdp", 1, "cut batch and weights"),
        ("tensor", 1, "cut heads, mlp, vocabulary"),
        ("expert", 1, "cut batch and experts"),
    ):
        text = f"devices along the mesh's {axis} axis: {what} (default: {default})"
        flag = data_axis if axis == "data" else f"--{axis}"
        parser.add_argument(flag, type=whole(-1), default=default, metavar="N", help=text)


def add_asking(parser: argparse._ActionsContainer) -> None:
    """The flags by which `lpo generate`, `lpo serve` and `lpo-eval` say how a model's instructions are put."""
    parser.add_argument("--template", metavar="NAME", help="how instructions are put: alpaca, chat, plain, or a Jinja file (default: as the model was trained here; another's: chat if its tokenizer has a template for it, else plain)")  # fmt: skip
    parser.add_argument("--system", default="", metavar="TEXT", help="the system text of a chat (default: the model's own)")
    parser.add_argument("--no-think", action="store_true", help="ask for the response directly, without a security thought")


def models_of(args: argparse.Namespace, model: str | None = None) -> "Models":
    """What the flags say; `model`: instead of --model."""
    from lpo_jax.config import MeshConfig
    from lpo_jax.decode.load import Models

    same = {field.name: getattr(args, field.name) for field in fields(Models) if field.name in args} | _adapters(args)
    same |= {} if model is None else {"model": model}
    copies = args.copies if "copies" in args else args.data
    return Models(rule=_rule(args), mesh=MeshConfig(copies, args.fsdp, args.tensor, args.expert), **same)


def _adapters(args: argparse.Namespace) -> "dict[str, Any]":
    """What --adapter says: one to merge, or several by name."""
    from foundation.errors import ConfigError

    named, merged = dict[str, str](), []
    for given in args.adapter:
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", given)
        if match is None and "=" in given and not Path(given).exists():
            raise ConfigError(f"--adapter {given}: a NAME has letters, digits, '.', '-' and '_' alone, and begins with a letter or digit")
        if match is None or Path(given).exists():
            merged.append(given)
        elif match[1] in named:
            raise ConfigError(f"--adapter {match[1]}: {named[match[1]]} and {match[2]}: give each a name of its own")
        else:
            named[match[1]] = match[2]
    if len(merged) > 1 or (merged and named):
        raise ConfigError(f"--adapter {merged[0]} is merged into the model, which leaves no other: give each a name, --adapter NAME=DIR")
    if named and args.preset in CROSEC:
        raise ConfigError(f"--adapter {next(iter(named))}=...: not for --preset {args.preset}: give one without a name, to be merged")
    return {"adapter": merged[0] if merged else None, "adapters": named or None}


def _rule(args: argparse.Namespace) -> "CoDecoding | CroSec | None":
    """How two models decide; None: there is one."""
    from foundation.errors import ConfigError
    from lpo_jax.decode.rules import codecode, crosec

    common, replaces, mixes = ["security_adapter"], ["threshold", "draft_temperature", "block"], ["weight", "security_tokenizer"]
    given = {name: getattr(args, name) for name in (*common, *replaces, *mixes) if getattr(args, name) is not None}
    flags = {name: "--" + name.replace("_", "-") for name in given}
    mixed = args.preset in crosec.PRESETS
    if args.security is None:
        if given or mixed:
            raise ConfigError(f"{', '.join(flags.values()) or '--preset ' + args.preset}: for co-decoding alone; give --security as well")
        return None
    if wrong := sorted(flags[name] for name in given.keys() & set(replaces if mixed else mixes)):
        raise ConfigError(f"{', '.join(wrong)}: not for --preset {args.preset}")
    preset: CoDecoding | CroSec = (crosec if mixed else codecode).PRESETS[args.preset]
    return replace(preset, **{name: given[name] for name in ("threshold", "draft_temperature", "weight") if name in given})
