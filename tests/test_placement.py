"""Which device holds what: decided from sizes and free memory, and decoded over several devices as over one."""

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import compute_module_sizes
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import rsdbench
from rsdbench import pair
from rsdbench.decoding.kv_cache import KVStorage, Layout, commit
from rsdbench.models import placement
from rsdbench.models.placement import (
    GIB,
    bytes_of,
    cache_bytes,
    computes_on,
    device_map,
    devices_of,
    free_memory,
    layer_devices,
)
from rsdbench.models.prefixes import Prefixes
from rsdbench.models.quantization import shrink
from rsdbench.pair import Pair, parameters

from .conftest import make_pair, resembling, tiny_opt
from .test_models import PAPER

PROMPTS = [[2, 5, 6, 7, 8, 9], [2, 11], [3], [2, 20, 21, 22], [2, 11]]
PLANS = [("ar", None), ("sd", "6"), ("spectr", "2x3"), ("rsd_c", "2-2-1"), ("rsd_s", "3x2")]
SHAPES = {  # hidden, layers, heads
    "opt-125m": (768, 12, 12), "opt-350m": (1024, 24, 16), "opt-13b": (5120, 40, 40), "opt-30b": (7168, 48, 56),
    "opt-66b": (9216, 64, 72),
}  # fmt: skip


def shell_of(name, quantization=None):
    """A model of the paper's, of its real shape, without weights."""
    hidden, layers, heads = SHAPES[name]
    config = OPTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden,
        word_embed_proj_dim=512 if name == "opt-350m" else hidden, do_layer_norm_before=name != "opt-350m",
        vocab_size=50272, max_position_embeddings=2048,
    )  # fmt: skip
    return without_weights(config, torch.bfloat16, quantization)


def without_weights(config, dtype, quantization=None):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    if quantization:
        shrink(model, quantization)
    return model


@pytest.fixture(scope="module")
def shells():
    made = {name: shell_of(name) for name in SHAPES}
    return made | {f"opt-66b {kind}": shell_of("opt-66b", kind) for kind in ("int8", "int4")}


def free(*gpus, cpu=0):
    """Free memory of GPUs and the CPU, from GiB."""
    return {i: int(size * GIB) for i, size in enumerate(gpus)} | ({"cpu": int(cpu * GIB)} if cpu else {})


def test_shells_have_the_papers_sizes(shells):
    assert {name: parameters(shells[name]) for name in PAPER} == PAPER
    assert bytes_of(shells["opt-66b"]) == 2 * PAPER["opt-66b"]
    assert 61 < bytes_of(shells["opt-66b int8"]) / GIB < 63, "fits one 80 GB card"
    assert 37 < bytes_of(shells["opt-66b int4"]) / GIB < 40


@pytest.mark.parametrize(
    ("target", "memory", "expected"),
    [
        ("opt-13b", free(79, cpu=200), {0}), ("opt-30b", free(79, cpu=200), {0}),
        ("opt-66b", free(139.8, cpu=200), {0}), ("opt-66b int8", free(79, cpu=200), {0}),
        ("opt-66b int4", free(47, cpu=200), {0}), ("opt-13b", free(10, 79, cpu=200), {1}),
        ("opt-66b", free(79, 79, cpu=200), {0, 1}), ("opt-13b", free(22, 22, cpu=200), {0, 1}),
        ("opt-30b", free(23, 23, 23, 23, cpu=200), {0, 1, 2, 3}), ("opt-66b", free(79, cpu=200), {0, "cpu"}),
        ("opt-66b", free(39, 39, cpu=200), {0, 1, "cpu"}), ("opt-13b", free(cpu=200), {"cpu"}),
        ("opt-66b int8", free(39, 39, 39, cpu=200), {0, 1, 2}),
    ],
)  # fmt: skip
def test_the_first_way_that_fits_is_taken(shells, target, memory, expected):
    model, drafter = shells[target], shells["opt-350m"]
    found = device_map(model, drafter, memory, offload="int" not in target)
    assert set(found.values()) == expected
    sizes = compute_module_sizes(model)
    held = dict.fromkeys(memory, 0)
    for name, device in found.items():
        held[device] += sizes[name]
    head = computes_on(found, "lm_head")
    assert head != "cpu" or expected == {"cpu"}
    held[head] += bytes_of(drafter)
    tied = 0 if len(found) == 1 else sizes["lm_head"]  # counted with the embedding too
    for device, size in held.items():
        assert size - tied * (device == head) <= 0.9 * memory[device]


@pytest.mark.parametrize(
    ("target", "memory", "offload", "advice"),
    [
        ("opt-13b", free(23), True, "max_memory={0:70GiB,cpu:200GiB}"),
        ("opt-66b", free(79, cpu=20), True, "more CPU memory"),
        ("opt-66b int8", free(39, cpu=200), False, "target.quantization=int4"),
        ("opt-66b", free(40, 40), True, "more GPUs"), ("opt-13b", free(cpu=10), True, "int8 or int4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(shells, target, memory, offload, advice):
    with pytest.raises(rsdbench.UsageError) as caught:
        device_map(shells[target], shells["opt-125m"], memory, offload)
    message = str(caught.value)
    assert "\n" not in message
    assert advice in message
    need = bytes_of(shells[target]) + bytes_of(shells["opt-125m"])
    assert f"take {need / GIB:.1f} GiB" in message
    assert all(f"{size / GIB:.1f} GiB on" in message for size in memory.values())


def test_keys_and_values_of_a_batch_have_room_too(shells):
    """OPT-30B and 16 sequences of 2,010 positions, as the paper's XSum rows have: 41 GiB beside 56 GiB of weights."""
    target, drafter = shells["opt-30b"], shells["opt-125m"]
    cache = cache_bytes(target, 16, 2010)
    assert cache == 16 * 2010 * 48 * 2 * 7168 * 2
    assert cache_bytes(target, 16, 4096) == cache_bytes(target, 16, None) == 16 * 2048 * 48 * 2 * 7168 * 2
    assert cache_bytes(None, 16, 2010) == 0
    assert set(device_map(target, drafter, free(79, cpu=200)).values()) == {0}
    assert set(device_map(target, drafter, free(79, cpu=200), True, 4, 2010).values()) == {0}
    assert set(device_map(target, drafter, free(79, cpu=200), True, 16, 2010).values()) == {0, "cpu"}
    assert set(device_map(target, drafter, free(79, 79, cpu=200), True, 16, 2010).values()) == {0, 1}
    with pytest.raises(
        rsdbench.UsageError, match=r"keys and values of a batch 42\.3 GiB.*a smaller quality.batch_size"
    ):
        device_map(target, drafter, free(79), True, 16, 2010)


def test_the_drafter_goes_beside_a_head_that_is_on_the_last_gpu():
    """An untied head comes after the layers, and so does the room that the drafter needs."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4, vocab_size=512,
        tie_word_embeddings=False,
    )  # fmt: skip
    target, drafter = (without_weights(config, torch.float32) for _ in range(2))
    size = bytes_of(target)
    memory = {0: size, 1: int(1.9 * size)}
    assert set(device_map(target, drafter, {0: size, 1: 3 * size}).values()) == {1}
    found = device_map(target, drafter, memory)
    assert computes_on(found, "lm_head") == 1
    held = sum(compute_module_sizes(target)[name] for name, device in found.items() if device == 1)
    assert held + bytes_of(drafter) <= 0.9 * memory[1]


def test_a_module_computes_where_the_nearest_parent_is():
    places = {"model.embed": 0, "model.layers.1": 1, "model.layers.10": "cpu", "lm_head": "cpu"}
    assert computes_on(places, "model.layers.1.fc1") == 1
    assert computes_on(places, "model.layers.10") == 0, "the first GPU"
    assert computes_on({"": "cpu"}, "lm_head") == "cpu"
    assert computes_on({"": 2}, "lm_head") == 2


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs of 80 and 40 GiB."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "free_on", lambda kind, index, host: (80, 40)[index] * GIB)


def refusal(function, *arguments, **options):
    with pytest.raises(rsdbench.UsageError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_which_memory_may_be_used(gpus):
    assert free_memory("auto") == {0: 80 * GIB, 1: 40 * GIB, "cpu": free_memory("auto")["cpu"]}
    assert free_memory("cuda") == free_memory("cuda:0") == {0: 80 * GIB}
    assert free_memory("cuda:1") == {1: 40 * GIB}
    assert list(free_memory("cpu")) == ["cpu"]
    assert free_memory("auto", {0: "50GiB", "1": "50GiB"}) == {0: 50 * GIB, 1: 40 * GIB}
    assert free_memory("auto", {1: "1GiB", "cpu": "2GiB", 0: 0}) == {1: GIB, "cpu": 2 * GIB}
    assert "'cuda:2' is not available here" in refusal(free_memory, "cuda:2")
    assert "names device '7'" in refusal(free_memory, "auto", {7: "1GiB"})
    assert "not 'much'" in refusal(free_memory, "auto", {0: "much"})
    assert "not '40GiB'" in refusal(free_memory, "auto", "40GiB")


def test_a_pair_that_is_too_large_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(pair, "load_model", None)
    message = refusal(rsdbench.load_pair, "opt-2.6m", "opt-25k", device="cpu", max_memory={"cpu": "1MiB"})
    assert "0.0 GiB on the CPU" in message


def decoded(pair):
    outs = [rsdbench.generate(pair, PROMPTS, m, s, 8, temperature=1.0, seed=3) for m, s in PLANS]
    return [(out.tokens, out.blocks) for out in outs]


@pytest.mark.parametrize(
    ("kind", "offloaded"), [("opt", "1"), ("opt_post_norm", "0"), ("llama", "1"), ("llama", "head")]
)
def test_a_dispatched_target_gives_the_same_tokens(tmp_path, kind, offloaded):
    """accelerate's hooks, with a part on disk: each layer's weights come when it runs."""
    pair, plain = make_pair(kind), make_pair(kind)
    inner = "model" if kind == "llama" else "model.decoder"
    names = [f"{inner}.{name}" for name, _ in pair.target.get_submodule(inner).named_children() if name != "layers"]
    names += [f"{inner}.layers.0", f"{inner}.layers.1", "lm_head"]
    away = "lm_head" if offloaded == "head" else f"{inner}.layers.{offloaded}"
    places = {name: "disk" if name == away else "cpu" for name in names}
    pair.target = dispatch_model(pair.target, places, offload_dir=tmp_path)
    assert next(pair.target.get_submodule(away).parameters()).device.type == "meta"
    assert pair.device == torch.device("cpu")
    assert layer_devices(pair.target) == [torch.device("cpu")] * 2
    assert devices_of(pair.target) == ["cpu", "disk"]
    assert pair.cost_ratio == plain.cost_ratio
    assert decoded(pair) == decoded(plain)
    assert not pair.can_compile
    assert "not cpu and disk: take compile=false" in refusal(pair.compile)


RUNS = {"one": ["cpu"] * 4, "halves": ["cpu", "cpu", "cpu:0", "cpu:0"], "offloaded": ["cpu", "cpu:0", "cpu:0", "cpu"]}


@pytest.mark.parametrize("name", RUNS)
def test_storage_follows_the_layers_devices(name):
    """The CPU under two names stands for two devices."""
    target = tiny_opt(1, layers=4)
    pair, plain = (Pair(target, resembling(target, 3, 0.1)) for _ in range(2))
    expected = decoded(plain)
    devices = [torch.device(d) for d in RUNS[name]]
    engine = pair.engine
    engine.prefixes = Prefixes(2**20)
    for model, layouts in engine.layouts.items():
        engine.layouts[model] = [own._replace(device=device) for own, device in zip(layouts, devices, strict=True)]
    for _ in range(2):  # the second time from the prefixes that the first has kept
        assert decoded(pair) == expected
    runs = {"one": [4], "halves": [2, 2], "offloaded": [1, 2, 1]}[name]
    kept = engine.prefixes.kept.values()
    assert all([len(run) for run in prefix] == runs for prefix in kept)
    assert engine.prefixes.size == sum(p.nbytes for prefix in kept for p in prefix) > 0


def test_storage_lies_on_each_runs_device():
    devices = [torch.device(d) for d in ("meta", "cpu", "cpu", "meta")]
    storage = KVStorage([Layout(d, 2, 8, torch.float32) for d in devices], batch=3, nodes=4, positions=10)
    assert [s.device for s in storage.runs] == [torch.device(d) for d in ("meta", "cpu", "meta")]
    assert [s.shape for s in storage.runs] == [(n, 2, 3, 2, 16, 8) for n in (1, 2, 1)]
    rows, accepted, tokens = torch.tensor([[0, 2], [0, 3], [0, 4]]), torch.ones(3).long(), torch.zeros(3, 6).long()
    # indices go along: with those of another device it would raise
    commit(accepted, rows, tokens[:, :2].clone(), tokens, accepted.clone(), storage.scratch, storage.runs, ())
    storage.move([2], [0])
    assert storage.prefix(5)[0].shape == (1, 2, 3, 2, 5, 8)


def test_layers_of_another_size_are_a_run_of_their_own():
    layouts = [Layout(torch.device("cpu"), heads, size, torch.float32) for heads, size in ((2, 8), (2, 8), (1, 4))]
    storage = KVStorage(layouts, batch=1, nodes=0, positions=6)
    assert [s.shape for s in storage.runs] == [(2, 2, 1, 2, 8, 8), (1, 2, 1, 1, 8, 4)]
    assert [v.shape for v in storage.views(1)] == [(1, 2, 8, 8)] * 4 + [(1, 1, 8, 4)] * 2


def test_layers_are_where_their_hooks_send_them():
    model = tiny_opt(1, layers=3)
    assert layer_devices(model) == [torch.device("cpu")] * 3
    model.hf_device_map = {"model.decoder.layers.1": "meta", "": "cpu"}
    model.model.decoder.layers[1]._hf_hook = AlignDevicesHook(execution_device="meta")
    assert layer_devices(model) == [torch.device(d) for d in ("cpu", "meta", "cpu")]


def test_a_drafter_that_is_not_beside_the_head_is_refused():
    target, drafter = tiny_opt(1), tiny_opt(2).to("meta")
    assert "head is on cpu and the drafter on meta" in refusal(rsdbench.load_pair, target, drafter)


def test_rows_share_a_pair_that_has_the_room_for_their_batches():
    from rsdbench.runner import pairs
    from rsdbench.runner.compose import compose

    loads = []

    class Found:
        def load(self, *room):
            loads.append(room)
            return make_pair("opt")

    pairs.release_pair()
    rows = [("2.6m", "wmt", 4, 100), ("2.6m", "xsum", 2, 150), ("2.6m", "xsum", 4, 150), ("6m", "wmt", 1, 9)]
    for target, dataset, *room in rows:
        config, _ = compose(["experiment=smoke", "drafter=opt-25k", f"target=opt-{target}", f"dataset={dataset}"])
        pair = pairs.pair_of(config, Found(), *room)
        assert [held for held, _ in pairs.HELD.values()] == [pair]
    assert loads == [(4, 100, True), (4, 150, True), (1, 9, True)]
    pairs.release_pair()


def test_room_is_kept_for_the_prompts_that_a_row_has(monkeypatch):
    """Not for the longest that its settings allow: WMT's sentences would be given the room of articles."""
    from rsdbench.runner import pairs, run
    from rsdbench.runner.plan import planned_rows

    asked, load = [], pair.FoundPair.load
    monkeypatch.setattr(pair.FoundPair, "load", lambda found, *room: asked.append(room) or load(found, *room))
    pairs.release_pair()
    axes = ["drafter=opt-25k", "target=opt-2.6m", "dataset=wmt", "dataset.max_prompt_tokens=1000"]
    (planned,) = planned_rows(["experiment=smoke", *axes])
    row = run.RowRunner(planned.row)
    longest = max(len(example.prompt) for example in row.examples)
    new = planned.row.config.decode.max_new_tokens
    assert asked == [(len(row.examples), longest + new + run.TREE_POSITIONS, True)]
    assert longest < planned.row.config.dataset.max_prompt_tokens
    pairs.release_pair()
