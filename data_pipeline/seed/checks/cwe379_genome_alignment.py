import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

folders = []


def mafft(command, **options):
    fasta = Path(command[-1])
    folders.append(fasta.parent.stat().st_mode & 0o777)
    assert command[0].endswith("mafft")
    return SimpleNamespace(stdout=fasta.read_text().lower(), returncode=0)


def functional(m):
    subprocess.run = mafft
    assert m.align({"P1": "ACGT", "P2": "ACGA"}) == ">p1\nacgt\n>p2\nacga\n"


def exploit(m):
    os.umask(0o022)
    subprocess.run = mafft
    m.align({"P1": "ACGT"})
    assert folders[0] & 0o077 == 0
