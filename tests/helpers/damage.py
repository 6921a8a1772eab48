"""Ways to damage a model's directory: what disks, networks, editors and attackers leave behind. Each is (name, damage), the same in every process.

A damage changes a copy of a sound directory with the files that `sound` writes.
"""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9\n"
)
ABSURD: tuple[Any, ...] = (0, -1, 1, 2**31, 10**12, 10**400, 2.5, 1e308, float("nan"), float("inf"), "2", "x", "", None, True, [], [1], {})
Damage = Callable[[Path], object]


def edit_json(file: str, change: Callable[[Any], Any]) -> Damage:
    """Change what a JSON file holds; a change in place may return None."""

    def damage(directory: Path) -> None:
        value = json.loads((directory / file).read_text())
        changed = change(value)
        (directory / file).write_text(json.dumps(value if changed is None else changed))

    return damage


def put(file: str, content: bytes) -> Damage:
    return lambda directory: (directory / file).write_bytes(content)


def set_to(*path: Any) -> Callable[[Any], None]:
    """Keys, and last the value."""
    *keys, last, new = path

    def change(value: Any) -> None:
        for key in keys:
            value = value[key]
        value[last] = new

    return change


def cut(file: str, share: float) -> Damage:
    def damage(directory: Path) -> None:
        content = (directory / file).read_bytes()
        (directory / file).write_bytes(content[: int(len(content) * share)])

    return damage


def flip(file: str, seed: int, header: bool = False) -> Damage:
    """Change one byte of a file, or of a safetensors file's header."""

    def damage(directory: Path) -> None:
        content = bytearray((directory / file).read_bytes())
        draw = random.Random(seed)
        at = draw.randrange(8 + struct.unpack("<Q", content[:8])[0] if header else len(content))
        content[at] ^= draw.randrange(1, 256)
        (directory / file).write_bytes(content)

    return damage


def _head(file: str, change: Callable[[dict, list[str]], Any], **more: Any) -> Damage:
    """Change the header of the safetensors; `change` gets it, and the names of its tensors."""

    def damage(directory: Path) -> None:
        raw = (directory / file).read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        found = change(header, [name for name in header if name != "__metadata__"])
        text = found if isinstance(found, bytes) else json.dumps(header).encode()
        (directory / file).write_bytes(struct.pack("<Q", more.get("length", len(text))) + text + data + more.get("behind", b""))

    return damage


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Something else in a file's place."""

    def damage(directory: Path) -> None:
        (directory / file).unlink()
        make(directory / file)

    return damage


ODD_JSON = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "a text": b'"x"',
    "torn": b'{"a": ',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 200_000,
    "deep within": b'{"model_type": ' * 50_000,
    "a long number": b'{"vocab_size": ' + b"9" * 6000 + b"}",
    "Git LFS": POINTER.encode(),
    "HTML": b"<!doctype html><title>Not found</title>",
    "zeros": bytes(1000),
}
ODD_PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a dead link": lambda path: path.symlink_to("gone"),
}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FILES = (*JSON_FILES, WEIGHTS, "chat_template.jinja")


def places() -> Iterator[tuple[str, Damage]]:
    for file in FILES:
        yield from ((f"{file}: {what}", instead(file, make)) for what, make in ODD_PLACES.items())
        yield from ((f"{file}: cut at {share}", cut(file, share)) for share in (0.1, 0.6, 0.99))
        if file != WEIGHTS:
            yield from ((f"{file}: byte {seed} flipped", flip(file, seed)) for seed in range(8))
    for file in JSON_FILES:
        yield from ((f"{file}: {what}", put(file, content)) for what, content in ODD_JSON.items())


def weights(file: str = WEIGHTS) -> Iterator[tuple[str, Damage]]:
    def head(change: Callable[[dict, list[str]], Any], **more: Any) -> Damage:
        return _head(file, change, **more)

    for what, content in (("empty", b""), ("Git LFS", POINTER.encode()), ("text", b"hello"), ("zeros", bytes(64)), ("ones", b"\xff" * 64)):
        yield f"weights: {what}", put(file, content)
    for seed in range(30):
        yield f"weights: byte {seed} of the header flipped", flip(file, seed, header=True)
    for length in (0, 1, 10, 2**31, 2**63 - 1, 2**64 - 1):
        yield f"weights: header length {length}", head(lambda h, k: None, length=length)
    for what, text in (("a list", b"[]"), ("deep", b"[" * 100_000), ("no UTF-8", b'{"\xff": 1}'), ("no JSON", b"x" * 99), ("empty", b"{}")):
        yield f"weights: header is {what}", head(lambda h, k, text=text: text)
    yield "weights: bytes behind", head(lambda h, k: None, behind=b"x" * 99)
    for tensor in (0, 3, -1):
        for dtype in ("F99", "I32", "I64", "U8", "F64", "F16", "BOOL", None, 7, ["F32"]):
            yield f"weights: {tensor} of dtype {dtype}", head(lambda h, k, t=tensor, d=dtype: h[k[t]].update(dtype=d))
        for shape in ([2**40, 2**40], [-1, 48], [48], [], [1], [1.5, 2], ["4", 4], None, 7, [True, 4], [0], [1, 97, 48], [2**64]):
            yield f"weights: {tensor} of shape {shape}", head(lambda h, k, t=tensor, s=shape: h[k[t]].update(shape=s))
        yield f"weights: {tensor} turned", head(lambda h, k, t=tensor: h[k[t]].update(shape=h[k[t]]["shape"][::-1]))
        for offsets in ([0, 10**12], [8, 4], [-8, 4], ["0", "4"], None, [0], [0, 0], [1, 2], [2**63, 2**64]):
            yield f"weights: {tensor} at {offsets}", head(lambda h, k, t=tensor, o=offsets: h[k[t]].update(data_offsets=o))
        yield f"weights: {tensor} is number 1", head(lambda h, k, t=tensor: h[k[t]].update(data_offsets=h[k[1]]["data_offsets"]))
        yield f"weights: {tensor} is gone", head(lambda h, k, t=tensor: h.pop(k[t]) and None)
        yield f"weights: {tensor} twice", head(lambda h, k, t=tensor: h.update(twice=dict(h[k[t]])))
        yield f"weights: {tensor} renamed", head(lambda h, k, t=tensor: h.update({"x\n\x1b[31m": h.pop(k[t])}))
    for value in (None, 7, [], {"format": 7}, {"format": "tf"}, {}):
        yield f"weights: metadata {value}", head(lambda h, k, v=value: h.update(__metadata__=v))


def index() -> Iterator[tuple[str, Damage]]:
    """Of a model in several files."""
    for what, content in ODD_JSON.items():
        yield f"index: {what}", put(INDEX, content)
    for share in (0.1, 0.6, 0.99):
        yield f"index: cut at {share}", cut(INDEX, share)
    for seed in range(12):
        yield f"index: byte {seed} flipped", flip(INDEX, seed)
    for what, make in ODD_PLACES.items():
        yield f"index: {what}", instead(INDEX, make)
    for value in (None, 7, [], {}, "x", {"a": "b"}, {"a": None}):
        yield f"index: weight_map {value}", edit_json(INDEX, set_to("weight_map", value))
    for value in (
        "../out.safetensors",
        "/etc/passwd",
        ".",
        "..",
        "",
        "gone.safetensors",
        "\0",
        "a\nb\x1b[31m",
        "config.json",
        5,
        None,
        ["x"],
    ):
        for which in (0, -1):

            def point(raw: dict, value: Any = value, which: int = which) -> None:
                raw["weight_map"][sorted(raw["weight_map"])[which]] = value

            yield f"index: tensor {which} in {value!r}", edit_json(INDEX, point)

    def swap(raw: dict) -> None:
        names = raw["weight_map"]
        raw["weight_map"] = dict(zip(names, [*list(names.values())[1:], next(iter(names.values()))], strict=True))

    yield "index: tensors in the other file", edit_json(INDEX, swap)
    yield "index: a tensor is gone", edit_json(INDEX, lambda raw: raw["weight_map"].popitem() and None)
    yield "index: one too many", edit_json(INDEX, lambda raw: raw["weight_map"].update(evil=next(iter(raw["weight_map"].values()))))
    for value in ABSURD:
        yield f"index: total_size {value}", edit_json(INDEX, set_to("metadata", {"total_size": value}))


def settings() -> Iterator[tuple[str, Damage]]:
    """config.json and generation_config.json, with numbers that no model has."""
    sizes = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    )
    more = ("max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "hidden_act", "model_type", "attention_bias")
    for key in (*sizes, *more, "mlp_bias", "rope_parameters", "rope_scaling", "eos_token_id", "sliding_window", "architectures"):
        yield from ((f"config: {key} is {str(value)[:20]}", edit_json("config.json", set_to(key, value))) for value in ABSURD)
    for rope in ({"type": "yarn", "factor": 1e30}, {"rope_type": "linear", "factor": 0}, {"rope_type": "linear"}, {"rope_type": "linear", "factor": "x"}, {"rope_type": "llama3", "factor": 8}, {"rope_type": ["linear"]}, {"rope_theta": {}}, {"partial_rotary_factor": 1e30}):  # fmt: skip
        yield f"config: rope {rope}", edit_json("config.json", set_to("rope_parameters", rope))
    for value in ("../../x", "gpt2", ["llama"], "LLAMA", "qwen2", "mistral"):
        yield f"config: model_type {value}", edit_json("config.json", set_to("model_type", value))
    for value in (*ABSURD, [[0]], [0, None, "x", 10**400, -7]):
        yield f"generation: eos {str(value)[:20]}", edit_json("generation_config.json", set_to("eos_token_id", value))


def words() -> Iterator[tuple[str, Damage]]:
    """The tokenizer and its chat template."""
    for key in ("version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "truncation", "padding"):
        yield from ((f"tokenizer: {key} is {str(value)[:20]}", edit_json("tokenizer.json", set_to(key, value))) for value in (7, "x", [], [7], {}, {"type": "Evil"}))  # fmt: skip
    for key, values in {"vocab": ({}, [], None, {"a": -1}, {"a": 10**9}, {"a": 10**400}, {"a": 0, "b": 0}), "merges": ([], ["a"], [["a", "zz"]], [["", ""]], 7), "type": ("BPE", "WordPiece", "Unigram", 7), "unk_token": ("gone", 7, None)}.items():  # fmt: skip
        yield from (
            (f"tokenizer: {key} is {str(value)[:20]}", edit_json("tokenizer.json", set_to("model", key, value))) for value in values
        )
    for token in ({"id": 5000}, {"id": 10**9}, {"id": -1}, {"content": ""}, {"content": "\n\x1b[31m"}, {"content": None}, {"special": "x"}, {"id": 0}, {"content": "w1"}):  # fmt: skip
        whole = {
            "id": 97,
            "content": "<evil>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        yield f"tokenizer: one more token {token}", edit_json("tokenizer.json", lambda raw, whole=whole | token: raw["added_tokens"].append(whole))  # fmt: skip
    for regex in ("(", "(?<n>", "[z-a]", "\\p{Evil}", ""):
        step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        yield f"tokenizer: splits at {regex!r}", edit_json("tokenizer.json", set_to("pre_tokenizer", step))
    for value in (*ABSURD, {"content": 7}, {"content": "gone"}, {"content": ["x"]}):
        yield f"tokenizer_config: eos {str(value)[:20]}", edit_json("tokenizer_config.json", set_to("eos_token", value))
        yield f"special_tokens_map: eos {str(value)[:20]}", edit_json("special_tokens_map.json", set_to("eos_token", value))
    for text in ("{% for", "{{ x.y.z }}", "{{ messages[9].content }}", "{{ raise_exception('no\nno') }}", "{{ 'x' * 999999999999 }}", "{% include 'x' %}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", ""):  # fmt: skip
        yield f"chat: {text}", put("chat_template.jinja", text.encode())
    for value in (
        {"name": 7},
        {"source": None},
        {"name": "x"},
        {"thinks": "yes"},
        {"system": []},
        {"more": 1},
        {"source": "{% for"},
        {"source": "{{ x }}"},
    ):
        whole = {"name": "x", "source": "{% block prompt %}{{ instruction }}{% endblock %}{% block answer %}{{ answer }}{% endblock %}"}
        yield f"exported template: {value}", put("prompt_template.json", json.dumps(whole | value).encode())
    yield from ((f"exported template: {what}", put("prompt_template.json", content)) for what, content in ODD_JSON.items())
    yield "chat: no UTF-8", put("chat_template.jinja", b"\xff{{ messages }}")


def adapters() -> Iterator[tuple[str, Damage]]:
    """Of a PEFT directory."""
    for file in ("adapter_config.json", ADAPTER):
        yield from ((f"{file}: {what}", instead(file, make)) for what, make in ODD_PLACES.items())
        yield from ((f"{file}: cut at {share}", cut(file, share)) for share in (0.1, 0.6, 0.99))
    yield from ((f"adapter_config.json: {what}", put("adapter_config.json", content)) for what, content in ODD_JSON.items())
    yield from ((f"adapter_config.json: byte {seed} flipped", flip("adapter_config.json", seed)) for seed in range(12))
    yield from ((f"adapter: {name}", harm) for name, harm in weights(ADAPTER))
    for key in ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "peft_type", "init_lora_weights"):
        for value in ABSURD:
            yield f"adapter: {key} is {str(value)[:20]}", edit_json("adapter_config.json", set_to(key, value))
    for pattern in (
        {"(": 2},
        {"(a+)+$": 2},
        {"((s+)|(e+)|(l+)|(f+)|.)*!": 2},
        {"q_proj": "2"},
        {"q_proj": 0},
        {"q_proj": None},
        {"a" * 10**6: 2},
    ):
        for key in ("rank_pattern", "alpha_pattern"):
            yield f"adapter: {key} is {str(pattern)[:30]}", edit_json("adapter_config.json", set_to(key, pattern))
    yield "adapter: no tensor", put(ADAPTER, struct.pack("<Q", 2) + b"{}")


def all_of_one_file() -> list[tuple[str, Damage]]:
    """Of a model in one file."""
    return [*places(), *weights(), *settings(), *words()]
