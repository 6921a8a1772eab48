"""The flags by which `lpo generate` and `lpo serve` say which models decode, how two of them do it together, and where."""

import argparse
from dataclasses import fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpo_jax.decode.load import Models
    from lpo_jax.decode.rules.codecode import CoDecoding
    from lpo_jax.decode.rules.crosec import CroSec


def add_models(parser: argparse.ArgumentParser, more_presets: tuple[str, ...] = ()) -> None:
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a hub id, or the run_dir of a trained config")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter to merge into it")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: the model's own")
    parser.add_argument("--security", metavar="MODEL", help="co-decode with this security model, given as --model is")
    parser.add_argument("--security-adapter", metavar="DIR", help="a PEFT adapter to merge into that")
    parser.add_argument(
        "--preset",
        choices=("aligned", "cosec_plus", "cosec_v1", *more_presets),
        default="aligned",
        help="the rule: as published, or (aligned, the default) with rejected tokens replaced as --temperature, --top-k and --top-p ask"
        + ("; crosec: mix the two, the security model reading the text in its own tokens" if more_presets else ""),
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="TAU",
        help="keep a proposed token if min(1, p / q) exceeds this: 0 keeps all, 1 none (default: 0.3)",
    )
    parser.add_argument(
        "--draft-temperature", type=float, metavar="T", help="of the proposals (default: cosec_v1: 0.4, else --temperature)"
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="K",
        help="propose K tokens before the model looks; the text is the same (default: by what is accepted, at most 8)",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="sequences at work at once (default: 16 for each device that cuts the batch)")
    parser.add_argument(
        "--max-len-tokens",
        type=int,
        metavar="N",
        help="refuse what is longer, prompt and completion (default: the model's limit; serve: at most 4096)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and matmuls (default: float32 on CPUs, else bfloat16)")
    for axis, default, what in (
        ("data", -1, "copies of the model; -1: all devices left"),
        ("fsdp", 1, "cut batch and weights"),
        ("tensor", 1, "cut heads, mlp, vocabulary"),
    ):
        parser.add_argument(
            f"--{axis}", type=int, default=default, metavar="N", help=f"devices along the mesh's {axis} axis: {what} (default: {default})"
        )


def models_of(args: argparse.Namespace) -> "Models":
    """What the flags say."""
    from lpo_jax.config import MeshConfig
    from lpo_jax.decode.load import Models

    same = {field.name: getattr(args, field.name) for field in fields(Models) if field.name in args}
    return Models(rule=_rule(args), mesh=MeshConfig(args.data, args.fsdp, args.tensor), **same)


def _rule(args: argparse.Namespace) -> "CoDecoding | CroSec | None":
    """How two models decide; None: there is one."""
    from foundation.errors import ConfigError
    from lpo_jax.decode.rules import codecode, crosec

    given = {"--security-adapter": args.security_adapter, "--threshold": args.threshold, "--draft-temperature": args.draft_temperature, "--block": args.block}  # fmt: skip
    given |= {"--weight": args.weight, "--security-tokenizer": args.security_tokenizer}
    given = {flag: value for flag, value in given.items() if value is not None}
    mixes = args.preset in crosec.PRESETS
    fitting = {"--security-adapter"} | (
        {"--weight", "--security-tokenizer"} if mixes else {"--threshold", "--draft-temperature", "--block"}
    )
    if args.security is None:
        if given or mixes:
            raise ConfigError(f"{', '.join(given) or '--preset ' + args.preset} are for co-decoding: give --security as well")
        return None
    if wrong := sorted(given.keys() - fitting):
        raise ConfigError(f"{', '.join(wrong)}: not for --preset {args.preset}")
    if mixes:
        rule = crosec.PRESETS[args.preset]
        return rule if args.weight is None else replace(rule, weight=args.weight)
    asked = {"threshold": args.threshold, "draft_temperature": args.draft_temperature}
    return replace(codecode.PRESETS[args.preset], **{name: value for name, value in asked.items() if value is not None})
