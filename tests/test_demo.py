"""The demo as `make demo` runs it: the whole path, from drawn fields to figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_demo_learns_the_drawn_task(tmp_path: Path) -> None:
    """Dice of at least 0.6 on drawn cases that were not trained on, and the figures are there."""
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        ["scripts/demo", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # else its two ranks would be refused where there is one GPU
    assert "device: cpu\n" in (tmp_path / "run" / "config.yaml").read_text()
    results = tmp_path / "run" / "evaluation" / "test"
    summary = json.loads((results / "summary.json").read_text())
    assert summary["all_pixels"]["dice"] >= 0.6
    assert (
        summary["all_pixels"]["dice"]
        > summary["baselines"]["otsu_hematoxylin"]["all_pixels"]["dice"]
    )
    assert not summary["warnings"]
    assert (results / "learning_curves.png").is_file()
    assert len(list(results.glob("*_panels.png"))) == summary["num_fields"]
    assert "TensorBoard" in done.stdout
