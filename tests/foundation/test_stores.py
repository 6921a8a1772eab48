"""Models in a store: fetched once and whole, and read by range as safetensors reads a file. The stores here are directories; tests/lpo_jax/model/test_tensor_files.py
has a bucket."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from foundation import stores
from foundation.errors import DataError
from tests.helpers.web_store import COMMIT, HUB_ID, Web, served

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=(7, 5)).astype(np.float32),
    "b": RNG.normal(size=(6, 2, 3)).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=9).astype(np.float16),
    "d": np.array(3.5),
}


@pytest.fixture
def web(monkeypatch):
    found = Web()
    found.hub = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "README.md": b"# no",
        "sub/x.json": b"{}",
        "pytorch_model.bin": b"no",
    }
    for number in (1, 2):
        found.hub[f"model-{number}.safetensors"] = bytes(RNG.integers(0, 256, 100_000, dtype=np.uint8))
    with served(found) as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", url, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(stores, "CHUNK", 2**15)  # several requests a file
        yield found


def fetch(place, **more):
    found = stores.fetch(HUB_ID, str(place), **more)
    if found is not None:
        stores.finish(str(place), found)
    return found


def test_a_model_is_fetched_once(web, tmp_path):
    found = fetch(tmp_path / "m")
    wanted = {"config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"}
    assert found["files"].keys() == wanted and found["commit"] == COMMIT
    for name in wanted:
        assert (tmp_path / "m" / name).read_bytes() == web.hub[name]
    assert sorted(web.from_hub) == sorted(wanted)
    assert fetch(tmp_path / "m") is None and len(web.from_hub) == 4


def test_what_was_interrupted_goes_on_and_is_not_taken_for_whole(web, tmp_path):
    web.missing = {"model-2.safetensors"}
    with pytest.raises(DataError, match="model-2.safetensors: the hub doesn't give it"):
        fetch(tmp_path / "m")
    assert stores.mark(str(tmp_path / "m")) is None and stores.directory_at(str(tmp_path / "m")) is None
    web.missing, web.from_hub = set(), []
    assert fetch(tmp_path / "m") is not None
    assert web.from_hub == ["model-2.safetensors", "tokenizer.json"]  # in their order


def test_an_attempt_at_another_commit_is_not_gone_on_with(web, tmp_path):
    web.missing = {"model-2.safetensors"}
    with pytest.raises(DataError):
        fetch(tmp_path / "m")
    for file in (tmp_path / "m" / stores.HAD).iterdir():
        file.write_text("older")
    web.missing, web.from_hub = set(), []
    fetch(tmp_path / "m")
    assert len(web.from_hub) == 4


def test_a_damaged_file_is_refused(web, tmp_path):
    web.broken = {"model-1.safetensors"}
    with pytest.raises(DataError, match="model-1.safetensors arrived damaged"):
        fetch(tmp_path / "m")
    assert stores.mark(str(tmp_path / "m")) is None and not (tmp_path / "m/model-1.safetensors").exists()


def test_a_place_that_holds_something_else_is_left_alone(web, tmp_path):
    fetch(tmp_path / "m")
    with pytest.raises(DataError, match=f"holds {HUB_ID}: give Other/model a place of its own"):
        stores.fetch("Other/model", str(tmp_path / "m"))
    (tmp_path / "m" / stores.MARK).write_text("{")
    with pytest.raises(DataError, match="is damaged: delete it, and fetch the model again"):
        fetch(tmp_path / "m")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model-2.safetensors").write_text("mine")
    with pytest.raises(DataError, match="model-2.safetensors is there, and no `lpo fetch` has brought it"):
        fetch(tmp_path / "own")
    assert [file.read_text() for file in (tmp_path / "own").iterdir()] == ["mine"]
    for place in ("gs:/bucket/x", "s3://bucket/x", "http://127.0.0.1:1/x"):
        with pytest.raises(DataError, match="models are kept in a folder of a bucket, as gs://BUCKET/"):
            stores.fetch(HUB_ID, place)


def test_processes_share_the_files(web, tmp_path):
    marks = [stores.fetch(HUB_ID, str(tmp_path / "m"), index, 2) for index in range(2)]
    assert marks[0] == marks[1] and len(web.from_hub) == 4
    stores.finish(str(tmp_path / "m"), marks[0])
    assert stores.directory_at(str(tmp_path / "m")) == tmp_path / "m"


def test_pickled_weights_are_refused(web, tmp_path):
    web.hub = {name: data for name, data in web.hub.items() if not name.endswith(".safetensors")}
    with pytest.raises(DataError, match="no .safetensors file"):
        fetch(tmp_path / "m")


def test_tensors_are_those_that_safetensors_reads(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    ours = stores.RemoteTensors(stores.RemoteFile(f"file://{tmp_path}", "x.safetensors"))
    with safe_open(tmp_path / "x.safetensors", framework="np") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118
            one, other = ours.get_slice(name), theirs.get_slice(name)
            assert (one.get_shape(), one.get_dtype()) == (other.get_shape(), other.get_dtype())
            np.testing.assert_array_equal(ours.get_tensor(name), TENSORS[name])
            assert ours.get_tensor(name).dtype == TENSORS[name].dtype
            for rows in (slice(1, 4), slice(0, 0), slice(5, None)) if TENSORS[name].ndim else ():
                np.testing.assert_array_equal(one[rows], TENSORS[name][rows])


def test_of_a_model_elsewhere_only_small_files_are_copied(tmp_path, monkeypatch):
    place = tmp_path / "m"
    place.mkdir()
    save_file(TENSORS, place / "model.safetensors")
    (place / "config.json").write_text("{}")
    (place / "chat_template.jinja").write_text("x")
    monkeypatch.setattr(stores.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    here = stores.directory_of(f"file://{place}", [])
    assert sorted(file.name for file in here.iterdir()) == [".lpo-weights", "chat_template.jinja", "config.json"]
    assert stores.weights_at(here) == [stores.RemoteFile(f"file://{place}", "model.safetensors")]
    (place / "config.json").unlink()
    assert stores.directory_of(f"file://{place}", []) is None


def test_a_hub_id_is_looked_for_below_lpo_models(web, tmp_path, monkeypatch):
    monkeypatch.setenv("LPO_MODELS", str(tmp_path))
    assert stores.place_of(HUB_ID) == f"{tmp_path}/{HUB_ID}" and stores.place_of("runs/a/b") is None
    fetch(tmp_path / HUB_ID)
    assert stores.directory_of(HUB_ID, []) == tmp_path / HUB_ID
    monkeypatch.delenv("LPO_MODELS")
    assert stores.place_of(HUB_ID) is None
