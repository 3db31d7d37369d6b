"""Make a contact sheet of a prepared field: its variants, the masks' outlines and the points.

    python -m data_prep.preview out=sheet.jpg [data=DIR field=Case_1-01 columns=4]

Look at it before training: outlines must lie on the nuclei, in every variant.
"""

from common import command_line
from common.help_text import help_text
from data_prep.tools.config import PreviewConfig


def main(argv: list[str]) -> int:
    """Write the sheet."""
    if command_line.wants_help(argv):
        print(help_text(PreviewConfig, __doc__ or ""))
        return 0
    config = command_line.load(PreviewConfig, argv)
    from data_prep.tools.contact_sheet import write_contact_sheet  # here: it loads numpy and OpenCV

    write_contact_sheet(config)
    return 0


if __name__ == "__main__":
    command_line.run(main)
