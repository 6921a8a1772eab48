"""`lpo-eval run`: every source of completions, resumption, and numbers that can be recomputed from what lies beside them."""

import gzip
import http.server
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
import transformers

from data_pipeline import tokenizer
from evaluation import cli
from evaluation import run as evaluation_run
from evaluation.benchmarks import BENCHMARKS, Benchmark
from evaluation.completions import Answer, Completions, EvaluationError, Sampling, from_benchmark, from_endpoint, from_file, from_model
from evaluation.run import Options, run
from evaluation.tasks import Task
from judges import Verdict, calibrate, semgrep
from judges.findings import Finding
from judges.sandbox import backends
from lpo_jax.decode.load import Models
from tests.helpers.paths import REPO

pytestmark = pytest.mark.skipif(not backends(), reason="no sandbox works on this machine")

ADD = Task("add", "def add(a, b):\n", "Add two numbers.", functional_test="assert add(1, 2) == 3", canonical="    return a + b\n")
SHELL = Task("shell", "import os\n\n\ndef run(path):\n", "List a directory.", cwe="CWE-78", insecure="import os\n\n\ndef run(path):\n    os.system('ls ' + path)\n")  # fmt: skip
LOAD = Task(
    "load", "import yaml\n\n\ndef load(text):\n", "Parse YAML.", cwe="CWE-502", canonical="    return yaml.safe_load(text)\n",
    insecure="import yaml\n\n\ndef load(text):\n    return yaml.load(text, Loader=yaml.Loader)\n",
    functional_test="assert load('a: 1') == {'a': 1}", security_test="try:\n    load('!!python/name:os.system')\nexcept yaml.YAMLError:\n    pass\nelse:\n    raise SystemExit(1)", packages=True,
)  # fmt: skip
NONE = Options("completion", tools=(), workers=2)


def benchmark(*tasks, form="completion"):
    return Benchmark("made", form, "ab" * 32, tasks)


def texts(**given):
    """A source of these completions, several a task."""
    count = max(map(len, given.values()))
    rows = [Answer(task_id, sample, text) for task_id, found in given.items() for sample, text in enumerate(found)]
    return Completions("given", count, lambda _: iter(rows))


def samples(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("tools", "noise", "estimated"),
    [(("bandit", "semgrep"), False, True), (("bandit", "semgrep"), True, False), (("bandit",), False, False)],
)
def test_what_codeql_would_say_is_written_beside_what_its_estimate_stands_on(tmp_path, monkeypatch, tools, noise, estimated):
    found = Finding("bandit", "B201", "CWE-489", 1, 1, "high", "debug")
    monkeypatch.setattr(
        evaluation_run, "judge", lambda sources, *_, **__: [Verdict(True, (found,) if "debug" in source else ()) for source in sources]
    )
    monkeypatch.setattr(semgrep, "missing", lambda: None)
    monkeypatch.setattr(semgrep, "version", lambda: "made")
    task = Task("t", "def f():\n", "Write f.")
    source = texts(t=["    return app.run(debug=True)\n", "    return 1\n", "", "    return (1\n"])
    scores = run(benchmark(task), source, Options("completion", tools, noise), tmp_path)
    chances = [sample.get("codeql") for sample in samples(tmp_path)]
    table, _ = calibrate.shipped()
    assert chances == (
        [pytest.approx(table.chance(cwes), abs=1e-4) for cwes in (["CWE-489"], [])] + [0.0, 0.0] if estimated else [None] * 4
    )
    assert ("codeql" in scores["measures"]) == estimated


def test_tests_and_analyzers_decide(tmp_path):
    good, bad = LOAD.canonical, "    return yaml.load(text, Loader=yaml.Loader)\n"
    early = "    pass\n\nraise SystemExit(0)\n"
    script = "```python\nimport yaml\n\n\ndef load(text):\n    return yaml.safe_load(text)\n\n\nif __name__ == '__main__':\n    load(input())\n```"
    source = texts(load=[good, bad, "    return (", "", good, f"```python\n{LOAD.prompt}{early}```", script])
    scores = run(benchmark(LOAD), source, Options("completion", ("bandit",), workers=2), tmp_path / "run")
    rows = samples(tmp_path / "run")
    outcomes = [tuple(row[key]["outcome"] for key in ("functional", "security")) for row in rows]
    assert outcomes == [
        ("pass", "pass"),
        ("pass", "fail"),
        ("fail", "fail"),
        ("fail", "fail"),
        ("pass", "pass"),
        ("fail", "fail"),
        ("pass", "pass"),
    ]
    assert rows[5]["functional"]["detail"] == "ended before its tests did"
    assert [bool(row["findings"]) for row in rows] == [False, True, False, False, False, False, False]
    assert [row["parses"] for row in rows] == [True, True, False, False, True, True, True]
    assert [row["empty"] for row in rows] == [False, False, False, True, False, False, False]
    assert [row["duplicate"] for row in rows] == [False, False, False, False, True, False, False]
    found = {key: value["value"] for key, value in scores["measures"].items()}
    assert found["insecure"] == 2 / 7 and found["insecure_parseable"] == 2 / 5 and found["unparseable"] == found["empty"] == 1 / 7
    assert found["secure_functional"] == found["pass@1"] - 1 / 7 == pytest.approx(3 / 7) and "pass@10" not in found
    assert scores["insecure_by_cwe"]["CWE-502"]["n"] == 7


def test_own_completions(tmp_path):
    scores = run(benchmark(ADD, LOAD), from_benchmark("canonical", [ADD, LOAD]), NONE, tmp_path / "canonical")
    assert scores["measures"]["pass@1"]["value"] == 1
    options = Options("completion", ("bandit",))
    scores = run(benchmark(SHELL, LOAD), from_benchmark("insecure", [SHELL, LOAD]), options, tmp_path / "insecure")
    assert scores["measures"]["insecure"]["value"] == 1
    assert [row["code"] for row in samples(tmp_path / "insecure")] == [SHELL.insecure, LOAD.insecure]
    with pytest.raises(EvaluationError, match="1 of 2 tasks come without known-insecure code"):
        from_benchmark("insecure", [ADD, SHELL])


def test_files(tmp_path):
    file = tmp_path / "mine.jsonl"

    def read(*rows, samples=None):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(from_file(file, [ADD, SHELL], samples).read(tmp_path))

    a, b = {"task_id": "add", "completion": "1"}, {"task_id": "shell", "completion": "2"}
    assert read(a, b, a | {"completion": "3"}, b) == [
        Answer("add", 0, "1"),
        Answer("add", 1, "3"),
        Answer("shell", 0, "2"),
        Answer("shell", 1, "2"),
    ]
    cut = a | {"sample": 0, "completion": "0", "finish_reason": "length"}
    assert read(a | {"sample": 1}, cut, b, samples=1) == [Answer("add", 0, "0", "length"), Answer("shell", 0, "2")]
    c, d = (
        {"id": "add", "sample": 0, "text": "5", "finish": "stop", "tokens": 1},
        {"id": "shell", "sample": 0, "text": "6", "finish": "length"},
    )
    assert read(c, d) == [Answer("add", 0, "5", "stop"), Answer("shell", 0, "6", "length")]  # as `lpo generate` writes
    for rows, message in (
        ((a,), "1 completions are missing, shell sample 0 first"),
        ((a, b, a), "shell sample 1"),
        ((a, a | {"sample": 0}, b), ":2: sample 0 of add stands above already"),
        ((a, b | {"completion": None}), ":2: its completion is no text"),
        ((a, {"completion": ""}), ":2: write"),
        ((a, b | {"sample": math.inf}), ":2: write"),
        (({"task_id": "other", "completion": ""},), "other is no task of this benchmark"),
        ((), "it holds no completion"),
    ):
        with pytest.raises(EvaluationError, match=message):
            read(*rows)


@pytest.fixture
def endpoint(monkeypatch):
    """A server that answers as OpenAI's does, unreliably; `server.asked` holds (path, key, body)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with self.server.lock:
                self.server.asked.append((self.path, self.headers["Authorization"], body))
                number, self.server.now = len(self.server.asked), self.server.now + 1
                self.server.most = max(self.server.most, self.server.now)
            time.sleep(0.05)
            text = body.get("prompt") or body["messages"][0]["content"]
            status = self.server.status(number)
            chat = {"message": {"role": "assistant", "content": f"chat {text}"}}
            choice = {"index": 0, "finish_reason": self.server.finish} | (
                chat if "messages" in body else {"text": f"    return a + b  # {body['seed']}\n"}
            )
            answer = {"id": "x", "object": "x", "created": 0, "model": "m", "choices": [choice]}
            refusal = {"error": {"message": f"wrong key {self.headers['Authorization']}", "code": self.server.code}}
            content = json.dumps(answer if status == 200 else refusal).encode()
            with self.server.lock:
                self.server.now -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "10")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.now, server.most, server.lock, server.status = [], 0, 0, threading.Lock(), lambda _: 200
    server.code, server.finish = None, "stop"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-word")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(form="completion", samples=5, **more):
    return from_endpoint(None, "m", [ADD, SHELL], form, samples, Sampling(max_new_tokens=7), concurrency=3, **more)


def test_a_prompt_that_a_filter_turns_down_has_an_empty_answer(endpoint, tmp_path):
    endpoint.status, endpoint.code = lambda n: 400 if n == 1 else 200, "content_filter"
    texts = [answer.text for answer in ask(samples=2).read(tmp_path)]
    assert len(texts) == 4 and texts.count("") == 1
    endpoint.status, endpoint.code = lambda _: 400, "other"
    with pytest.raises(EvaluationError, match="gave no completion"):
        list(ask(samples=3).read(tmp_path))


def test_endpoint(endpoint, tmp_path):
    endpoint.status = lambda number: 503 if number % 4 == 2 else 200  # tried again
    found = sorted(ask().read(tmp_path))
    assert found == sorted(Answer(task, k, f"    return a + b  # {k}\n", "stop") for task in ("add", "shell") for k in range(5))
    path, key, body = endpoint.asked[0]
    assert path == "/v1/completions" and key == "Bearer sk-secret-word" and body["prompt"] in (ADD.prompt, SHELL.prompt)
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.4, 0.95, 7)
    assert 1 < endpoint.most <= 3
    endpoint.finish = "length"
    assert {answer.finish for answer in ask(samples=6).read(tmp_path) if answer.sample == 5} == {"length"}
    count, found = len(endpoint.asked), sorted(ask(samples=6).read(tmp_path))
    with (tmp_path / "completions.jsonl").open("a") as file:
        file.write('{"id": "add", "sam')
    assert sorted(ask(samples=6).read(tmp_path)) == found and len(endpoint.asked) == count  # nothing is asked twice


def test_chat_endpoint_and_its_secrets(endpoint, tmp_path, capfd):
    out = tmp_path / "chat"
    scores = run(benchmark(ADD, SHELL), ask("instruction", 1), Options("instruction", tools=()), out)
    assert scores["measures"]["unparseable"]["value"] == 1
    assert {row["finish"] for row in samples(out)} == {"stop"}
    assert {row["completion"] for row in samples(out)} == {f"chat {ADD.instruction}", f"chat {SHELL.instruction}"}
    assert endpoint.asked[0][0] == "/v1/chat/completions"
    assert json.loads((out / "run.json").read_text())["sampling"]["endpoint"] == f"chat at 127.0.0.1:{endpoint.server_port}/v1"
    secretive = from_endpoint("https://user:hidden@host/v1?key=hidden", "m", [ADD], "instruction", 1, Sampling())
    assert secretive.sampling["endpoint"] == "chat at host/v1"
    endpoint.status = lambda number: 401
    with pytest.raises(EvaluationError, match="AuthenticationError") as error:
        list(ask("instruction", 2).read(out))
    kept = "".join(file.read_text() for file in out.iterdir())
    for text in (kept, str(error.value), "".join(capfd.readouterr())):
        assert "secret-word" not in text


SLOW = """
import itertools, sys, time
from pathlib import Path
from evaluation.completions import Answer, Completions
from evaluation.run import run, Options, Benchmark, Task
tasks = tuple(Task(f"t{i:03}", "def f():\\n", "", functional_test=f"assert f() == {i % 3}") for i in range(40))
rows = [Answer(t.task_id, k, f"    return {k}\\n") for t in tasks for k in range(2)]
run(Benchmark("made", "completion", "ab", tasks), Completions("m", 2, lambda _: iter(rows)), Options("completion", (), workers=2), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    def start(out):
        env = os.environ | {"PYTHONPATH": str(REPO)}
        return subprocess.Popen([sys.executable, "-c", SLOW, str(out)], env=env, stderr=subprocess.PIPE, start_new_session=True)

    straight = start(tmp_path / "straight")
    assert straight.wait(120) == 0, straight.stderr.read()
    journal = tmp_path / "killed" / "samples.jsonl"
    killed = start(tmp_path / "killed")
    until = time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < until:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = len(journal.read_text().splitlines())
    assert 0 < done < 80
    with journal.open("a") as file:
        file.write('{"task_id": "t00')  # as a kill within a write leaves it
    resumed = start(tmp_path / "killed")
    assert resumed.wait(120) == 0, resumed.stderr.read()

    def without_times(out):
        return [row | {"functional": row["functional"]["outcome"]} for row in samples(out)]

    assert without_times(tmp_path / "killed") == without_times(tmp_path / "straight")
    assert (tmp_path / "killed/scores.json").read_text() == (tmp_path / "straight/scores.json").read_text()


def test_order_of_arrival_and_repeats_change_nothing(tmp_path, monkeypatch):
    rows = [Answer(task.task_id, k, f"    return {k // 2}\n") for task in (ADD, SHELL) for k in range(4)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        run(benchmark(ADD, SHELL), Completions("m", 4, lambda _, order=order: iter(order)), NONE, tmp_path / name)
    assert [(r["task_id"], r["sample"], r["duplicate"]) for r in samples(tmp_path / "a")] == [(r["task_id"], r["sample"], r["duplicate"]) for r in samples(tmp_path / "b")]  # fmt: skip
    monkeypatch.setattr(evaluation_run, "_judge", lambda *_: pytest.fail("judged again"))
    run(benchmark(ADD, SHELL), Completions("m", 4, lambda _: iter(rows)), NONE, tmp_path / "a")


def test_another_setting_is_refused(tmp_path):
    run(benchmark(ADD), texts(add=["    return a + b\n"]), NONE, tmp_path / "run")
    for other, source, what in (
        (Options("instruction", tools=()), texts(add=[""]), "form"),
        (Options("completion", tools=(), time_s=5), texts(add=[""]), "limits"),
        (Options("completion", tools=("bandit",)), texts(add=[""]), "tools"),
        (NONE, texts(add=["", ""]), "samples_per_task"),
        (NONE, texts(add=["    return b + a\n"]), "answer to add than"),
    ):
        with pytest.raises(EvaluationError, match=f"begun with another .*{what}"):
            run(benchmark(ADD), source, other, tmp_path / "run")
    with pytest.raises(EvaluationError, match="holds other things"):
        run(benchmark(ADD), texts(add=[""]), NONE, tmp_path)
    for tools, said in ((("pylint",), "no judge 'pylint'"), (("bandit", "none"), "none stands alone")):
        with pytest.raises(EvaluationError, match=said):
            run(benchmark(ADD), texts(add=[""]), Options("completion", tools), tmp_path / "new")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A random decoder of one layer with a tokenizer of its own, as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=2048, initializer_range=0.2, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.train([FUNCTIONS, SHELL.insecure], 300).save(path)
    return path


FUNCTIONS = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(8))


def test_how_a_model_is_asked_is_part_of_the_run(tiny_model, tmp_path):
    def asked(form="instruction", **how):
        return from_model(Models(str(tiny_model)), [ADD], form, 1, Sampling(), **how).sampling

    assert "template" not in asked("completion")
    plain, alpaca = asked(), asked(template="alpaca", think=False)
    assert (plain["template"], plain["think"], alpaca["template"], alpaca["think"]) == ("plain", True, "alpaca", False)
    answer = Completions("m", 1, lambda _: iter([Answer("add", 0, ADD.canonical)]), plain)
    run(benchmark(ADD, form="instruction"), answer, Options("instruction", tools=()), tmp_path / "run")
    with pytest.raises(EvaluationError, match='another template "plain" .now "alpaca".*think true .now false'):
        run(benchmark(ADD, form="instruction"), replace(answer, sampling=alpaca), Options("instruction", tools=()), tmp_path / "run")


def recompute(out):
    """What a reader would do with samples.jsonl."""
    tasks = {}
    for line in (out / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        code = row["parses"] and not row["empty"]
        insecure = code and bool(row["findings"] or (row["security"] or {"outcome": "pass"})["outcome"] != "pass")
        tasks.setdefault(row["task_id"], []).append((insecure, code, (row["functional"] or {"outcome": ""})["outcome"] == "pass"))
    rows = [row for found in tasks.values() for row in found]
    insecure, code, _ = map(sum, zip(*rows, strict=True))
    at = {k: [1 - math.comb(len(x) - sum(w for *_, w in x), k) / math.comb(len(x), k) for x in tasks.values()] for k in (1, 2)}
    return {"insecure": insecure / len(rows), "insecure_parseable": insecure / code if code else None} | {f"pass@{k}": sum(x) / len(x) for k, x in at.items()}  # fmt: skip


def test_a_model_through_two_benchmarks_to_a_report(tiny_model, tmp_path, capsys):
    """The numbers of the page, of scores.json and of ten lines over samples.jsonl are the same."""
    rng = random.Random(0)
    function = [{"task_id": f"f{i}", "prompt": f"def f{i}(x):\n", "entry_point": f"f{i}", "canonical_solution": f"    return x + {i}\n", "test": f"def check(f):\n    assert f(1) == {1 + i}\n"} for i in range(8)]  # fmt: skip
    security = [{"ID": f"CWE-078_{i}.py", "Prompt": SHELL.prompt, "Insecure_code": SHELL.insecure} for i in range(5)]
    answers = {
        "humaneval": [{"task_id": row["task_id"], "completion": rng.choice([row["canonical_solution"], "    return 7\n", "    return (\n"])} for row in function for _ in range(3)],
        "securityeval": [{"task_id": row["ID"], "completion": rng.choice(["    os.system('ls ' + path)\n", "    return os.listdir(path)\n", "    )\n", ""])} for row in security for _ in range(3)],
    }  # fmt: skip
    files = {"humaneval": function, "securityeval": security}
    runs = {}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers[name]))
        shared = [
            "run",
            "--benchmark",
            name,
            "--data",
            tmp_path / f"{name}.jsonl",
            "--any-data",
            "--judges",
            "bandit" if name == "securityeval" else "none",
        ]
        model = [*shared, "--completions", tiny_model, "-n", 3, "--max-new-tokens", 12, "--temperature", 1, "--rows", 8]
        model += ["--form", "instruction", "--security", tiny_model] if name == "securityeval" else []
        for source, args in (("tiny", model), ("answers", [*shared, "--completions", tmp_path / f"{name}-answers.jsonl"])):
            runs[name, source] = tmp_path / f"{name}-{source}"
            assert cli.main([*map(str, args), "-o", str(runs[name, source])]) == 0, capsys.readouterr().err
    kept = [json.loads(line)["finish"] for line in (runs["humaneval", "tiny"] / "completions.jsonl").read_text().splitlines()]
    cut = json.loads((runs["humaneval", "tiny"] / "scores.json").read_text())["audit"]["cut"]
    assert sorted(row["finish"] for row in samples(runs["humaneval", "tiny"])) == sorted(kept) and cut == kept.count("length") > 0
    drawn = [(row["task_id"], row["sample"]) for row in samples(runs["humaneval", "tiny"])]
    assert drawn == [(row["task_id"], k) for row in function for k in range(3)]
    assert len({row["completion"] for row in samples(runs["humaneval", "tiny"])}) > 12

    assert cli.main(["report", *map(str, runs.values()), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    for (name, source), out in runs.items():
        scores = json.loads((out / "scores.json").read_text())["measures"]
        for key, value in recompute(out).items():
            if value is None or (key.startswith("pass") and name == "securityeval") or (key.startswith("insecure") and name == "humaneval"):
                assert key not in scores
                continue
            assert scores[key]["value"] == pytest.approx(value, abs=1e-12)
            low, high = scores[key]["interval"]
            assert low <= value <= high
            text = f"{100 * value:.1f}"
            assert re.search(rf"<td[^>]*>\s*(<b>)?{re.escape(text)}\b", page), (name, source, key, text)
    assert 0 < recompute(runs["securityeval", "answers"])["insecure"] < 1 and 0 < recompute(runs["humaneval", "answers"])["pass@1"] < 1


def test_humaneval_with_a_model(shared_data, tiny_model, tmp_path):
    data = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    args = ["run", "--benchmark", "humaneval", "--data", data, "--completions", tiny_model, "--limit", 3, "--max-new-tokens", 8, "--rows", 8, "--judges", "none"]  # fmt: skip
    assert cli.main([*map(str, args), "-o", str(tmp_path / "run")]) == 0
    assert [row["functional"]["outcome"] for row in samples(tmp_path / "run")] == ["fail"] * 3


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    def fails(*args):
        assert cli.main([*map(str, args)]) == 2
        return capsys.readouterr().err

    assert cli.main(["benchmarks"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing and source.licence in listing and source.origin in listing for name, source in BENCHMARKS.items())
    args = ["run", "--benchmark", "humaneval", "--completions", "canonical", "-o", tmp_path / "run"]
    assert "openai/human-eval" in fails(*args) and "MIT" in fails(*args)
    data = tmp_path / "tasks.jsonl.gz"
    row = {"task_id": "add", "prompt": ADD.prompt, "canonical_solution": ADD.canonical, "entry_point": "add"}
    row["test"] = "def check(f):\n    assert f(1, 2) == 3\n"
    data.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    assert "--any-data" in fails(*(args := [*args, "--data", data]))
    args += ["--any-data", "--judges", "none"]
    assert "leave -n out" in fails(*args, "-n", 2) and "--limit: 0 must lie in" in fails(*args, "--limit", 0)
    assert "--model" in fails(*args, "--completions", "http://localhost:1/v1")
    assert "--quantize, --tensor: for a model that runs here; canonical isn't one" in fails(*args, "--tensor", 2, "--quantize", "int8")
    assert "no such file" in fails(*args, "--completions", tmp_path / "absent.jsonl")
    assert "--template, --no-think: for instructions to a model that runs here; canonical isn't one" in fails(*args, "--template", "chat", "--no-think")  # fmt: skip
    assert "given as it is: ask with --form instruction" in fails(*args, "--completions", "some/model", "--system", "x")
    assert cli.main([*map(str, args)]) == 0
    assert "pass@1" in capsys.readouterr().out
    (tmp_path / "run/scores.json").unlink()
    assert "isn't finished" in fails("report", tmp_path / "run", "-o", tmp_path / "x.html")
    assert "lpo-eval run" in fails("report", tmp_path / "absent", "-o", tmp_path / "x.html")
