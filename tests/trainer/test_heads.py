import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import FREQUENCIES, HEADS, HeadConfig
from trainer.heads import AttentionBlock, ChronoNet, Head, Inception, attention_pool, shrink_mask

CONFIG = HeadConfig(name="chrononet", filters=4, gru_units=6)


def make_head(name: str, strides: int = 1, frequency: str = "rows") -> Head:
    torch.manual_seed(0)
    config = HeadConfig(name=name, filters=4, gru_units=6, strides=strides, frequency=frequency)
    head = Head(5, 2, 3, config).eval()
    for parameter_name, parameter in head.named_parameters():
        if parameter_name.endswith("classify.weight"):  # begins at zero, and would hide what is before it
            torch.nn.init.normal_(parameter)
    return head


def maps(batch: int = 2, frames: int = 10) -> torch.Tensor:
    return torch.randn(batch, 5, 2, frames, generator=torch.manual_seed(1))


def full(batch: int = 2, frames: int = 10) -> torch.Tensor:
    return torch.ones(batch, frames, dtype=torch.bool)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_returns_a_row_per_frame_and_one_per_clip(name: str) -> None:
    output = make_head(name)(maps(), full())
    assert output.frame_wise.shape == (2, 10, 3)
    assert output.clip_wise.shape == (2, 3)


@pytest.mark.parametrize("name", HEADS)
def test_only_rows_tell_a_low_note_from_a_high_one(name: str) -> None:
    """The mean over frequency is the same for a map and for it upside down."""
    one = maps()
    for frequency, same in (("mean", True), ("rows", False)):
        head = make_head(name, frequency=frequency)
        outputs = head(one, full()).clip_wise, head(one.flip(2), full()).clip_wise
        assert torch.allclose(*outputs, atol=1e-6) == same


def test_dropout_takes_an_input_from_all_frames_at_once() -> None:
    head = Head(5, 2, 3, HeadConfig(name="attention", dropout=0.5, frequency="rows")).train()
    kept = head.body(torch.ones(8, 10, 7)) > 0
    assert (kept == kept[:, :, :1]).all()
    assert 0.2 < kept.float().mean() < 0.8


@pytest.mark.parametrize("name", HEADS)
def test_padding_never_changes_a_clips_output(name: str) -> None:
    head, mask = make_head(name), full()
    mask[:, 6:] = False
    one = maps()
    other = one.clone()
    other[..., 6:] = 100 * torch.randn(2, 5, 2, 4, generator=torch.manual_seed(2))
    assert torch.allclose(head(one, mask).clip_wise, head(other, mask).clip_wise)


@pytest.mark.parametrize("name", HEADS)
def test_a_clips_output_does_not_depend_on_its_batch(name: str) -> None:
    head = make_head(name)
    together = head(maps(4), full(4)).clip_wise
    alone = head(maps(4)[2:3], full(1)).clip_wise
    assert torch.allclose(together[2:3], alone, atol=1e-6)


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("branch", range(3))
def test_every_inception_branch_changes_the_output(block: int, branch: int) -> None:
    head = make_head("chrononet")
    before = head(maps(), full()).clip_wise
    assert isinstance(head.body, ChronoNet)
    with torch.no_grad():
        inception = head.body.inceptions[block]
        assert isinstance(inception, Inception)
        inception.branches[branch].bias += 0.5  # type: ignore[operator]
    assert not torch.allclose(before, head(maps(), full()).clip_wise)


@pytest.mark.parametrize("gru", range(4))
def test_every_gru_changes_the_output_and_sees_those_before_it(gru: int) -> None:
    chrononet = ChronoNet(5, CONFIG)
    sizes = [layer.input_size for layer in chrononet.grus]
    assert sizes == [12, 6, 12, 18]
    head = make_head("chrononet")
    before = head(maps(), full()).clip_wise
    assert isinstance(head.body, ChronoNet)
    with torch.no_grad():
        head.body.grus[gru].bias_ih_l0 += 0.5  # type: ignore[operator]
    assert not torch.allclose(before, head(maps(), full()).clip_wise)


@pytest.mark.parametrize(("strides", "frames"), [(1, 10), (2, 2)])
def test_strides_shorten_time_three_times(strides: int, frames: int) -> None:
    output = make_head("chrononet", strides)(maps(), full())
    assert output.frame_wise.shape[1] == frames


def test_an_even_kernel_keeps_every_frame_in_its_place() -> None:
    """An impulse in frame 4 reaches frame 4 of every branch, and no frame further than a kernel."""
    inception = Inception(1, 1, 1)
    for branch in inception.branches:
        torch.nn.init.ones_(branch.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
    impulse = torch.zeros(1, 1, 12)
    impulse[..., 4] = 1
    reached = [channel.nonzero().flatten().tolist() for channel in inception(impulse)[0]]
    assert reached == [[3, 4], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10))
def test_the_pooled_value_lies_between_its_frames(seed: int, num_valid: int) -> None:
    generator = torch.manual_seed(seed)
    probabilities = torch.rand(1, 10, 3, generator=generator)
    attention = 5 * torch.randn(1, 10, 3, generator=generator)
    mask = torch.arange(10)[None] < num_valid
    pooled = attention_pool(probabilities, attention, mask)
    held = probabilities[:, :num_valid]
    assert (pooled >= held.amin(dim=1) - 1e-6).all()
    assert (pooled <= held.amax(dim=1) + 1e-6).all()


def test_attention_weights_sum_to_one() -> None:
    attention = torch.randn(2, 10, 3, generator=torch.manual_seed(0))
    mask = full()
    mask[1, 4:] = False
    assert torch.allclose(attention_pool(torch.ones(2, 10, 3), attention, mask), torch.ones(2, 3))


def test_the_attention_block_stays_in_fp32_and_finite_when_it_is_certain() -> None:
    block = AttentionBlock(4, 3, from_zero=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(1e4 * torch.ones(1, 10, 4), full(1))
    assert output.clip_wise.dtype == torch.float32
    assert torch.isfinite(output.clip_wise).all()


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_fp32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_head(name)(maps(), full()).clip_wise.dtype == torch.float32


def test_training_starts_at_one_over_the_number_of_classes() -> None:
    block = AttentionBlock(4, 50, from_zero=True)
    start = block(torch.randn(1, 10, 4, generator=torch.manual_seed(0)), full(1)).clip_wise.sigmoid()
    assert torch.allclose(start, torch.tensor(1 / 50))


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_standardised_training_maps_have_mean_0_and_deviation_1(frequency: str) -> None:
    head = make_head("linear", frequency=frequency)
    sample = 3 * maps(64) + 7
    head.standardise.set_from(sample)
    x = head.standardise(sample)
    assert x.mean().abs() < 1e-5
    assert x.std(dim=(0, 2)).sub(1).abs().max() < 1e-3


def test_a_shrunk_mask_holds_audio_where_any_of_its_frames_does() -> None:
    mask = torch.tensor([[True, True, True, False, False, False, False]])
    assert shrink_mask(mask, 4).tolist() == [[True, True, False, False]]
    assert torch.equal(shrink_mask(mask, 7), mask)
