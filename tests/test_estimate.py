"""Memory and time of a row job, against arithmetic that is written out here."""

from functools import cache

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rsdbench.errors import UsageError
from rsdbench.models.checkpoints import MODELS
from rsdbench.runner.compose import row_configs
from rsdbench.runner.estimate import estimate, paper_efficiency
from rsdbench.runner.footprint import GIB, Workload
from rsdbench.runner.sizes import KNOWN, model_size
from rsdbench.selection import points_of

from .conftest import tiny_llama, tiny_opt, tiny_opt_post_norm

ROW = ["experiment=paper", "drafter=opt-125m", "dataset=wmt"]
# prompts of 60 tokens on average and 400 at most, two batches of 16
PROMPTS = ["dataset.template='{source}'", "dataset.shots=0", "dataset.num_prompts=32", "decode.max_new_tokens=100"]


@cache
def row_config(target, hardware):
    (config,) = row_configs([*ROW, f"target={target}", f"hardware={hardware}"])
    return config


def work(*changes, target="opt-13b", hardware="h100-80gb"):
    config = OmegaConf.merge(row_config(target, hardware), OmegaConf.from_dotlist(list(changes)))
    return Workload.of(config, points_of(config))


def test_known_sizes_follow_from_their_shapes():
    """OPT: embeddings, positions, and layers of four projections, two of the MLP, and two norms, with biases."""
    for name, size in KNOWN.items():
        d, v, width = size.hidden, size.vocabulary, size.embeddings // size.vocabulary
        layer = 4 * (d * d + d) + 2 * d * 4 * d + 5 * d + 4 * d
        ends = 2 * d if width == d else 2 * d * width  # a last norm, or projections from and to a narrower embedding
        assert v * width + (2048 + 2) * d + size.layers * layer + ends == size.parameters, name
    assert [size.parameters for size in KNOWN.values()] == [
        125_239_296, 331_196_416, 12_853_473_280, 29_974_540_288, 65_719_701_504,
    ]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_opt, tiny_opt_post_norm, tiny_llama])
def test_sizes_of_models_on_disk_are_read_without_loading_them(tmp_path, make):
    model = make(1)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    size = model_size(str(tmp_path))
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.embeddings == 64 * 16 if make is tiny_opt else size.embeddings < size.parameters
    assert (size.layers, size.heads) == (2, 2)
    assert size.hidden == model.config.hidden_size
    assert size.head_size == model.config.hidden_size // model.config.num_attention_heads
    assert (size.vocabulary, size.positions) == (64, 64)


def test_sizes_of_embedded_models_and_of_bin_files(tmp_path):
    tensors = load_file(MODELS / "opt-25k" / "model.safetensors")
    assert model_size("opt-25k").parameters == sum(tensor.numel() for tensor in tensors.values())
    (tmp_path / "config.json").write_text('{"model_type": "opt", "torch_dtype": "float16"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 2000)
    assert model_size(str(tmp_path)).parameters == 1000


def test_a_size_that_nothing_tells_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="nothing here says how large model 'someone/else' is"):
        model_size("someone/else")
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(UsageError, match=r"cannot be read from .* \(it has no weights\)"):
        model_size(str(tmp_path))


def test_memory_of_a_row_by_hand():
    """OPT-125M-13B in bfloat16, budget 6, SD: a tree of 6 nodes and 6 levels."""
    row = work(*PROMPTS, "methods=[sd]", "budgets=[6]")
    assert row.prompt_tokens == (60, 400)
    memory = row.memory(None, 16)
    assert memory.target == pytest.approx(2 * 12_853_473_280 / 2**30)
    assert memory.drafter == pytest.approx(2 * 125_239_296 / 2**30)
    columns = 400 + 100 + 6 + 6 + 3
    target_cache = 40 * 2 * 16 * 40 * columns * 128 * 2  # layers, keys and values, batch, heads, columns, size, bytes
    drafter_cache = 12 * 2 * 16 * 12 * columns * 64 * 2
    assert memory.cache == pytest.approx((target_cache + drafter_cache) / 2**30)
    activations = 10 * 16 * 400 * 5120 * 2  # more than the laws, 6 * 16 * 7 * 50272 * 4
    assert memory.workspace == pytest.approx((activations + target_cache / 40) / 2**30)
    assert memory.total == pytest.approx(24.18 + 6.57 + 0.77, abs=0.02)


def test_a_quantised_target_keeps_its_embeddings():
    row = work(target="opt-66b")
    embeddings, rest = 50_272 * 9216, 65_719_701_504 - 50_272 * 9216
    assert row.memory("int8", 1).target == pytest.approx((2 * embeddings + rest) / 2**30)
    assert row.memory("int4", 1).target == pytest.approx((2 * embeddings + 0.625 * rest) / 2**30)
    assert work("target.quantization=int8", target="opt-66b").quantization == "int8"
    with pytest.raises(UsageError, match="unknown quantization 'int2': choose int8, int4 or null"):
        work("target.quantization=int2")


def test_hours_of_a_row_by_hand():
    """The same row on an H100, AR and SD: 2 batches of 16, and one prompt at batch 1, twice beside AR."""
    row = work(*PROMPTS, "methods=[sd]", "budgets=[6]", "speed.num_prompts=1", "speed.turns=2")
    bandwidth, compute = 0.8 * 3350e9, 0.5 * 989e12
    weights, column = 2 * 12_853_473_280, 40 * 2 * 5120 * 2

    def ar(batch, prompt):
        """Bandwidth-bound blocks of one row, which read half of the new tokens on average."""
        step = (weights + batch * (prompt + 50) * column) / bandwidth + 0.5e-3
        prefill = batch * prompt * (2 * 12_853_473_280 + 4 * 40 * 5120 * prompt) / compute
        return max(prefill, (weights + batch * prompt * column) / bandwidth) + 100 * step

    def sd(batch, prompt, efficiency):
        """One target forward of 7 rows and six drafter steps, which take 12 layers' launches, a block."""
        step = (weights + batch * (prompt + 50 + 6) * column) / bandwidth + 6 * 12 * 1e-4 + 7 * 0.5e-3
        prefill = batch * prompt * (2 * 12_853_473_280 + 4 * 40 * 5120 * prompt) / compute
        drafter = max(12e-4, batch * prompt * (2 * 125_239_296 + 4 * 12 * 768 * prompt) / compute)
        return max(prefill, (weights + batch * prompt * column) / bandwidth) + drafter + 100 / efficiency * step

    load = 2 * (12_853_473_280 + 125_239_296) / 1e9
    wide = (60 + 400) / 2  # of a batch of 16
    found = estimate(row, row.points)
    for seconds, efficiency in ((found.hours.low * 3600, 1.4), (found.hours.high * 3600, 1.0)):
        quality = 2 * ar(16, wide) + 2 * sd(16, wide, efficiency)
        speed = 2 * (2 * ar(1, 60) + ar(1, 60) + sd(1, 60, efficiency))
        assert seconds == pytest.approx(load + quality + speed)
    assert found.gpu_hours == found.hours
    # AR and SD in batches, AR three times and SD once at batch 1 in each turn
    assert found.target_forwards.high == 2 * 101 + 2 * 101 + 2 * (3 * 101 + 101)
    assert found.drafter_forwards.high == (2 + 2) * (1 + 600)
    assert found.drafter_forwards.low == pytest.approx((2 + 2) * (1 + 600 / 1.4))


def test_what_is_done_takes_no_time():
    row = work()
    assert estimate(row, []).hours == (0, 0)
    assert 0 < estimate(row, row.points[:1]).hours.low < estimate(row, row.points).hours.low


def test_more_accepted_drafts_take_less_time_and_a_profile_more():
    row = work("methods=[rsd_s]")
    found, profiled = estimate(row, row.points), work("methods=[rsd_s]", "decode.profile=true")
    assert found.hours.low < found.hours.high
    assert estimate(profiled, profiled.points).hours.low > found.hours.low


def test_the_papers_block_efficiency_lies_on_lines_and_has_ends():
    assert paper_efficiency("ar", 0) == 1
    assert [paper_efficiency("rsd_s", budget) for budget in (3, 6, 18, 30, 99)] == pytest.approx(
        [1.7, 1.7, 1.8, 1.9, 1.9]
    )
    assert paper_efficiency("someones", 6) == paper_efficiency("sd", 6)


@pytest.mark.parametrize(
    ("target", "hardware", "overrides", "text", "cards"),
    [
        ("opt-13b", "h100-80gb", [], "fits one card", 1),
        ("opt-66b", "h100-80gb", ["hardware.cards=8"], "needs 3 cards", 3),
        ("opt-66b", "h200-141gb", ["hardware.cards=2"], "needs 2 cards", 2),
        ("opt-66b", "h200-141gb", [], "fits one card as int8", 1),
        ("opt-66b", "h100-80gb", [], "fits one card as int4", 1),
        ("opt-66b", "a100-40gb", [], "does not fit: CPU offload", 1),
        ("opt-66b", "cpu", [], "fits", 1),
        ("opt-66b", "cpu", ["hardware.gib=64"], "does not fit", 1),
        ("opt-66b", "rtx4090-24gb", ["quality.batch_size=256"], "does not fit", 1),
        ("opt-66b", "h100-80gb", ["target.quantization=int4"], "fits one card", 1),
    ],
)
def test_how_a_row_fits(target, hardware, overrides, text, cards):
    row = work(*overrides, target=target, hardware=hardware)
    fit = row.fit()
    assert (fit.text, fit.cards) == (text, cards)
    room = 0.9 * row.hardware.gib
    if fit.possible:
        held = row.memory(fit.quantization, row.batch).total - fit.offloaded
        assert held <= room * cards * (1 + 1e-9)
    for kind, batch in fit.one_card_batch.items():
        kind = None if kind == "none" else kind
        assert not batch or row.memory(kind, batch).total <= room
        assert batch == row.batch or row.memory(kind, batch + 1).total > room


def test_a_slow_link_makes_offloaded_layers_slow():
    row = work(target="opt-66b", hardware="a100-40gb")
    found = estimate(row, row.points)
    offloaded = found.fit.offloaded * GIB
    assert offloaded > 100e9
    assert found.hours.low * 3600 > found.target_forwards.low * offloaded / 32e9
    assert estimate(work("hardware.gib=64", target="opt-66b", hardware="cpu"), row.points).hours is None


def test_cards_take_turns():
    one, two = (work(target="opt-13b", hardware=h) for h in ("h100-80gb", "a100-40gb"))
    assert estimate(one, one.points).gpu_hours == estimate(one, one.points).hours
    spread = work("hardware.cards=4", "quality.batch_size=64", target="opt-13b", hardware="a100-40gb")
    found = estimate(spread, spread.points)
    assert found.fit.cards > 1
    assert found.gpu_hours.low == pytest.approx(found.fit.cards * found.hours.low)
    assert estimate(two, two.points).hours.low > estimate(one, one.points).hours.low


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hardware.cards=0", "hardware.cards must be a whole number of at least 1, not '0'"),
        ("hardware.cards=1.5", "hardware.cards must be a whole number of at least 1, not '1.5'"),
        ("hardware.gib=-1", "hardware.gib must be a number above 0, not '-1'"),
        ("hardware.bandwidth=fast", "hardware.bandwidth must be a number above 0, not 'fast'"),
        ("hardware.tflops=null", "hardware.tflops must be a number above 0, not 'None'"),
    ],
)
def test_bad_numbers_of_hardware_are_one_line(override, message):
    with pytest.raises(UsageError, match=message):
        work(override)
