"""Members of an ensemble: where they are while they are used."""

import pytest
import torch
from torch import Tensor, nn

from model import ensemble
from model.ensemble import Ensemble, fits
from model.precision import Precision
from train.prediction.tiles import mean_of_members

CPU = torch.device("cpu")


class Constant(nn.Module):
    """A 'network' of one logit, which notes where it is told to go."""

    def __init__(self, logit: float, stride: int, told: list[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(logit))
        self.stride, self.told = stride, told

    def to(self, *given: object, **named: object) -> "Constant":
        self.told.append(f"{self.weight.item():g} to {given[0]}")
        return self

    def forward(self, image_BCHW: Tensor) -> Tensor:
        self.told.append(f"{self.weight.item():g} is used")
        return self.weight.expand(len(image_BCHW), 1, *image_BCHW.shape[2:])


def predicted(told: list[str], device: str) -> Tensor:
    """The mean of three constants, as it is predicted."""
    model = Ensemble([Constant(0.0, 1, told), Constant(2.0, 2, told), Constant(-1.0, 3, told)])
    model.place(torch.device(device))
    told.clear()
    precision = Precision(torch.device(device), "off", "contiguous")
    with torch.no_grad():
        return mean_of_members(model, torch.zeros(1, 3, 2, 2), precision, tta=False)


def test_probabilities_are_averaged_and_not_logits() -> None:
    told: list[str] = []
    expected = (0.5 + 0.8807970779778823 + 0.2689414213699951) / 3
    assert predicted(told, "cpu").flatten().tolist() == pytest.approx([expected] * 4)
    assert told == ["0 is used", "2 is used", "-1 is used"]


def test_members_that_do_not_fit_go_to_the_device_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = predicted([], "cpu")
    monkeypatch.setattr(ensemble, "fits", lambda model, device: False)
    told: list[str] = []
    assert torch.equal(predicted(told, "cuda:0"), together)
    assert told == [
        line
        for name in ("0", "2", "-1")
        for line in (f"{name} to cuda:0", f"{name} is used", f"{name} to cpu")
    ]


def test_members_fit_where_half_of_the_free_memory_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Ensemble([nn.Linear(99, 100, bias=False), nn.BatchNorm1d(24)])
    num_bytes = 4 * (9900 + 4 * 24) + 8  # 4 vectors, and how many batches were seen
    assert fits(model, CPU)
    for free_bytes, expected in ((2 * num_bytes, True), (2 * num_bytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free_bytes: (free, 0))
        assert fits(model, torch.device("cuda:0")) is expected


def test_the_stride_suits_every_member() -> None:
    assert Ensemble([Constant(0.0, 4, []), Constant(0.0, 6, []), nn.Identity()]).stride == 12
