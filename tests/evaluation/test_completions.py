"""Sources of completions: what `lpo generate` has written, an adapter on its base; and what is said of how a model is asked."""

import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers

from evaluation import cli
from evaluation.completions import EvaluationError, Sampling, from_file, from_model
from evaluation.tasks import Task
from foundation.errors import ConfigError
from lpo_jax.decode import PRESETS
from lpo_jax.decode.load import Models
from tests.helpers.marks import needs_sandbox
from tests.helpers.sampling import save_model, tokenizer

ADD = Task("add", " w1 w2 w3", "w4 w5")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"))


def test_what_lpo_generate_wrote(tmp_path):
    rows = [{"id": "add", "sample": k, "text": f"{k}", "finish": "stop", "tokens": 1, "logprob": -0.5} for k in (1, 0)]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = from_file(tmp_path / "out.jsonl", [ADD], None)
    assert (found.samples, [each[:3] for each in found.read(tmp_path)], found.asked) == (
        2,
        [("add", 0, "0"), ("add", 1, "1")],
        "nobody is asked",
    )


@pytest.mark.parametrize("number", [0.5, "0", True, None])
def test_a_sample_s_number_is_one(tmp_path, number):
    (tmp_path / "out.jsonl").write_text(json.dumps({"task_id": "add", "sample": number, "completion": ""}) + "\n")
    with pytest.raises(EvaluationError, match='out.jsonl:1: write .* "sample": NUMBER'):
        from_file(tmp_path / "out.jsonl", [ADD], None)


def test_an_adapter_is_asked_on_its_base(base, tmp_path):
    """Its directory is all that is named: what it draws is what transformers' model with PEFT's adapter draws."""
    torch.manual_seed(1)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    ids = torch.tensor([tokenizer().document(ADD.prompt)])

    def greedy(model):
        drawn = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=tokenizer().eos_id)
        return tokenizer().backend.decode(drawn[0, ids.shape[1] :].tolist())

    without = greedy(plain)
    adapted = peft.get_peft_model(plain, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "run").mkdir()
    how = Sampling(temperature=0, max_new_tokens=12)
    (answer,) = from_model(Models(str(tmp_path / "adapter"), rows=8), [ADD], "completion", 1, how).read(tmp_path / "run")
    assert answer[2].split() == greedy(adapted).split() != without.split()
    file = tmp_path / "adapter/adapter_config.json"
    assert json.loads(file.read_text())["base_model_name_or_path"] == str(base)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="adapter_config.json: base_model_name_or_path names no model"):
        from_model(Models(str(tmp_path / "adapter")), [ADD], "completion", 1, how)


def test_how_many_tokens_the_security_model_wrote(base, tmp_path):
    """A model that steers itself has all it proposes taken; what `lpo generate` wrote says so, too."""
    how, pair = Sampling(temperature=0, max_new_tokens=6), Models(str(base), security=str(base), rule=PRESETS["aligned"], rows=8)
    (answer,) = from_model(pair, [ADD], "completion", 1, how).read(tmp_path)
    assert answer.taken == (6, 6) and tuple(from_file(tmp_path / "completions.jsonl", [ADD], None).read(tmp_path)) == (answer,)
    (tmp_path / "alone").mkdir()
    (alone,) = from_model(replace(pair, security=None, rule=None), [ADD], "completion", 1, how).read(tmp_path / "alone")
    assert alone == answer._replace(taken=None)


def test_how_a_model_is_asked_and_why(base):
    for form, how, said in (
        ("instruction", {}, "in the template plain: its tokenizer has no chat template"),
        ("instruction", {"template": "alpaca"}, "in the template alpaca: as asked for"),
        ("completion", {}, "as it stands, in no template"),
    ):
        assert from_model(Models(str(base)), [ADD], form, 1, Sampling(), **how).asked == said


@needs_sandbox
@pytest.mark.parametrize(("form", "said"), [((), "instruction, in which it comes"), (("--form", "completion"), "completion, as asked for")])
def test_a_runs_first_line(tmp_path, capsys, form, said):
    (tmp_path / "own.jsonl").write_text(json.dumps({"instruction": "Add two numbers.", "tests": "assert add(1, 2) == 3"}))
    (tmp_path / "out.jsonl").write_text(json.dumps({"id": "1", "sample": 0, "text": "def add(a, b):\n    return a + b\n"}))
    args = ["run", "--benchmark", "own", "--data", tmp_path / "own.jsonl", "--completions", tmp_path / "out.jsonl", "--judges", "none"]
    assert cli.main([*map(str, [*args, *form, "-o", tmp_path / "run"])]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"own: form {said}; nobody is asked"
    assert json.loads((tmp_path / "run/samples.jsonl").read_text())["functional"]["outcome"] == "pass"
