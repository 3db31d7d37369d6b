"""Turn raw fields of view and their annotations into a prepared data set.

    python -m data_prep [raw=data/BreCaHAD out=data/prepared workers=N copies=16 radius_px=20 ...]

Run it again, and it redoes only what changed; after an interruption it goes on.
`python -m data_prep.synthetic` makes a raw data set to try it on.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from common.workers import get_ready
from data_prep.annotations.folders import find_image_folder
from data_prep.cases.names import shortened, unmatched_text
from data_prep.config import PrepConfig
from data_prep.images.stains import check_given

if TYPE_CHECKING:
    from data_prep.prepare import Summary


def main(argv: list[str]) -> int:
    """Prepare a data set and print a summary."""
    if command_line.wants_help(argv):
        print(help_text(PrepConfig, __doc__ or ""))
        return 0
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("data_prep runs without torchrun, as python -m data_prep workers=N ...")
    config = command_line.load(PrepConfig, argv)
    find_image_folder(Path(config.raw))  # before anything that takes long
    check_given(config.stain_reference)
    if Path(config.out).is_file():
        raise UsageError(f"out={config.out}: is a file; name a folder")
    if not Path(config.out).exists():  # workers will be needed
        get_ready("data_prep.field")
    from data_prep.prepare import prepare  # here, while workers get ready: it takes as long

    report(config, prepare(config))
    return 0


def report(config: PrepConfig, summary: "Summary") -> None:
    """Print counts per split, what was kept, and what was left out."""
    for entry in summary.bad:
        print(f"left out {entry}", file=sys.stderr)
    if unmatched := unmatched_text(summary.names, config.case_regex):
        print(f"{unmatched}: each is a case of its own")
    for note in summary.notes:
        print(note)
    for doubt in summary.doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    if config.share:
        print(f"prepared share {config.share} of {config.out}; run without share= to join them")
        return
    print("\n".join(lines_of_splits(summary)))
    from data_prep.dataset import nuclei  # here, for the same reason

    print("\n".join(nuclei.table(nuclei.by_split(summary.samples, summary.folds))))
    if config.labels == "binary" and len(config.classes) > 1:
        print("these are learned as one class; labels=per_class keeps them apart")
    for line in nuclei.about_ignored(summary.samples):
        print(line)
    from data_prep.annotations import findings

    for line in findings.summary(summary.findings, config.classes):
        print(line)
    for warning in findings.warnings(summary.findings, config.classes, config.annotations):
        print(f"warning: {warning}", file=sys.stderr)
    for warning in nuclei.warnings(summary.samples, summary.folds):
        print(f"warning: {warning}", file=sys.stderr)
    if summary.num_glass:
        print(f"left out {command_line.counted(summary.num_glass, 'tile')} of glass")
    if summary.num_reused:
        fields = command_line.counted(summary.num_reused, "field")
        print(f"kept as they were: {fields}")
    if summary.left:
        left = command_line.named(summary.left)
        print(f"left as they are, since data_prep did not write them: {left}", file=sys.stderr)
    if summary.num_removed:
        fields = command_line.counted(summary.num_removed, "field")
        print(f"removed from {config.out}, left by an earlier preparation: {fields}")
    print(f"prepared {config.out} (content {summary.content_sha256[:12]})")


def lines_of_splits(summary: "Summary") -> list[str]:
    """Say what is in each split, or in the folds."""
    lines = []
    for split, counts in summary.counts.items():
        kinds = ("sample", "field", "case")
        listed = ", ".join(command_line.counted(counts[f"{kind}s"], kind) for kind in kinds)
        cases = shortened(summary.cases(split))
        if not summary.folds:
            lines.append(f"{split:5} {listed}" + (f": {cases}" if cases else ""))
        elif split == "train":
            lines.append(f"{listed} in {command_line.counted(len(summary.folds), 'fold')}")
    return lines + [f"fold {k}: {shortened(cases)}" for k, cases in enumerate(summary.folds)]


if __name__ == "__main__":
    command_line.run(main)
