"""Turn a raw folder into a prepared data set: find, split, prepare what changed, publish.

dataset.json is removed before the first file changes, and written last. After an interruption,
the same command goes on.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.lease import Lease
from common.ownership import clear_temporaries, recorded_items, refusal
from common.progress import track
from common.workers import map_tasks
from data_prep import records
from data_prep.annotations.findings import Findings, add_up
from data_prep.config import SPLITS, PrepConfig
from data_prep.dataset import folds, manifest, pack
from data_prep.dataset.description import DATASET
from data_prep.dataset.manifest import Sample, count_nuclei, count_samples, unpublish, write_dataset
from data_prep.dataset.pack import PACKED, remove_other_packs, write_pack
from data_prep.dataset.white import doubts_about_white
from data_prep.field import FieldTask, PreparedField, files_of, prepare_field
from data_prep.images import masks
from data_prep.images.stains import notes_on_stains
from data_prep.output_lock import locked
from data_prep.plan import (
    FOLDERS,
    Plan,
    about_names,
    find_fields,
    make_plan,
    with_checked_classes,
    with_pipeline_read,
    with_reference_read,
)
from data_prep.raw import BadFile, BadInputFilesError, natural_key
from data_prep.records import FieldState
from data_prep.split import check_folds

SAMPLE_OF = re.compile(r"/(.+)_v\d{2,}_")  # the field in the path of a sample's file


@dataclass(frozen=True)
class Summary:
    """What a preparation did."""

    names: list[str]
    """Names of the raw fields, or of those in the share."""
    bad: list[BadFile]
    num_reused: int
    num_glass: int
    """Tiles without tissue, left out."""
    findings: Findings
    """What the annotations hold, also beside what is learned; of all fields that are not bad."""
    notes: list[str]
    """What the user should know of the set's resolution, a line each."""
    doubts: list[str]
    """What is probably not meant, of the images, a line each."""
    samples: list[Sample] = field(default_factory=list)
    """None for a share, like all that follows."""
    num_removed: int = 0
    """Fields of an earlier preparation of `out` that are missing or bad in this one."""
    content_sha256: str = ""
    left: list[str] = field(default_factory=list)
    """Files in the set's folders that no preparation wrote; they stay."""
    folds: list[list[str]] = field(default_factory=list)
    """The cases of each fold; none without split.folds."""

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Split -> its numbers of samples, fields, cases and nuclei."""
        return count_samples(self.samples)

    def cases(self, split: str) -> list[str]:
        """List the cases of a split, Case_2 before Case_10."""
        return sorted(
            {sample.case for sample in self.samples if sample.split == split}, key=natural_key
        )


def prepare(config: PrepConfig) -> Summary:
    """Prepare `config.raw` into `config.out`.

    Raises UsageError for wrong settings, BadInputFilesError for bad raw files with on_error=stop,
    WorkerError if a worker dies, and UserError if another run prepares the same folder.
    """
    config = with_checked_classes(with_pipeline_read(with_reference_read(config)))
    fields, bad = find_fields(config)
    plan = make_plan(config, fields, bad)
    with locked(Path(config.out), config.share) as lease:
        try:
            return carry_out(plan, config, lease)
        except Exception:
            lease.check()  # else these files may be another run's by now
            clear_unfinished(config)
            raise


def clear_unfinished(config: PrepConfig) -> None:
    """Remove the files that killed workers were writing, unless other shares may write theirs."""
    if not config.share:
        for kind in (records.KIND, manifest.KIND, pack.KIND):
            clear_temporaries(Path(config.out), kind)


def carry_out(plan: Plan, config: PrepConfig, lease: Lease) -> Summary:
    """Prepare the planned fields; publish the data set, unless it is a share.

    Raises as prepare().
    """
    states = read_states(plan.tasks, config)
    left = check_conflicts(plan.tasks, states, Path(config.out))
    clear_unfinished(config)
    results, num_reused = run_tasks(plan.tasks, states, config.workers, lease)
    bad = list(dict.fromkeys(plan.bad + [entry for result in results for entry in result.bad]))
    if bad and config.on_error == "stop":
        raise BadInputFilesError(bad)
    names = list(dict.fromkeys(task.field.name for task in plan.tasks))
    num_glass = sum(result.is_glass for result in results)
    findings = findings_of(plan.tasks, results)
    about = (findings, plan.resolution.notes, doubts_about_images(plan.tasks, results, config))
    if config.share:
        return Summary(names, bad, num_reused, num_glass, *about)
    samples = [
        Sample(**sample, split=plan.splits[sample["case"]])
        for result in results
        for sample in result.samples
    ]
    check_splits(plan, results, bad, config.min_tissue)
    done = [task.name for task, result in zip(plan.tasks, results, strict=True) if not result.bad]
    lease.check()
    num_removed = remove_stale(Path(config.out), done)
    dealt = deal_folds(config, samples)
    description = describe(config, plan, results, bad, names, findings)
    content_sha256 = publish(config, samples, description | ({"folds": dealt} if dealt else {}))
    return Summary(
        names,
        bad,
        num_reused,
        num_glass,
        *about,
        samples,
        num_removed,
        content_sha256,
        left,
        dealt,
    )


def deal_folds(config: PrepConfig, samples: Sequence[Sample]) -> list[list[str]]:
    """Deal the cases to folds by what is annotated in them; none without split.folds."""
    if not config.split.folds:
        return []
    contents: dict[str, dict[str, int]] = {}
    for case in sorted({sample.case for sample in samples}, key=natural_key):
        members = [sample for sample in samples if sample.case == case]
        num_fields = sum(sample.variant == 0 for sample in members)
        contents[case] = {"fields": num_fields, **count_nuclei(members)}
    if config.split.folds == "cases":
        check_folds([*contents], config.split)  # again: of those that have usable fields
    return folds.deal(contents, config.split.folds, config.seed)


def publish(config: PrepConfig, samples: Sequence[Sample], description: dict[str, Any]) -> str:
    """Write the manifest, dataset.json and the pack; return the hash of the content."""
    out = Path(config.out)
    content_sha256 = write_dataset(out, samples, description)
    remove_other_packs(out, content_sha256)
    if config.pack:
        write_pack(out, samples, content_sha256, config.workers)
    return content_sha256


def read_states(tasks: Sequence[FieldTask], config: PrepConfig) -> dict[str, FieldState]:
    """Return the state of each task's field, by name; without share=, of all recorded ones too."""
    out = Path(config.out)
    names = [task.name for task in tasks]
    if not config.share:
        names = list(dict.fromkeys(names + recorded_items(out, records.KIND)))
    with ThreadPoolExecutor(config.workers) as pool:
        states = pool.map(lambda name: records.read_state(out, name), names)
        return dict(zip(names, states, strict=True))


def check_conflicts(
    tasks: Sequence[FieldTask], states: Mapping[str, FieldState], out: Path
) -> list[str]:
    """Raise UserError that names files in the way, before anything changes.

    Returns the other files in the set's folders that no preparation wrote.
    """
    own = {file for state in states.values() for file in state.files}
    own |= pack.item_of(out).read().files.keys()
    folders = [folder for folder in (*FOLDERS, PACKED) if (out / folder).is_dir()]
    paths = (f"{folder}/{name}" for folder in folders for name in sorted(os.listdir(out / folder)))
    foreign = [path for path in paths if path not in own]
    likely = {match[1] for path in foreign if (match := SAMPLE_OF.search(path))}
    wanted = {path for task in tasks if task.name in likely for path in files_of(task)}
    in_the_way = [
        *manifest.item_of(out).conflicts([manifest.MANIFEST, DATASET]),
        *(file for state in states.values() for file in state.changed),
        *(path for path in foreign if path in wanted),
    ]
    if in_the_way:
        raise refusal(out, in_the_way)
    return [path for path in foreign if path not in wanted]


def run_tasks(
    tasks: Sequence[FieldTask], states: Mapping[str, FieldState], workers: int, lease: Lease
) -> tuple[list[PreparedField], int]:
    """Prepare new and changed fields on worker processes.

    Returns the results in the order of the tasks, and how many fields were kept. Raises UserError
    once another run has taken the folder over.
    """
    done = {
        index: PreparedField(
            state.samples,
            [],
            Findings(**state.findings),
            state.largest_uint16,
            state.not_normalised,
        )
        for index, task in enumerate(tasks)
        if (state := states[task.name]).samples is not None and state.key == task.key
    }
    num_reused = len(done)
    todo = [index for index in range(len(tasks)) if index not in done]
    mapped = map_tasks(
        prepare_field, [tasks[index] for index in todo], workers, lambda task: task.name
    )
    for number, result in track(mapped, total=len(todo), label="prepare", unit="field"):
        done[todo[number]] = result
        lease.check()
    return [done[index] for index in range(len(tasks))], num_reused


def findings_of(tasks: Sequence[FieldTask], results: Sequence[PreparedField]) -> Findings:
    """Add up what the annotations of the images hold, those of an image's tiles once."""
    of_image = {
        task.field.name: result.findings
        for task, result in zip(tasks, results, strict=True)
        if not result.bad
    }
    return add_up(of_image.values())


def doubts_about_images(
    tasks: Sequence[FieldTask], results: Sequence[PreparedField], config: PrepConfig
) -> list[str]:
    """Return what makes the pictures doubtful; the tiles of an image count together."""
    largest: dict[str, int] = {}
    for task, result in zip(tasks, results, strict=True):
        name = task.field.image.name
        largest[name] = max(largest.get(name, 0), result.largest_uint16)
    doubts = doubts_about_white(largest, config.uint16_white, may_set=True)
    return doubts + notes_on_stains(not_normalised(tasks, results))


def not_normalised(tasks: Sequence[FieldTask], results: Sequence[PreparedField]) -> dict[str, str]:
    """Return why each image keeps its colours, '' where it does not; none without stain_norm."""
    return {
        task.field.image.name: result.not_normalised
        for task, result in zip(tasks, results, strict=True)
        if task.config.stain_norm != "none" and not result.bad
    }


def check_splits(
    plan: Plan, results: Sequence[PreparedField], bad: Sequence[BadFile], min_tissue: float
) -> None:
    """Raise UserError for a split that lost all its fields, to bad files or as glass."""
    of_split: dict[str, list[PreparedField]] = {name: [] for name in sorted(plan.splits.values())}
    for task, result in zip(plan.tasks, results, strict=True):
        of_split[plan.splits[task.field.case]].append(result)
    listed = "".join(f"\n  {entry}" for entry in bad)
    for name, found in of_split.items():
        if any(result.samples for result in found):
            continue
        cases = ", ".join(case for case, split in plan.splits.items() if split == name)
        if any(result.is_glass for result in found):
            raise UserError(
                f"nothing of the {name} split ({cases}) is left: its tiles are glass, without a"
                f" point and with less than min_tissue={min_tissue} of tissue; lower min_tissue, or"
                f" put other cases into the split, as with split.{name}_cases=[...]"
                + (f"\nLeft out as bad:{listed}" if bad else ""),
                can_heal=False,
            )
        raise UserError(
            f"every field of the {name} split ({cases}) is bad:{listed}", can_heal=False
        )


def remove_stale(out: Path, names: Iterable[str]) -> int:
    """Remove the files of fields that are not in `names`; return the number of fields."""
    stale = sorted(set(recorded_items(out, records.KIND)) - set(names))
    if stale:
        unpublish(out)
    return sum(records.item_of(out, name).remove() for name in stale)


def describe(
    config: PrepConfig,
    plan: Plan,
    results: Sequence[PreparedField],
    bad: list[BadFile],
    names: Sequence[str],
    findings: Findings,
) -> dict[str, Any]:
    """Collect what dataset.json says beside counts, but not where or how fast it was made."""
    return {
        "classes": config.classes,
        "labels": masks.label_values(config.classes, config.labels),
        "split": {
            name: [case for case, split in plan.splits.items() if split == name] for name in SPLITS
        },
        "mpp": plan.resolution.mpp,
        "num_images_with_mpp": plan.resolution.num_told,
        "skipped": [dataclasses.asdict(entry) for entry in bad],
        "glass_tiles": sum(result.is_glass for result in results),
        "not_normalised": {
            name: why for name, why in not_normalised(plan.tasks, results).items() if why
        },
        "findings": dataclasses.asdict(findings),
        "names": about_names(names, config.case_regex),
        "config": records.settings_of_set(config),
    }
