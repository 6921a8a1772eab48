"""Documents: each link between them, and to files, leads somewhere; each figure is what its script draws; the site's pages are all in its menu."""

import re

import pytest
import yaml

from tests.helpers.paths import REPO
from website import figures
from website.site import COPIES, LINK, SOURCE, led, pages

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
MADE = pages()
FILES = sorted(path for pattern in ("*.md", "docs/**/*.md", "launch/*.md") for path in REPO.glob(pattern))
NAMES = [str(path.relative_to(REPO)) for path in FILES]


def anchors(markdown):
    """The ids of a page's headings, as GitHub makes them. mkdocs' differ where blanks or hyphens follow each other; headings with such are refused below."""
    found = []
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", FENCE.sub("", markdown), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading).strip().lower()
        found.append(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = FENCE.sub("", (REPO / name).read_text(encoding="utf-8"))
    wrong = []
    for _, target, anchor in re.findall(r"(\]\()([^)\s:#]*)(#[^)\s]*)?\)", text):
        file = ((REPO / name).parent / target).resolve() if target else REPO / name
        page = str(file.relative_to(REPO / "docs")) if file.is_relative_to(REPO / "docs") else ""
        if not file.exists() and page not in MADE:
            wrong.append(target)
        elif anchor:
            there = MADE[page] if page in MADE else file.read_text(encoding="utf-8")
            wrong += [] if anchor[1:] in anchors(there) else [target + anchor]
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_headings_have_the_same_anchors_everywhere(name):
    """On GitHub, and in the site: no two of a page are equal, and none has blanks or hyphens behind each other once signs are gone."""
    found = anchors((REPO / name).read_text(encoding="utf-8"))
    assert [each for each in found if "--" in each or each.strip("-") != each] == [] and len(found) == len(set(found))


def test_links_out_of_docs_lead_to_their_page_or_to_the_source():
    text = "[a](../launch/README.md#tpu-names) [b](../CHANGELOG.md) [c](../configs/tiny_cpu.yaml) [d](data.md) [e](https://x.y/z)"
    assert (
        led(text, "index.md")
        == f"[a](launching.md#tpu-names) [b](changelog.md) [c]({SOURCE}configs/tiny_cpu.yaml) [d](data.md) [e](https://x.y/z)"
    )
    assert led("[a](docs/data.md) [b](LICENSE)", "contributing.md") == f"[a](data.md) [b]({SOURCE}LICENSE)"
    assert led("[a](../training.md)", "reference/python.md") == "[a](../training.md)"
    for name, file in COPIES.items():
        for _, target, _ in LINK.findall(led((REPO / file).read_text(encoding="utf-8"), name)):
            assert target.startswith("http") or target in MADE or (REPO / "docs" / target).exists(), (file, target)


def test_the_menu_has_every_page():
    menu = re.findall(r"[\w/]+\.md", (REPO / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(menu) == sorted([*MADE, *(str(path.relative_to(REPO / "docs")) for path in (REPO / "docs").rglob("*.md"))])


def test_references_are_made_of_the_code():
    for part in ("### lpo train", "### lpo-data build", "### lpo-eval run", "--train-tokenizer SIZE", "examples:"):
        assert part in MADE["reference/cli.md"]
    for part in ("### lpo\n", "| `beta` |", "### muon", "| `kl.teacher` |", "peak learning rate", "run_dir: runs/tiny_cpu"):
        assert part in MADE["reference/config.md"]
    assert "::: lpo_jax.decode.sampler.Sampler" in MADE["reference/python.md"] and "@inproceedings{hasan2025," in MADE["citing.md"]


@pytest.mark.slow
def test_figures_are_what_their_script_draws():
    drawn = figures.figures()
    assert {name: (REPO / "docs" / "figures" / name).read_text(encoding="utf-8") for name in drawn} == drawn
    shown = {name for path in FILES for name in re.findall(r"\]\(figures/(\w+\.svg)\)", path.read_text(encoding="utf-8"))}
    assert shown == set(drawn)


@pytest.mark.parametrize("path", sorted((REPO / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_runs_what_there_is(path):
    """It is YAML, names its permissions, gives each job a limit, and each `make` it runs is a target."""
    workflow = yaml.safe_load(path.read_text())
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and job["steps"]
        lines = "\n".join(step.get("run", "") for step in job["steps"])
        made = re.findall(
            r"^make (\S+)",
            lines.replace("${{ matrix.target }}", " ".join(job.get("strategy", {}).get("matrix", {}).get("target", []))),
            re.MULTILINE,
        )
        assert set(made) <= set(targets)
