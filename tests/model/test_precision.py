"""What 'auto' comes to on each kind of hardware, and what a forward pass computes in."""

import pytest
import torch

from model.precision import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [(CPU, True, "bf16"), (CPU, False, "off"), (GPU, True, "bf16"), (GPU, False, "fp16")],
)
def test_auto_asks_the_hardware_for_bf16(
    device: torch.device, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated bf16 counts as none: on a CPU it is 7 to 20 times slower than fp32."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: has_bf16 or including_emulation,
    )
    precision = choose_precision(device, "auto", "contiguous")
    assert precision.amp == expected
    assert precision.needs_scaler == (expected == "fp16")


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_what_is_asked_for_is_done(amp: str) -> None:
    assert choose_precision(CPU, amp, "auto").amp == amp


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        (CPU, "AVX512", torch.channels_last),
        (CPU, "AVX2", torch.contiguous_format),
        (GPU, "AVX2", torch.channels_last),
    ],
)
def test_auto_picks_the_layout_that_is_fast(
    device: torch.device,
    capability: str,
    expected: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert choose_precision(device, "off", "auto").memory_format == expected


@pytest.mark.parametrize(
    ("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_forward_pass_computes_in_it(amp: str, dtype: torch.dtype) -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    with choose_precision(CPU, amp, "auto").autocast():
        assert convolution(torch.zeros(1, 3, 8, 8)).dtype == dtype


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_images_go_in_as_floats_from_0_to_1(layout: str) -> None:
    image_BHWC = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    image_BHWC[0, 0, 0] = torch.tensor([0, 51, 255])
    precision = choose_precision(CPU, "off", layout)
    input_BCHW = precision.image_to_input(image_BHWC)
    assert input_BCHW.shape == (2, 3, 4, 5)
    assert input_BCHW.is_contiguous(memory_format=precision.memory_format)
    assert input_BCHW[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal((input_BCHW * 255).round().byte(), image_BHWC.permute(0, 3, 1, 2))
