"""What a cached plan is made anew for."""

from lpo_jax.plan import planner
from tests.helpers.paths import REPO


def test_a_cached_plan_depends_on_all_code_that_the_step_is_made_of():
    files = set(planner.code_files())
    assert set((REPO / "lpo_jax").rglob("*.py")) <= files and REPO / "data_pipeline" / "row.py" in files
