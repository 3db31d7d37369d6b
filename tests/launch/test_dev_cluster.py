"""What a trial cluster replaces in its folder; needs no Slurm."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "dev_cluster.py"


@pytest.fixture(scope="module")
def dev_cluster() -> ModuleType:
    """The script as a module."""
    spec = spec_from_file_location("dev_cluster", SCRIPT)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("content", ["", "ClusterName=mine\n", None])
def test_a_folder_that_merely_holds_a_slurm_conf_is_not_ours(
    content: str | None, dev_cluster: ModuleType, tmp_path: Path
) -> None:
    """As /etc/slurm does."""
    if content is not None:
        (tmp_path / "slurm.conf").write_text(content)
    assert not dev_cluster.is_ours(tmp_path)


def test_a_configuration_that_was_changed_is_not_ours_any_more(
    dev_cluster: ModuleType, tmp_path: Path
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(dev_cluster.marked("ClusterName=dev\nPort=1\n"))
    assert dev_cluster.is_ours(tmp_path)
    conf.write_text(conf.read_text().replace("Port=1", "Port=2"))
    assert not dev_cluster.is_ours(tmp_path)


def test_only_what_the_cluster_wrote_is_removed(dev_cluster: ModuleType, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "cluster", tmp_path / "elsewhere"
    ours = ["slurm.conf", "gres.conf", "munge.key", "slurmctld.log", "slurmd.n12.pid"]
    mine = ["notes.txt", "my.log", "state.txt", "slurm.conf.old"]
    for place in (folder / "state", folder / "spool.n1", folder / "jobs", elsewhere):
        place.mkdir(parents=True)
        (place / "file").write_text("x")
    for name in ours + mine:
        (folder / name).write_text("x")
    (folder / "spool.n2").symlink_to(elsewhere)
    dev_cluster.remove(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["jobs", *mine])
    assert (elsewhere / "file").exists()
