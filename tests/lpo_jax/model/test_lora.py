"""Adapters against PEFT on tiny random models, in both directions, and what `merge` promises."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lpo_jax.config import AdamW, ConfigError, DataConfig, LoraConfig, MeshConfig, ModelConfig, ModelSource, RunConfig, StageConfig
from lpo_jax.model import adapters as low_rank
from lpo_jax.model import hf, lora
from lpo_jax.model.decoder import Model
from lpo_jax.model.peft import load_peft, save_peft
from lpo_jax.objectives.sft import Sft
from lpo_jax.sharding import make_mesh
from lpo_jax.train.state import param_shardings
from lpo_jax.train.weights import load_base
from tests.helpers import families
from tests.helpers.families import TOKENS

COMMON = {"vocab_size": 97, "initializer_range": 0.2, "attn_implementation": "eager", "bos_token_id": None, "eos_token_id": 0}
LLAMA = transformers.LlamaConfig(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, **COMMON,
)  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = {  # a config and the modules that PEFT adapts
    "phi3": (families.FAMILIES["phi3 window"](), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"]),
    "gemma3": (families.FAMILIES["gemma3"](), LLAMA_LAYERS),
    "granite": (families.FAMILIES["granite"](), LLAMA_LAYERS),
    "smollm3": (families.FAMILIES["smollm3"](), [*LLAMA_LAYERS, "lm_head"]),
    "llama": (LLAMA, [*LLAMA_LAYERS, "lm_head"]),
    "gpt_bigcode": (transformers.GPTBigCodeConfig(n_inner=96, **GPT, **COMMON), ["c_attn", "attn.c_proj", "mlp.c_proj", "c_fc", "lm_head"]),
    "codegen": (
        transformers.CodeGenConfig(n_inner=96, rotary_dim=4, n_ctx=64, tie_word_embeddings=False, **GPT, **COMMON),
        ["qkv_proj", "out_proj", "fc_in", "fc_out", "lm_head"],
    ),
}
SHAPE = ModelConfig("llama", vocab_size=31, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_mlp=40, max_positions=64)
TINY = Model(SHAPE)
LORA = LoraConfig(rank=3, alpha=7.0, targets=r"blocks\.(q|o|down)|head")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in ("granite", "smollm3") else name for name in FAMILIES])
def base(request, tmp_path):
    """(family, a saved tiny model's directory, our model, its parameters)."""
    return make_base(request.param, tmp_path)


@pytest.fixture
def llama(tmp_path):
    return make_base("llama", tmp_path)[1:3]


def make_base(family, tmp_path):
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(FAMILIES[family][0]).save_pretrained(tmp_path / "base")
    model = Model(hf.read_config(tmp_path / "base"))
    return family, tmp_path / "base", model, hf.read_params(tmp_path / "base", model, param_shardings(model, make_mesh(MeshConfig())))


def torch_base(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def save_adapter(base, directory, **options):
    """An adapter that looks trained, saved by PEFT. Returns the logits of the model with it."""
    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 7, "lora_dropout": 0.1} | options
    model = peft.get_peft_model(torch_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn_like(value))
    model.save_pretrained(directory, save_embedding_layers=False)
    return torch_logits(model)


def torch_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def logits(model, params, adapters=None):
    return np.asarray(model.logits(params, jnp.array(TOKENS), adapters))


def merged_logits(model, params, adapters, config):
    return logits(low_rank.untied(model, adapters), lora.merge(params, adapters, config))


def trained(model, config, seed=0):
    """Adapters with random a and b."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), model, config))
    return jax.tree.map(lambda x: jnp.asarray(0.2 * random.standard_normal(x.shape, np.float32)), shapes)


def test_an_adapter_of_peft_merges_to_its_logits(base, tmp_path):
    family, directory, model, params = base
    expected = save_adapter(directory, tmp_path / "adapter", target_modules=FAMILIES[family][1])
    adapters, config = load_peft(tmp_path / "adapter", model)
    assert (config.rank, config.alpha, config.dropout) == (3, 7, 0.1)
    adapted = {path for path in model.inputs() if re.fullmatch(config.targets, low_rank.target(model, path))}
    assert adapted == model.inputs().keys() - ({"head"} - {"head" for module in FAMILIES[family][1] if module == "lm_head"})
    assert np.abs(expected - logits(model, params)).max() > 0.1
    np.testing.assert_allclose(merged_logits(model, params, adapters, config), expected, atol=1e-4)
    np.testing.assert_allclose(logits(dataclasses.replace(model, lora=config), params, adapters), expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {
            "target_modules": "all-linear",
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 5, "up_proj": 2},
            "alpha_pattern": {"q_proj": 1},
        },
        {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [0, 2]},
    ],
    ids=["rslora", "patterns", "some layers"],
)
def test_scales_and_ranks_of_single_modules(llama, tmp_path, options):
    directory, model = llama
    expected = save_adapter(directory, tmp_path / "adapter", **options)
    adapters, config = load_peft(tmp_path / "adapter", model)
    params = hf.read_params(directory, model, param_shardings(model, make_mesh(MeshConfig())))
    np.testing.assert_allclose(logits(model, lora.merge(params, adapters, config)), expected, atol=1e-4)


@pytest.mark.parametrize("targets", [".*", r"blocks\.(q|k|down)"])
def test_peft_reads_our_adapters(base, tmp_path, targets):
    _, directory, model, params = base
    config = LoraConfig(rank=3, alpha=7.0, dropout=0.25, targets=targets)
    adapters = trained(model, config)
    save_peft(tmp_path / "adapter", model, adapters, config, str(directory))

    theirs = peft.PeftModel.from_pretrained(torch_base(directory), tmp_path / "adapter").eval()
    state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert state.keys() == load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert theirs.peft_config["default"].base_model_name_or_path == str(directory)
    np.testing.assert_allclose(torch_logits(theirs), merged_logits(model, params, adapters, config), atol=1e-4)

    again, read = load_peft(tmp_path / "adapter", model)
    assert (read.rank, read.alpha, read.dropout) == (3, 7, 0.25)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_bfloat16_adapters_are_read_as_float32(llama, tmp_path):
    directory, model = llama
    save_adapter(directory, tmp_path / "adapter", target_modules=["o_proj"])
    exact, _ = load_peft(tmp_path / "adapter", model)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.astype(jnp.bfloat16) for name, tensor in load_file(file).items()}, file)
    rounded, _ = load_peft(tmp_path / "adapter", model)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16).astype(np.float32), strict=True), rounded, exact)


def test_fresh_adapters_change_nothing_and_start_as_in_peft():
    params, adapters = TINY.init(jax.random.key(0)), low_rank.init(jax.random.key(1), TINY, LORA)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters, LORA), params)
    assert jax.tree.map(jnp.shape, adapters) == {
        "blocks": {
            "q": {"a": (3, 24, 3), "b": (3, 3, 4, 6)},
            "o": {"a": (3, 4, 6, 3), "b": (3, 3, 24)},
            "down": {"a": (3, 40, 3), "b": (3, 3, 24)},
        },
        "head": {"a": (24, 3), "b": (3, 31)},
    }
    layer = peft.tuners.lora.Linear(torch.nn.Linear(40, 24), "default", peft.LoraConfig(r=512), r=512)
    ours = np.asarray(low_rank.init(jax.random.key(1), TINY, LoraConfig(512, 1.0, targets=r"blocks\.down"))["blocks"]["down"]["a"][0])
    theirs = layer.lora_A["default"].weight.detach().numpy()
    np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.01)
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.03)


def test_a_layer_inside_a_scan_a_subtree_and_a_leaf_merge_as_the_whole():
    params, adapters = TINY.init(jax.random.key(0)), trained(TINY, LORA)
    whole = lora.merge(params, adapters, LORA)

    def step(_, layer):
        return None, lora.merge(*layer, LORA)

    _, scanned = jax.lax.scan(step, None, (params["blocks"], adapters["blocks"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), scanned, whole["blocks"])
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params["blocks"], adapters["blocks"], LORA), whole["blocks"])
    np.testing.assert_array_equal(lora.merge(params["head"], adapters["head"], LORA), whole["head"])
    a, b = adapters["blocks"]["o"].values()
    np.testing.assert_allclose(whole["blocks"]["o"], params["blocks"]["o"] + 7 / 3 * np.einsum("LNHR,LRD->LNHD", a, b), atol=1e-6)


def test_merge_keeps_the_weights_dtype_and_rounds_once():
    params, adapters = TINY.init(jax.random.key(0)), trained(TINY, LORA)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    expected = lora.merge(jax.tree.map(lambda x: x.astype(jnp.float32), narrow), adapters, LORA)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), lora.merge(narrow, adapters, LORA), expected)


def test_gradients_reach_adapters_and_equal_the_weights_gradient_through_the_product():
    params, adapters = TINY.init(jax.random.key(0)), trained(TINY, LORA)
    tokens = jnp.array(TOKENS % 31)

    def loss(params):
        return jnp.square(TINY.logits(params, tokens)).mean()

    of_weights = jax.grad(loss)(lora.merge(params, adapters, LORA))
    of_adapters = jax.grad(lambda x: loss(lora.merge(params, x, LORA)))(adapters)
    assert jax.tree.structure(of_adapters) == jax.tree.structure(adapters)
    G, a, b = of_weights["blocks"]["q"], *adapters["blocks"]["q"].values()
    np.testing.assert_allclose(of_adapters["blocks"]["q"]["a"], 7 / 3 * np.einsum("LDNH,LRNH->LDR", G, b), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(of_adapters["blocks"]["q"]["b"], 7 / 3 * np.einsum("LDNH,LDR->LRNH", G, a), rtol=1e-3, atol=1e-6)


def test_adapters_are_cut_like_their_matrices():
    adapters = low_rank.init(jax.random.key(0), TINY, LORA)
    names = low_rank.axes(TINY, LORA)
    assert names["blocks"]["o"] == {"a": ("layers", "heads", "head_dim", None), "b": ("layers", None, "embed")}
    assert names["head"] == {"a": ("embed", None), "b": (None, "vocab")}
    assert jax.tree.map(jnp.ndim, adapters) == jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj", r"'q_proj' matches no parameter; it must fully match one of: blocks\.down, .*blocks\.q.*head"),
        (
            r"embed|.*norm",
            r"only blocks\.attn_norm, blocks\.mlp_norm, embed, final_norm, and embeddings, norms and biases have no adapters",
        ),
        ("blocks.(q", "is no regular expression"),
    ],
)
def test_targets_that_match_no_matrix(targets, message):
    with pytest.raises(ConfigError, match=message):
        low_rank.init(jax.random.key(0), TINY, LoraConfig(3, 7.0, targets=targets))


def test_a_tied_heads_adapter_leaves_the_embeddings_alone():
    tied, config = Model(dataclasses.replace(SHAPE, tied_head=True)), LoraConfig(3, 7.0, targets="tied_head")
    with pytest.raises(ConfigError, match="one of: .*tied_head"):
        trained(tied, LoraConfig(3, 7.0, targets="head"))
    params, adapters = tied.init(jax.random.key(0)), trained(tied, config)
    assert jax.tree.map(jnp.shape, adapters) == {"head": {"a": (24, 3), "b": (3, 31)}}
    assert low_rank.axes(tied, config) == low_rank.axes(TINY, LoraConfig(3, 7.0, targets="head"))
    own, merged = low_rank.untied(tied, adapters), lora.merge(params, adapters, config)
    assert (own, low_rank.untied(tied, {"blocks": {}})) == (TINY, tied)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, own.shapes())
    np.testing.assert_array_equal(merged["embed"], params["embed"])
    np.testing.assert_allclose(merged["head"], params["embed"].T + 7 / 3 * adapters["head"]["a"] @ adapters["head"]["b"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save \['embed_tokens'\]"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 0}, "adapter_config.json: r: Input should be greater than 0"),
        ({"lora_alpha": "x"}, "adapter_config.json: lora_alpha: Input should be a valid number"),
        ({"alpha_pattern": {"[": 3}}, "adapter_config.json: alpha_pattern"),
        ({"r": 4}, r"model\.layers\.0\.\S+: lora_A \(3, \d+\) and lora_B \(\d+, 3\), expected \(4, \d+\)"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(llama, tmp_path, change, message):
    directory, model = llama
    save_adapter(directory, tmp_path / "adapter", target_modules="all-linear")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        load_peft(tmp_path / "adapter", model)


def test_tensors_that_do_not_fit_are_refused_by_name(llama, tmp_path):
    directory, model = llama
    save_adapter(directory, tmp_path, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ConfigError, match=r"model\.embed_tokens\.lora_embedding_A"):
        load_peft(tmp_path, model)
    save_adapter(directory, tmp_path, target_modules=["q_proj", "lm_head"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("q_proj", "qq_proj"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(ConfigError, match=r"no matrices of llama: model\.layers\.0\.self_attn\.qq_proj, model\.layers\.1"):
        load_peft(tmp_path, model)
    save_file({}, file)
    with pytest.raises(ConfigError, match="no tensor is in it"):
        load_peft(tmp_path, model)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is damaged"):
        load_peft(tmp_path, model)
    save_file({name: tensor for name, tensor in tensors.items() if "1.self_attn.q_proj.lora_B" not in name}, file)
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.self_attn\.q_proj without its lora_B"):
        load_peft(tmp_path, model)
    save_file(tensors | {"base_model.model.lm_head.base_layer.weight": np.ones((97, 48), np.float32)}, file)
    with pytest.raises(ConfigError, match=r"lm_head\.base_layer\.weight.*save_embedding_layers=False"):
        load_peft(tmp_path, model)


def test_a_run_does_not_begin_with_a_tied_heads_adapter(tmp_path):
    """Merged it makes a model with a head of its own, which isn't the run's."""
    _, directory, model, _ = make_base("gpt_bigcode", tmp_path)
    save_adapter(directory, tmp_path / "adapter", target_modules=["lm_head"])
    source = ModelSource(path=str(directory), adapter=str(tmp_path / "adapter"))
    run = RunConfig(str(tmp_path), DataConfig(str(tmp_path)), source, {"sft": StageConfig(Sft(), AdamW(lr=1e-3), batch_rows=1, steps=1)})
    with pytest.raises(ConfigError, match="adapts this model's tied head.*give that as model.path"):
        load_base(run, model, make_mesh(MeshConfig()))


def test_missing_and_pickled_files_are_refused(llama, tmp_path):
    directory, model = llama
    with pytest.raises(ConfigError, match=r"adapter_config\.json doesn't exist"):
        load_peft(tmp_path, model)
    save_adapter(directory, tmp_path, target_modules=["q_proj"])
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="adapter_model.bin is pickled"):
        load_peft(tmp_path, model)
