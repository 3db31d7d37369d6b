"""`train.predict` with small bands, so that an image of a few Mpx has several; for real ranks."""

from collections.abc import Sequence
from pathlib import Path

from train import predict
from train.prediction import predictor

BAND_PX = 2**18


def main(argv: Sequence[str]) -> int:
    """Predict every input= in turn; prints what the process has held at most after each."""
    predictor.BAND_PX = BAND_PX
    settings = [setting for setting in argv if not setting.startswith("input=")]
    for source in (setting for setting in argv if setting.startswith("input=")):
        if code := predict.main([*settings, source]):
            return code
        # not ru_maxrss, which begins with what the parent process held
        status = Path("/proc/self/status")
        if status.is_file():
            print("peak", status.read_text().split("VmHWM:")[1].split()[0], "kiB")
    return 0
