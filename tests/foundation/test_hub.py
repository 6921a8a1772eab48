"""What is pushed is there, as one commit; nothing becomes public that shouldn't; the key is seen nowhere."""

import subprocess
import sys

import pytest

from tests.helpers.hub import OWNER, TOKEN, Repo, hub
from tests.helpers.paths import REPO


def push(server, tmp_path, name, directory, *, files=("*",), private=False, token=TOKEN):
    """(exit code, all that was said) of a process of its own: huggingface_hub reads its environment once."""
    code = f"""if True:
        import sys
        from pathlib import Path
        from foundation.errors import run_command
        from foundation.hub import push
        sys.exit(run_command("t", lambda: print(push(Path({str(directory)!r}), {name!r}, "model", "step 3", {files!r}, {private!r})) or 0))
    """
    found = subprocess.run(
        [sys.executable, "-c", code], env=server.environment(tmp_path / "home", token), cwd=REPO, capture_output=True, text=True
    )
    return found.returncode, found.stdout + found.stderr


@pytest.fixture
def export(tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "README.md").write_text("# a card\n")
    (tmp_path / "e" / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "e" / "notes.txt").write_text("mine")
    return tmp_path / "e"


def test_files_arrive_as_one_commit_and_old_ones_go(export, tmp_path):
    with hub() as server:
        server.put("model", f"{OWNER}/m", {"model-00001-of-00002.safetensors": "old", "other.md": "theirs"})
        code, said = push(server, tmp_path, f"{OWNER}/m", export, files=("*.safetensors", "README.md"))
        assert code == 0 and f"{server.address}/{OWNER}/m" in said, said
        repo = server.repos["model", f"{OWNER}/m"]
        assert repo.files == {"other.md": b"theirs", "README.md": b"# a card\n", "model.safetensors": bytes(range(256)) * 64}
        assert repo.commits == ["step 3"]
        assert any(path == f"/{OWNER}/m.git/info/lfs/objects/batch" for _, path, _ in server.asked), "large files go through LFS"
        assert TOKEN not in said
        assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []


def test_private_means_private(export, tmp_path):
    with hub() as server:
        code, said = push(server, tmp_path, f"{OWNER}/new", export, private=True)
        assert code == 0, said
        assert server.repos["model", f"{OWNER}/new"].private
        server.repos["model", f"{OWNER}/old"] = Repo()
        code, said = push(server, tmp_path, f"{OWNER}/old", export, private=True)
        assert code == 2 and "is there already, and public" in said and server.repos["model", f"{OWNER}/old"].files == {}


@pytest.mark.parametrize(("name", "token"), [(f"{OWNER}/m", "hf_" + "wrong" * 6), (f"{OWNER}/m", None), ("other/m", TOKEN)])
def test_what_the_hub_refuses_is_said_without_the_key(export, tmp_path, name, token):
    with hub() as server:
        code, said = push(server, tmp_path, name, export, token=token)
        assert code == 2 and said.startswith(f"t: error: {name}: the hub doesn't take it") and "hf auth login" in said
        assert "Traceback" not in said and (token or TOKEN) not in said and server.repos == {}


def test_a_name_that_is_none_is_said_at_once(export, tmp_path):
    with hub() as server:
        code, said = push(server, tmp_path, "just-a-name", export)
        assert code == 2 and "write OWNER/NAME" in said and server.asked == []
