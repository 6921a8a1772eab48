"""What is created is called after the job, and no two jobs share a name."""

import re

from launch.common import name_of


def test_a_jobs_name_follows_its_run_dir(monkeypatch):
    monkeypatch.setenv("LOGNAME", "eve")
    assert [name_of(run_dir) for run_dir in ("runs/beta5", "./runs//beta5/", "runs/beta-5")] == ["lpo-eve-beta5"] * 2 + ["lpo-eve-beta-5"]
    shown = {"runs/tiny_cpu": "tiny-cpu", "gs://bkt/runs/a/beta5/": "a-beta5", "elsewhere/beta5": "elsewhere-beta5"}
    for run_dir, name in shown.items():
        assert re.fullmatch(f"lpo-eve-{name}-[0-9a-f]{{6}}", name_of(run_dir))


def test_no_two_run_dirs_share_a_name(monkeypatch):
    places = [
        "beta-5",
        "beta_5",
        "beta.5",
        "beta/5",
        "Beta-5",
        "-beta-5",
        "beta--5",
        "beta-5 ",
        "b\u00e9ta",
        "\u5b9f\u9a13",
        "\u5b9f\u9a57",
        "a\nb",
        "\udcff",
    ]
    places += [f"{'long-' * 10}{index}" for index in range(2)]
    places = [
        f"{above}{place}" for above in ("runs/", "", "gs://bkt/runs/", "gs://other/runs/", "evals/", "serve/runs/") for place in places
    ]
    monkeypatch.setenv("LOGNAME", "eve")
    names = {place: name_of(place) for place in places}
    names |= {
        name: name_of(f"runs/{name.removeprefix('lpo-eve-')}") for name in names.values() if not name.endswith("beta-5")
    }  # as others'
    monkeypatch.setenv("LOGNAME", "eve-beta")
    names["another user's"] = name_of("runs/5")
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 40 for name in names.values())
