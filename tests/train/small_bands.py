"""`train.predict` with small bands, so that an image of a few Mpx has several; for real ranks."""

from common import command_line
from train import predict
from train.prediction import predictor

BAND_PX = 2**18

if __name__ == "__main__":
    predictor.BAND_PX = BAND_PX
    command_line.run(predict.main)
