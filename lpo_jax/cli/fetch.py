"""`lpo fetch`: a model of the hub into a bucket, once.

Copy a model's config, tokenizer and *.safetensors from the hub to a bucket's folder, or to a disk that all hosts see: file by file, in memory, and
checked by the hub's own hashes. A file that says that all is there is written last; where it stands nothing is done, and what an interrupted
command has copied isn't copied again. From the bucket each host then reads its own rows of each tensor, by range; nothing of them is ever on its disk.
A bucket takes Google Cloud's credentials: `gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS, or a machine of Google's.

DIR is any model.path, --model or --completions: gs://BUCKET/models/NAME. Where LPO_MODELS names a folder, as on machines that `make train-tpu` and its like
have started (gs://BUCKET/models), hub ids are looked for there, and fetched by whoever first asks for one.

examples:
  lpo fetch Qwen/Qwen2.5-Coder-7B gs://BUCKET/models/Qwen/Qwen2.5-Coder-7B
  LPO_MODELS=/shared/models lpo fetch Qwen/Qwen2.5-Coder-7B
"""

import argparse

from foundation.commands import new_directory


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hub_id", metavar="HUB_ID", help="OWNER/NAME")
    parser.add_argument(
        "place", nargs="?", type=_place, metavar="DIR", help="gs://BUCKET/FOLDER, or a directory (default: HUB_ID below LPO_MODELS)"
    )


def _place(text: str) -> str:
    return text if ":/" in text else str(new_directory(text))


def run(args: argparse.Namespace) -> int:
    from foundation.errors import ConfigError
    from foundation.stores import HUB_ID, place_of
    from lpo_jax.model import hf

    if not HUB_ID.fullmatch(args.hub_id):
        raise ConfigError(f"{args.hub_id} is no hub id: write OWNER/NAME")
    place = args.place or place_of(args.hub_id)
    if place is None:
        raise ConfigError(f"where to? lpo fetch {args.hub_id} gs://BUCKET/models/{args.hub_id}, or set LPO_MODELS")
    print(f"{'fetched into' if hf.fetch(args.hub_id, place) else 'is already in'} {place}")
    return 0
