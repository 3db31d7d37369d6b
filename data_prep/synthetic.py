"""Make a BreCaHAD-shaped data set of synthetic H&E fields, to try the whole pipeline without data.

    python -m data_prep.synthetic out=DIR [cases=6 fields=4 width_px=1360 height_px=1024 seed=0]

Writes DIR/images/Case_<case>-<field>.tif and DIR/groundTruth/Case_<case>-<field>.json. A pixel's
colour follows Beer and Lambert: 255 * exp(-(h * H + e * E)), where h and e are the local densities
of hematoxylin and eosin. Staining, blur and tissue habits are drawn at random once per case, so
that cases differ as in a clinic; the positions of the cells are drawn once per field.
"""

from pathlib import Path

from common import command_line
from common.help_text import help_text
from data_prep.tools.config import SyntheticConfig


def main(argv: list[str]) -> int:
    """Make and write the data set, and print its size."""
    if command_line.wants_help(argv):
        print(help_text(SyntheticConfig, __doc__ or ""))
        return 0
    config = command_line.load(SyntheticConfig, argv)
    command_line.make_output_folder(Path(config.out))
    from data_prep.tools.synthetic_files import write_dataset  # here: it loads numpy and OpenCV

    num_fields = write_dataset(config)
    cases = command_line.counted(config.cases, "case")
    print(f"{config.out} holds {command_line.counted(num_fields, 'field')} of {cases}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
