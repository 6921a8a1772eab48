"""The log of a run."""

from foundation.files import read_journal
from lpo_jax.train import metrics
from lpo_jax.train.metrics import MetricLog


def test_in_a_bucket_the_log_is_rewritten_at_each_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_bucket", lambda _: True)
    log = MetricLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("sft", step, step, {"loss": 1.0, "grad_norm": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    log.sync()
    again = MetricLog(tmp_path, 2)
    again.write("sft", 3, 3, {"loss": 0.5})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_journal(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert kept_names(tmp_path) == ["metrics.jsonl"]


def kept_names(directory):
    return sorted(path.name for path in directory.iterdir())
