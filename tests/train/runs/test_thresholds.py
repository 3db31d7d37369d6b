"""What is said of a best checkpoint that was not chosen for what it finds."""

from train.runs.thresholds import doubt_about_best


def test_a_best_of_nothing_is_no_choice() -> None:
    """Nor is a Dice that is written as 0.0000; one that is, and nothing annotated, are no doubt."""
    for dice in (0.0, 0.00004):
        assert "no validation found anything" in doubt_about_best(dice, 4)
    for known in (None, -1.0, 0.0002):
        assert doubt_about_best(known, 4) == ""
