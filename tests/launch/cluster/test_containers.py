"""Jobs in containers: the whole scripts, the mounts, and what is refused before it is queued.

That a job really runs in one is tested on the cluster, by a_container_holds_all_that_a_chain_needs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.command_line import UsageError
from launch.cluster.containers import expanded, folders_of, start_python
from launch.cluster.profiles import Profile
from launch.job_requests import plan, printed
from launch.stages import Request, stage_arguments

HERE = Path(__file__).parent
GPUS = {"gpus_per_node": 2, "prep_jobs": 1}
APPTAINER = Profile(
    image="docker://ghcr.io/me/eosin:1",
    stage="$TMPDIR/eosin",
    setup=["module load apptainer"],
    environment={"NCCL_DEBUG": "a b"},
    **GPUS,
)
PYXIS = Profile(
    image="nvcr.io#nvidia/pytorch:25.01-py3",
    container="pyxis",
    python="/opt/conda/bin/python",
    stage="$TMPDIR",
    **GPUS,
)


@pytest.mark.parametrize(
    ("name", "profile", "run", "settings", "stages"),
    [
        ("apptainer", APPTAINER, "/shared/my runs/first", {"raw": "/shared/raw"}, 2),
        ("pyxis", PYXIS, "/shared/runs/first", {"data": "/shared/prepared"}, 1),
    ],
)
def test_the_scripts_are_as_written_by_hand(
    name: str, profile: Profile, run: str, settings: dict[str, str], stages: int
) -> None:
    request = Request(settings, Path(run))
    arguments = stage_arguments(["prepare", "train"][-stages:], request, profile)
    jobs = plan(request.run, request.run / "launch" / "code-1", arguments, profile)
    before = ["", *(f"<id of {job.label}>" for job in jobs)]
    texts = [printed(request.run, job, waited) for job, waited in zip(jobs, before, strict=False)]
    text = "\n".join(texts).replace(sys.executable, "/usr/bin/python")
    assert text == (HERE / f"{name}.sbatch").read_text()


def command(profile: Profile, run: Path, arguments: dict[str, Sequence[str]] | None = None) -> str:
    """How a task without GPUs starts Python."""
    return start_python(profile, {}, arguments or {}, run, has_gpus=False).python


def test_a_python_of_the_profile_is_used_without_an_image_too() -> None:
    assert command(Profile(python="/opt/my env/python"), Path("/run")) == "'/opt/my env/python'"


class TestImages:
    """A file must exist, and a job finds it wherever it starts."""

    def test_a_file_is_named_by_its_whole_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my image.sif").touch()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("my image.sif", "~/my image.sif"):
            assert f" '{tmp_path}/my image.sif' env " in command(Profile(image=name), tmp_path)
        pyxis = Profile(image="./my image.sif", container="pyxis")
        assert f"'--container-image={tmp_path}/my image.sif'" in command(pyxis, Path("/run"))

    @pytest.mark.parametrize("name", ["docker://a/b:c", "oras://a/b:c", "docker-archive:/a.tar"])
    def test_what_is_no_file_is_handed_on(self, name: str) -> None:
        assert f" {name} env " in command(Profile(image=name), Path("/run"))

    @pytest.mark.parametrize(
        ("image", "container", "hint"),
        [
            ("/no/such.sif", "apptainer", "docker://NAME:TAG"),
            ("eosin.sif", "singularity", "docker://NAME:TAG"),
            ("/no/such.sqsh", "pyxis", "REGISTRY#NAME:TAG"),
        ],
    )
    def test_a_file_that_is_not_there_is_refused(
        self, image: str, container: str, hint: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            command(Profile(image=image, container=container), Path("/run"))  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"image={image}: no such file: build it, or name another (image: in the profile, or"
            f" python launch/submit.py --image FILE); an image of a registry is {hint}"
        )


class TestMounts:
    """Every folder that a stage uses, once, under its own path."""

    def test_folders_of_all_stages_and_what_their_links_lead_to(self, tmp_path: Path) -> None:
        raw, archive, disk = tmp_path / "raw", tmp_path / "archive", tmp_path / "disk"
        for folder in (raw / "groundTruth", archive / "2019", disk):
            folder.mkdir(parents=True)
        (archive / "2019" / "a.tif").touch()
        (disk / "images").mkdir()
        (tmp_path / "shortcut").symlink_to("disk/images")
        (raw / "images").symlink_to("../shortcut")
        (raw / "groundTruth" / "a.tif").symlink_to(archive / "2019" / "a.tif")
        (raw / "gone").symlink_to(tmp_path / "nowhere")
        arguments = {
            "prepare": [f"raw={raw}", "out=/new/set", "case_regex=/no/folder", "workers=2"],
            "train": ["data=/new/set", "run=/runs/a", "config=/runs/a/code/c.yaml", "stage=/ssd"],
            "evaluate": ["run=/runs/a", "out=/results", "raw="],
        }
        assert folders_of(Path("/runs/a"), arguments) == [
            Path("/new/set"), Path("/results"), Path("/runs/a"),
            archive / "2019", disk / "images", raw, tmp_path / "shortcut",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("container", "name"),
        [("apptainer", "a:b"), ("apptainer", "a,b"), ("pyxis", "a,b"), ("pyxis", "a b")],
    )
    def test_a_path_that_cannot_be_mounted_is_refused(self, container: str, name: str) -> None:
        profile = Profile(image="docker://a", container=container)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"/{name}: {container} cannot mount a folder"):
            command(profile, Path("/runs") / name)

    @pytest.mark.parametrize(
        "path", ["$TMPDIR", "${TMPDIR}/a", "/a/$TMPDIR/b", "/a b/`c`/$TMPDIR'", "/$$/$(d)/~"]
    )
    def test_a_shell_expands_variables_of_a_staging_folder_and_nothing_else(
        self, path: str
    ) -> None:
        environment = {**os.environ, "TMPDIR": "/x  $y"}
        shell = ["bash", "-c", f"printf '%s\\0' {expanded(path)}"]
        told = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
        value = path.replace("${TMPDIR}", "/x  $y").replace("$TMPDIR", "/x  $y")
        assert told.stdout == f"{value}\0"
