"""Every configuration composes, and the grids have the sizes that the design gives them."""

import itertools

import pytest
from omegaconf import OmegaConf

from rsdbench.methods import METHODS, get_shape
from rsdbench.results.schema import AXES
from rsdbench.runner.compose import CONFIGS, compose, row_configs
from rsdbench.selection import points_of
from rsdbench.tasks.settings import check_dataset_settings

TABLE = {
    "sd": {6: ["6"], 10: ["10"], 14: ["14"], 21: ["21"], 30: ["30"]},
    "spectr": {6: ["2x3", "3x2"], 10: ["2x5", "5x2"], 14: ["2x7", "7x2"], 21: ["3x7", "7x3"], 30: ["5x6", "6x5"]},
    "rsd_c": {
        6: ["2-1-1", "2-2", "3-1"],
        10: ["2-1-1-1-1", "2-2-1", "5-1"],
        14: ["2-1-1-1-1-1-1", "2-2-2", "7-1"],
        21: ["3-1-1-1-1-1-1", "3-2-2", "7-1-1"],
        30: ["2-2-2-2", "5-1-1-1-1-1", "6-1-1-1-1"],
    },
}
TABLE["rsd_s"] = TABLE["spectr"]


def names(group):
    return sorted(f.stem for f in (CONFIGS / group).glob("*.yaml"))


def rows(*overrides):
    return row_configs(list(overrides))


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_choice_composes_with_every_experiment(experiment):
    for drafter, target, dataset in itertools.zip_longest(*map(names, AXES), fillvalue="all"):
        config, _ = compose(
            [f"experiment={experiment}", f"drafter={drafter}", f"target={target}", f"dataset={dataset}"]
        )
        assert config.name == experiment
        assert (config.drafter.name, config.target.name, config.dataset.name) == (drafter, target, dataset)
        assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize(("experiment", "cells"), [("standin", 41), ("standin_full", 41), ("paper", 41), ("smoke", 21)])
def test_experiments_have_12_rows_of_all_structures(experiment, cells):
    configs = rows(f"experiment={experiment}")
    assert len(configs) == 12
    assert all(len(points_of(c)) == cells for c in configs)


def test_structures_are_the_designs_table():
    assert {m: {b: list(s) for b, s in METHODS[m].structures.items()} for m in TABLE} == TABLE
    for method, budgets in TABLE.items():
        for budget, structures in budgets.items():
            assert all(get_shape(method, s).budget == budget for s in structures)


def test_shapes_are_what_their_text_says():
    assert get_shape("sd", "6").widths == (1,) * 6
    assert get_shape("spectr", "2x3").widths == (2, 2, 2)
    assert get_shape("rsd_s", "3x2").widths == (3, 3)
    shape = get_shape("rsd_c", "3-2-1")
    assert shape.widths == (3, 6, 6)
    assert shape.fanouts == (3, 2, 1)
    assert shape.parents == (-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
    assert get_shape("ar", None).budget == 0


def test_the_papers_grid_is_the_papers():
    configs = rows("experiment=paper")
    assert [(c.drafter.path, c.target.path, c.dataset.name) for c in configs] == [
        (f"facebook/opt-{d}", f"facebook/opt-{t}", s)
        for d in ("125m", "350m") for t in ("13b", "30b", "66b") for s in ("wmt", "xsum")
    ]  # fmt: skip
    assert {(c.decode.temperature, c.decode.max_new_tokens) for c in configs} == {(0.3, 128)}


def test_the_papers_datasets_are_pinned_and_their_prompts_a_sample():
    wmt, xsum = (c.dataset for c in rows("experiment=paper", "drafter=opt-125m", "target=opt-13b"))
    assert (wmt.path, wmt.config, wmt.split, wmt.stop) == ("wmt/wmt18", "de-en", "test", "line")
    assert (xsum.path, xsum.config, xsum.split, xsum.stop) == ("EdinburghNLP/xsum", None, "test", "sentence")
    for dataset in (wmt, xsum):
        check_dataset_settings(dataset)
        check_dataset_settings(OmegaConf.merge(dataset, {"shots": 1}))
        assert len(dataset.revision) == 40
        assert (dataset.num_prompts, dataset.shuffle, dataset.shots, dataset.cut) == (256, 0, 0, "longest")


def test_axes_narrow_the_grid_and_overrides_reach_every_row():
    configs = rows("experiment=standin", "target=opt-6m", "dataset.num_prompts=3")
    assert [(c.drafter.name, c.dataset.name) for c in configs] == [
        (d, s) for d in ("opt-25k", "opt-70k") for s in ("debian-de-en", "debian-synopsis")
    ]
    assert {(c.target.name, c.dataset.num_prompts) for c in configs} == {("opt-6m", 3)}


def test_the_full_stand_in_grid_takes_more_prompts_where_accuracy_needs_them():
    numbers = {(c.target.name, c.dataset.name): c.dataset.num_prompts for c in rows("experiment=standin_full")}
    assert len(numbers) == 6
    assert numbers.pop(("opt-13.2m", "debian-de-en")) == 300
    assert numbers.pop(("opt-13.2m", "debian-synopsis")) == 600
    assert set(numbers.values()) == {160}
    assert {c.dataset.num_prompts for c in rows("experiment=standin_full", "dataset.num_prompts=5")} == {5}


def test_a_model_of_ones_own_has_a_name_and_a_path():
    (config,) = rows(
        "experiment=standin", "drafter=opt-25k", "target=opt-6m", "dataset=xsum", "target.path=/my/model",
        "target.name=mine",
    )  # fmt: skip
    assert (config.target.name, config.target.path) == ("mine", "/my/model")


def test_the_stand_ins_answer_to_the_papers_dataset_names():
    assert [c.dataset.name for c in rows("experiment=standin", "drafter=opt-25k", "target=opt-6m", "dataset=wmt")] == [
        "debian-de-en"
    ]


def test_own_structures_replace_the_tables():
    (config,) = rows(
        "experiment=standin", "drafter=opt-25k", "target=opt-6m", "dataset=xsum", "methods=[rsd_c]", "budgets=[12]",
        "structures={rsd_c:{12:[4-2,3-3]}}",
    )  # fmt: skip
    assert [point[:2] for point in points_of(config)] == [("ar", "0"), ("rsd_c", "4-2"), ("rsd_c", "3-3")]
