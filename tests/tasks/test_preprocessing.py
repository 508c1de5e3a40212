from __future__ import annotations

import pytest
import torch

from lightning_mvp.tasks import TaskFacts, preprocess

MOMENTS = (0.5, 0.25), (0.5, 0.125)


def facts(size: int, crop: float = 1.0, interpolation: str = "bilinear") -> TaskFacts:
    return TaskFacts("toy", ("a", "b"), size, *MOMENTS, interpolation, crop)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_native_size_is_only_normalised() -> None:
    images = noise(2, 2, 8, 8)
    expected = torch.stack([(images[:, 0] / 255 - 0.5) / 0.5, (images[:, 1] / 255 - 0.25) / 0.125], 1)
    torch.testing.assert_close(preprocess(images, facts(8)), expected)


def test_normalising_in_place_changes_neither_the_images_nor_a_bit_of_the_result() -> None:
    images = noise(2, 2, 8, 8)
    before, (mean, std) = images.clone(), (torch.tensor([values]).view(1, 2, 1, 1) for values in MOMENTS)
    assert torch.equal(preprocess(images, facts(8)), (images.float() / 255 - mean) / std)
    assert torch.equal(images, before)


def test_crop_keeps_the_centre() -> None:
    images = noise(2, 2, 16, 16)
    torch.testing.assert_close(preprocess(images, facts(8, crop=0.5)), preprocess(images[:, :, 4:12, 4:12], facts(8)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(8, 8), (20, 13), (33, 64), (16, 16)])
def test_any_input_becomes_square_and_in_range(shape: tuple[int, int], interpolation: str) -> None:
    batch = preprocess(noise(3, 2, *shape), facts(16, 0.9, interpolation))
    assert batch.shape == (3, 2, 16, 16)
    assert batch.dtype == torch.float32
    assert batch[:, 0].min() >= -1
    assert batch[:, 0].max() <= 1


def test_floats_and_other_channel_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        preprocess(torch.rand(1, 2, 8, 8), facts(8))
    with pytest.raises(ValueError, match=r"2 channels.*got 3"):
        preprocess(noise(1, 3, 8, 8), facts(8))
