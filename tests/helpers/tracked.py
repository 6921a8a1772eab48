"""What a tracker holds of a run, read from its own files: {step: values}, and an error where a step stands twice."""

import json
import sqlite3
import struct
from pathlib import Path

from lpo_jax.train.track import read_wandb

PLACE = ("stage", "group", "step", "total_step")


def logged(run_dir):
    """The same of metrics.jsonl."""
    found = {}
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        values = {f"{line['group']}/{name}": value for name, value in line.items() if name not in PLACE}
        found.setdefault(line["total_step"], {}).update(values)
    return found


def tensorboard(run_dir):
    """As TensorBoard shows it: what stands in front of the start of a session, at its step or beyond, is void."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        raw, at = file.read_bytes(), 0
        while at + 12 <= len(raw) and at + 16 + (length := struct.unpack_from("<Q", raw, at)[0]) <= len(raw):
            event = Event.FromString(raw[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                events = [old for old in events if old.step < event.step]
            events.append(event)
    found = {}
    for event in events:
        for value in event.summary.value:
            if value.tag.startswith(("train/", "heldout/")) and not value.tag.endswith("text_summary"):
                step = found.setdefault(event.step, {})
                assert value.tag not in step, f"{value.tag} stands twice at step {event.step}"
                step[value.tag] = value.simple_value
    return found


def wandb(run_dir):
    """Of all parts of an offline run together."""
    steps = [row for file in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")) for row in read_wandb(file)]
    assert len({step for step, _ in steps}) == len(steps), "a step stands twice"
    return {step: {name: value for name, value in values.items() if not name.startswith("_")} for step, values in steps}


def trackio(directory):
    """Of the one run that a database holds."""
    (file,) = Path(directory).glob("*.db")
    with sqlite3.connect(file) as database:
        steps = [(step, json.loads(values)) for step, values in database.execute("SELECT step, metrics FROM metrics ORDER BY id")]
        assert database.execute("SELECT count(DISTINCT run_id) FROM metrics").fetchone() == (1,)
    assert len({step for step, _ in steps}) == len(steps), "a step stands twice"
    return dict(steps)
