import pytest
import torch

from suites.datasets.augment import CUTOUT, ROLL, Cutout, FlipRoll, on_frames, on_pixels, on_values
from suites.datasets.images import Encoder, Images, Pixels
from suites.datasets.options import SmallImageOptions

IMAGE = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(3, 32, 32)
NORMAL = ((0.5, 0.25, 0.75), (0.5, 0.5, 0.25))


def encoder(part="train", steps=2, **options):
    return Encoder(SmallImageOptions(**options), part, steps, NORMAL, 32)


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip-cutout", "autoaugment-cutout16"])
def test_an_augmentation_follows_from_torchs_seed_and_changes_the_image(recipe):
    encode = encoder(augment=recipe)
    torch.manual_seed(3)
    first = [encode(IMAGE, 0) for _ in range(4)]
    torch.manual_seed(3)
    again = [encode(IMAGE, 0) for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("recipe", ["crop-flip", "crop-flip-cutout", "autoaugment-cutout16"])
def test_test_images_are_left_alone_and_draw_nothing(recipe):
    encode, plain = encoder("test", augment=recipe), encoder("test")
    state = torch.get_rng_state()
    assert torch.equal(encode(IMAGE, 0), plain(IMAGE, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_is_the_padded_image_moved_by_up_to_four_pixels():
    crop = on_pixels("crop-flip", 32)
    padded = torch.nn.functional.pad(IMAGE, (4, 4, 4, 4))
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    allowed = [w for window in windows for w in (window, window.flip(-1))]
    torch.manual_seed(0)
    for _ in range(5):
        found = crop(IMAGE)
        assert any(torch.equal(found, window) for window in allowed)


def test_cutout_blanks_one_square_that_may_stick_out():
    torch.manual_seed(0)
    ones, areas = torch.ones(3, 32, 32), set()
    for _ in range(50):
        blank = on_values("crop-flip-cutout")(ones) == 0
        rows, columns = blank[0].any(1).sum(), blank[0].any(0).sum()
        assert blank.all(0).sum() == blank[0].sum() == rows * columns
        assert max(rows, columns) <= CUTOUT
        areas.add(int(rows * columns))
    assert max(areas) == CUTOUT**2
    assert len(areas) > 1
    assert ones.all()


def test_cutout_reaches_the_corners():
    torch.manual_seed(0)
    seen = torch.zeros(8, 8, dtype=torch.bool)
    for _ in range(300):
        seen |= Cutout(2)(torch.ones(1, 8, 8))[0] == 0
    assert seen.all()


def test_frames_are_mirrored_and_moved_together():
    frames = torch.zeros(3, 2, 20, 20)
    frames[:, :, 10, 4] = torch.arange(3.0)[:, None] + 1
    torch.manual_seed(0)
    places = set()
    for _ in range(60):
        moved = on_frames("flip-roll")(frames)
        ((row, column),) = moved[0, 0].nonzero().tolist()
        assert torch.equal(moved[:, 1, row, column], torch.arange(3.0) + 1)
        assert moved.sum() == frames.sum()
        assert abs(row - 10) <= ROLL
        assert min(abs(column - 4), abs(column - 15)) <= ROLL
        places.add((row, column))
    assert len(places) > 20


def test_flip_alone_does_not_move():
    frames = torch.rand(2, 2, 6, 6)
    torch.manual_seed(0)
    found = [FlipRoll(0)(frames) for _ in range(20)]
    assert any(torch.equal(f, frames) for f in found)
    assert any(torch.equal(f, frames.flip(-1)) for f in found)
    assert all(torch.equal(f, frames) or torch.equal(f, frames.flip(-1)) for f in found)


def test_direct_encoding_normalises_and_repeats_without_copying():
    x = encoder(steps=5)(IMAGE, 0)
    assert x.stride(0) == 0
    expected = (IMAGE / 255 - torch.tensor(NORMAL[0]).view(3, 1, 1)) / torch.tensor(NORMAL[1]).view(3, 1, 1)
    torch.testing.assert_close(x[3], expected)
    torch.testing.assert_close(encoder(normalise=False)(IMAGE, 0)[0], IMAGE / 255)


def test_rate_encoding_spikes_as_often_as_the_value_says():
    x = encoder(steps=400, encoding="rate")(IMAGE, 0)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    # 3,072 binomial means of 400 draws: five standard deviations of the worst.
    assert (x.mean(0) - IMAGE / 255).abs().max() < 5 * (0.25 / 400) ** 0.5


def test_rate_encoded_test_items_repeat_differ_from_each_other_and_leave_the_generator_alone():
    encode = encoder("test", encoding="rate")
    state = torch.get_rng_state()
    assert torch.equal(encode(IMAGE, 4), encode(IMAGE, 4))
    assert not torch.equal(encode(IMAGE, 4), encode(IMAGE, 5))
    assert not torch.equal(encode(IMAGE, 4), encoder("test", encoding="rate", encoding_seed=1)(IMAGE, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_rate_encoded_training_items_are_drawn_anew():
    encode = encoder(encoding="rate")
    assert not torch.equal(encode(IMAGE, 4), encode(IMAGE, 4))


def test_columns_and_pixels_of_an_image():
    images = IMAGE[None]
    plain = Images(images, [7], encoder(steps=1))[0][0][0]
    columns, label = Pixels(images, [7], encoder(steps=1), None)[0]
    assert (columns.shape, label) == ((32, 3, 32), 7)
    assert torch.equal(columns[5], plain[:, :, 5])
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
    pixels, _ = Pixels(images, [7], encoder(steps=1), order)[0]
    assert pixels.shape == (1024, 3)
    assert torch.equal(pixels[17], plain.flatten(1)[:, order[17]])
