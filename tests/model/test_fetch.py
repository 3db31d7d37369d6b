"""`python -m model.fetch`, of a server on this machine that answers as the hub does."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import save

from common.command_line import UserError
from model.encoder_cache import Fetched, cache_folder, folder_of, read_fetched
from model.fetch import Place, hub_explained
from tests.model.hub import COMMIT, Hub, Repository

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
LITE0, MOBILE, DAMAGED = "tu-tf_efficientnet_lite0", "mobilenet_v2", "tu-resnet14t"
CONTENT = save({"conv_stem.weight": torch.arange(12.0)})
SMP = smp.encoders.encoders[MOBILE]["pretrained_settings"]["imagenet"]
RESNET = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
VGG = smp.encoders.encoders["vgg11"]["pretrained_settings"]["imagenet"]
SETTINGS = b'{"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "input_space": "RGB"}'
# Calls the command again and again: huggingface_hub reads HF_ENDPOINT, and loads, once a process
SCRIPT = """
import sys
from common import command_line
from model.fetch import main
for encoder in sys.argv[1:]:
    try:
        command_line.run(main, [f"encoder={encoder}"])
    except SystemExit as end:
        print(f"CODE {end.code}", flush=True)
        print("END", file=sys.stderr, flush=True)
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


def fetch(cache: Path, environment: dict[str, str], *encoders: str) -> list[Done]:
    """What came of fetching them, one after the other in a process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *encoders],
        env={**os.environ, **environment, "EOSIN_CACHE": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    outs = done.stdout.split("CODE ")
    codes = [int(part.partition("\n")[0]) for part in outs[1:]]
    shown = [part.partition("\n")[2] for part in ["\n" + outs[0], *outs[1:]]]
    errs = done.stderr.split("END\n")
    assert len(codes) == len(encoders), done.stderr
    return [Done(*each) for each in zip(codes, shown, errs, strict=False)]


@dataclass
class Fetching:
    cache: Path
    hub: Hub
    done: dict[str, list[Done]]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetching:
    """Several encoders, fetched from one hub by one process, LITE0 twice; DAMAGED was there."""
    cache = tmp_path_factory.mktemp("cache")
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    about = Fetched(DAMAGED, "a", COMMIT, "a", sha256, len(CONTENT), "a", [0.0] * 3, [1.0] * 3, "a")
    folder_of(DAMAGED, cache).mkdir(parents=True)
    (folder_of(DAMAGED, cache) / "source.json").write_text(json.dumps(dataclasses.asdict(about)))
    (folder_of(DAMAGED, cache) / "weights.safetensors").write_bytes(bytes(len(CONTENT)))
    repositories = {
        "timm/tf_efficientnet_lite0.in1k": Repository({"model.safetensors": CONTENT}, ""),
        SMP["repo_id"]: Repository(
            {"model.safetensors": CONTENT, "config.json": SETTINGS}, "mit", SMP["revision"]
        ),
        "timm/resnet14t.c3_in1k": Repository({"model.safetensors": CONTENT}),
        "timm/resnet18.a1_in1k": Repository({"pytorch_model.bin": CONTENT}),
        "timm/resnet34.a1_in1k": Repository({}, status=503),
        "timm/resnet50.a1_in1k": Repository({}, status=403, error="GatedRepo"),
        "timm/resnet18d.ra2_in1k": Repository({"model.safetensors": CONTENT}, card_status=503),
        RESNET["repo_id"]: Repository(
            {"model.safetensors": CONTENT, "config.json": SETTINGS}, "", RESNET["revision"]
        ),
        VGG["repo_id"]: Repository(
            {"model.safetensors": CONTENT, "config.json": b'{"mean": [1, 1, 1, 1], "std": [1]}'},
            commit=VGG["revision"],
        ),
        "timm/resnet26.bt_in1k": Repository({"model.safetensors": CONTENT}, etag="ab" * 32),
    }
    encoders = [LITE0, MOBILE, LITE0, "tu-resnet18", "tu-resnet34", "tu-resnet50", "tu-resnet26"]
    encoders += ["resnet34", "resnet3", "dpn92", DAMAGED, "tu-resnet18d", "vgg11", "tu-resnet10t"]
    encoders.append("resnet18")
    folder_of("tu-resnet10t", cache).mkdir(parents=True)
    (folder_of("tu-resnet10t", cache) / "weights.safetensors").write_text("the user's own")
    with Hub(repositories) as hub:
        outcomes = fetch(cache, hub.environment, *encoders)
    done: dict[str, list[Done]] = {}
    for encoder, outcome in zip(encoders, outcomes, strict=True):
        done.setdefault(encoder, []).append(outcome)
    return Fetching(cache, hub, done)


def test_weights_are_kept_with_where_they_are_from(fetched: Fetching) -> None:
    """mean and std as the repository has them; the licence of its model card."""
    folder = fetched.cache / "encoders" / MOBILE
    assert fetched.done[MOBILE][0].code == 0
    assert (folder / "weights.safetensors").read_bytes() == CONTENT
    about = json.loads((folder / "source.json").read_text())
    assert about.pop("fetched").endswith("+00:00")
    assert about.pop("url").endswith(
        f"/{SMP['repo_id']}/resolve/{SMP['revision']}/model.safetensors"
    )
    assert about == {
        "encoder": MOBILE,
        "repository": SMP["repo_id"],
        "revision": SMP["revision"],
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "bytes": len(CONTENT),
        "licence": "mit",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.1, 0.2, 0.3],
    }
    assert sorted(path.name for path in folder.iterdir()) == ["source.json", "weights.safetensors"]


def test_those_of_timm_have_a_commit_and_what_timm_says(fetched: Fetching) -> None:
    """The model card names no licence; timm does. Its branch is asked for, the commit recorded."""
    about = read_fetched(LITE0, fetched.cache)
    assert (about.revision, about.licence) == (COMMIT, "apache-2.0")
    assert about.mean == about.std == [0.5, 0.5, 0.5]


def test_a_licence_that_nobody_states_is_told(fetched: Fetching) -> None:
    assert read_fetched("resnet18", fetched.cache).licence == "not stated"
    (done,) = fetched.done["resnet18"]
    assert f"{RESNET['repo_id']} states no licence: ask before you hand models on" in done.out


def test_what_is_there_is_not_fetched_again(fetched: Fetching) -> None:
    first, again = fetched.done[LITE0]
    assert first.out.startswith(f"fetched {LITE0}: timm/tf_efficientnet_lite0.in1k at 0123456789ab")
    assert again.code == 0
    assert again.out.startswith("is there already")
    assert len([path for path in fetched.hub.asked if "lite0" in path and "GET" in path]) == 2


@pytest.mark.parametrize(
    ("encoder", "code", "told"),
    [
        ("tu-resnet18", 1, "has no model.safetensors in it"),
        ("tu-resnet34", 1, "answers 503; later: EOSIN_CACHE=/"),
        ("tu-resnet50", 1, "only to accounts that have accepted its terms"),
        ("tu-resnet26", 1, "arrived with another sha256"),
        ("resnet34", 1, "no such repository at 7a57b34f"),
        ("tu-resnet18d", 1, "answers 503; later: EOSIN_CACHE=/"),  # of its model card
        ("vgg11", 1, "mean, std: expected three numbers each"),
        ("tu-resnet10t", 1, "was not fetched by Eosin"),
        ("resnet3", 2, "encoder=resnet3: unknown; did you mean resnet34"),
        ("dpn92", 2, "no ImageNet weights (segmentation-models-pytorch names none)"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_a_line(
    fetched: Fetching, encoder: str, code: int, told: str
) -> None:
    (done,) = fetched.done[encoder]
    assert done.code == code
    assert told in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not (fetched.cache / "encoders" / encoder / "source.json").exists()


def test_a_file_of_the_users_stays(fetched: Fetching) -> None:
    own = fetched.cache / "encoders/tu-resnet10t/weights.safetensors"
    assert own.read_text() == "the user's own"


def test_what_is_damaged_is_fetched_again(fetched: Fetching) -> None:
    """Its hash tells: it was as long as before."""
    (done,) = fetched.done[DAMAGED]
    assert done.out.startswith(f"fetched {DAMAGED}")
    assert (folder_of(DAMAGED, fetched.cache) / "weights.safetensors").read_bytes() == CONTENT


def test_where_nobody_answers_it_is_told_what_to_do(tmp_path: Path) -> None:
    with Hub({}) as hub:
        gone = hub.environment
    (done,) = fetch(tmp_path, gone, "mit_b0")
    assert done.code == 1
    assert done.err.startswith(f"error: encoder=mit_b0: no answer from {gone['HF_ENDPOINT']}")
    assert "run it where there is a network" in done.err
    assert done.err.count("\n") == 1
    place = Place("mit_b0", "smp-hub/mit_b0", "main", "model.safetensors", "")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=0 python -m"):
        refuse_offline(place)


def refuse_offline(place: Place) -> None:
    """What the hub's library does where HF_HUB_OFFLINE is set."""
    with hub_explained(place):
        raise OfflineModeIsEnabled


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EOSIN_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache/eosin"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/eosin"
    monkeypatch.setenv("EOSIN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
