"""Model directories that are damaged, by accident or on purpose: one line that names the file, or the model as it was. Nothing else."""

import contextlib
import dataclasses
import json
import random
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipeline import template
from foundation.errors import run_command
from lpo_jax.config import MeshConfig
from lpo_jax.decode.load import Models, find, load_model
from lpo_jax.decode.prompts import asking
from lpo_jax.sharding import make_mesh
from tests.helpers import damage
from tests.helpers.sampling import torch_model
from tests.helpers.vocabularies import byte_level

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LIMIT_S = 60  # nothing takes so long but what hangs
LIMIT_BYTES = 2**29  # more than all of them need together


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One model in one file, and in two with an index."""
    out = tmp_path_factory.mktemp("sound")
    whole, parts, tok = out / "whole", out / "parts", byte_level()
    torch_model("llama untied", num_hidden_layers=1, vocab_size=tok.size).save_pretrained(whole)
    tok.save(whole)
    (whole / "chat_template.jinja").write_text(CHAT)
    (whole / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    shutil.copytree(whole, parts)
    (parts / damage.WEIGHTS).unlink()
    tensors = load_file(whole / damage.WEIGHTS)
    weight_map = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, parts / file)
    (parts / damage.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return {"whole": whole, "parts": parts}


def opened(directory):
    """All that `lpo generate` opens before it computes, as what can be compared: weights, shape, ends of texts, a prompt."""
    found = find(Models(str(directory)))
    how = asking(str(directory), found.tokenizer)
    ids = how.prompt("Return x.", found.tokenizer).ids(found.tokenizer)
    ends = template.ends(how.template, found.tokenizer)
    model = load_model(str(directory), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), "float32")
    return jax.tree.map(np.asarray, model.params), model.model.config, (model.eos_ids, ends, ids)


@contextlib.contextmanager
def soon():
    """Fail where it hangs."""

    def stop(*_):
        pytest.fail("it hangs")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def check(which, name, harm, sound, base, directory, capsys):
    """Damage a copy, open it, and say what is wrong with how that ends; None: nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound[which], directory)
    harm(directory)
    kept = []

    def command():
        kept.append(opened(directory))
        return 0

    capsys.readouterr()
    with soon():
        code = run_command("lpo", command)
    said = [line for line in capsys.readouterr().err.split("\n") if line.strip() and "read weights" not in line]
    if code == 2:
        return None if len(said) == 1 and str(directory) in said[0] and said[0].isprintable() else f"said {said}"
    (params, shape, rest), (true_params, true_shape, true_rest) = kept[0], base
    if jax.tree.structure(params) != jax.tree.structure(true_params) or not jax.tree.all(jax.tree.map(np.array_equal, params, true_params)):
        return "other weights"
    unlike = {field.name for field in dataclasses.fields(shape) if getattr(shape, field.name) != getattr(true_shape, field.name)}
    if unlike == {"rope_theta", "rope_scaling"}:
        unlike = {"rope_parameters"}  # one entry of the file
    if len(unlike) > name.startswith("config"):  # a config.json may say another number that a model can have
        return f"other {sorted(unlike)}"
    free = name.startswith(("config", "tokenizer", "chat", "generation", "exported")) or name.endswith(": missing")
    return None if free or rest == true_rest else f"other ends or ids: {rest}"


def cases():
    found = [("whole", *case) for case in damage.all_of_one_file()] + [("parts", *case) for case in damage.index()]
    assert len({name for _, name, _ in found}) == len(found) > 900
    random.Random(0).shuffle(found)
    return found


SOME = 220
"""Of the ways to damage a directory, in the default tests."""


@pytest.mark.parametrize("some", [slice(SOME), pytest.param(slice(SOME, None), marks=pytest.mark.slow)], ids=["some", "others"])
def test_each_ends_in_one_line_or_as_the_model_that_it_was(sound, tmp_path, capsys, some):
    base = opened(sound["whole"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = {}
    for which, name, harm in cases()[some]:
        if why := check(which, name, harm, sound, base, tmp_path / "model", capsys):
            wrong[name] = why
    assert wrong == {}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LIMIT_BYTES
