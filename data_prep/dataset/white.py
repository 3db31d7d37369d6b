"""Doubt whether `uint16_white` is the white of 16-bit images.

The header of a 16-bit image does not tell how many of the bits its camera filled. Values of 12 bits
taken for 16 make a picture that is nearly black.
"""

from collections.abc import Mapping

from common.command_line import counted, named


def doubts_about_white(largest: Mapping[str, int], white: int, may_set: bool) -> list[str]:
    """Return a line about images that `white` makes dark, and one about those that exceed it.

    `largest`: the largest value of each image, 0 if it has not 16 bits. `may_set`: whether the user
    can set `uint16_white` here, or whether a model has fixed it.
    """
    of_uint16 = {name: value for name, value in largest.items() if value}
    dark = {name: value for name, value in of_uint16.items() if value <= white // 2}
    above = {name: value for name, value in of_uint16.items() if value > white}
    lines = []
    if dark:
        full = (1 << max(dark.values()).bit_length()) - 1
        if may_set and len(dark) == len(of_uint16):
            advice = f"give uint16_white={full} if the camera has {full.bit_length()} bits"
        else:
            advice = f"multiply their values by {round(white / full)} before"
        lines.append(
            f"no value is above {full} in {counted(len(dark), '16-bit image')}, though"
            f" uint16_white={white}, so {'it is' if len(dark) == 1 else 'they are'} read as dark"
            f" as {full / white:.1%} of white; {advice}: {named(dark)}"
        )
    if above:
        most = max(above.values())
        full = (1 << most.bit_length()) - 1
        advice = f"give uint16_white={full}" if may_set else f"scale their values to {white} before"
        lines.append(
            f"{counted(len(above), '16-bit image')} with values up to {most}, above"
            f" uint16_white={white}, which are all read as white; {advice}: {named(above)}"
        )
    return lines
