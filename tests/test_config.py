"""Every config composes into its schema, and whatever is wrong on a command line is refused in one sentence."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf
from soaking import some_now

from diffrestorer.cli.commands import COMMANDS
from diffrestorer.config.classes import follow_classes, model_classes, trained_classes
from diffrestorer.config.composition import (
    CONFIG_DIR,
    differences,
    groups_of,
    help_text,
    load,
    run,
    save,
)
from diffrestorer.config.constructors import constructor_arguments
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.evaluating import EvaluateConfig, FiguresConfig
from diffrestorer.config.hardware_presets import detect_hardware
from diffrestorer.config.help_page import field_texts, flatten
from diffrestorer.config.options import Limits, check_limits, limits_of
from diffrestorer.config.overrides import keys_of, read_command_line, type_of_key
from diffrestorer.config.schema import (
    BaseConfig,
    BaselineConfig,
    DecoderConfig,
    MiniConfig,
    PrepareConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.config.synthesis_presets import named_synthesis
from diffrestorer.config.synthesis_ranges import Jpeg, Noise, Parameters, Snow, SnowLayer, Synthesis
from diffrestorer.config.typed_trees import open_tree, to_dataclass

ROOT = Path(__file__).resolve().parents[1]

SCHEMAS: dict[str, type] = {
    "train_base": BaseConfig,
    "train_stage1": Stage1Config,
    "train_decoder": DecoderConfig,
    "train_student": StudentConfig,
    "train_mini": MiniConfig,
    "train_baseline": BaselineConfig,
    "evaluate": EvaluateConfig,
    "make_figures": FiguresConfig,
    "prepare_data": PrepareConfig,
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def applies(ablation: str, schema: type) -> bool:
    content = yaml.safe_load((CONFIG_DIR / "ablation" / f"{ablation}.yaml").read_text()) or {}
    return set(content) <= {field.name for field in dataclasses.fields(schema)}


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Every root file with every choice of its groups; what changes networks beside every model or method it knows."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for root in SCHEMAS:
        choices = {
            group: [f"{group}={name}" for name in names] for group, names in groups_of(root).items()
        }
        found.extend((root, (line,)) for line in choices.pop("hardware", []))
        networks = choices.pop("model", None) or choices.pop("method", None) or []
        found.extend((root, (line,)) for line in networks)
        for group, others in choices.items():
            beside = networks[:1] if group == "data" else networks  # data files name no network's key
            found.extend((root, chosen) for chosen in product(beside, others))
    return found


def dataclasses_in(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """A schema and every dataclass inside it, beside the beginning of its keys."""
    yield prefix, schema
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(item.type):
            yield from dataclasses_in(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]


def numeric_fields() -> Iterator[tuple[str, str, type, "dataclasses.Field[Any]"]]:
    """Every field of every schema that holds numbers: root, key, its dataclass, the field."""
    for root, schema in SCHEMAS.items():
        for prefix, part in dataclasses_in(schema):
            hints = get_type_hints(part)
            for item in dataclasses.fields(part):
                if {int, float} & set(kinds(hints[item.name])) and not issubclass(part, Parameters):
                    yield root, f"{prefix}{item.name}", part, item


def kinds(hint: Any) -> Iterator[Any]:
    """The types that a type is made of."""
    yield hint
    for inner in get_args(hint):
        yield from kinds(inner)


def test_every_root_has_a_schema_and_a_header() -> None:
    roots = {path.stem: path.read_text() for path in CONFIG_DIR.glob("*.yaml")}
    names = {command.root: name for name, command in COMMANDS.items()}
    assert set(roots) == set(SCHEMAS)
    for root, text in roots.items():
        assert text.startswith("# "), f"{root}: no header"
        assert re.search(rf"^#   .*diffrestorer {names[root]}\b", text, re.MULTILINE), (
            f"{root}: the header gives no command"
        )


@pytest.mark.parametrize("name", ["ours", "heldout"])
def test_prepared_images_are_degraded_as_open_photos_are(name: str) -> None:
    """`prepare synthesis=NAME` and `evaluate synthesis=NAME` are the same models."""
    config = load("prepare_data", PrepareConfig, [f"synthesis={name}"])
    assert config.synthesis == named_synthesis(name)


@pytest.mark.parametrize(("root", "chosen"), some_now(combinations(), 10), ids=lambda value: str(value))
def test_every_combination_of_groups_composes(root: str, chosen: tuple[str, ...]) -> None:
    schema = SCHEMAS[root]
    ablations = [line.split("=")[1] for line in chosen if line.startswith("ablation=")]
    if all(applies(ablation, schema) for ablation in ablations):
        config = load(root, schema, chosen)
        assert type(config) is schema
        for line in chosen:
            group, name = line.split("=")
            if group == "hardware":
                assert config.train.hardware.name == (
                    detect_hardware().preset if name == "auto" else name
                )
            elif group != "ablation":
                value = getattr(config, group)
                assert getattr(value, "name", value) == (
                    "photos" if name == "broad" else name
                )  # read as photos
    else:
        with pytest.raises(ValueError, match=f"not in '{schema.__name__}'"):
            load(root, schema, chosen)


def test_groups_are_found() -> None:
    """What the test above stands on."""
    assert list(groups_of("train_stage1")) == ["model", "data", "ablation", "hardware"]
    assert groups_of("evaluate") == {}
    assert options("model") == ["mini", "sd15"]
    assert [name for name in options("ablation") if not applies(name, DecoderConfig)] == [
        "no_aux_loss",
        "no_cd",
        "no_deg_loss",
        "no_dmb_cd",
    ]


ABLATIONS: dict[str, list[str]] = {
    "none": [],
    "no_semantic": ["model.prompt_processor.semantic: True -> False"],
    "no_degradation": ["model.prompt_processor.degradation: True -> False"],
    "no_dmb": ["model.control_encoder.modulate: True -> False"],
    "no_cd": ["lambda_rec: 1.0 -> 0.0"],
    "no_dmb_cd": ["lambda_rec: 1.0 -> 0.0", "model.control_encoder.modulate: True -> False"],
    "no_deg_loss": ["lambda_deg: 1.0 -> 0.0"],
    "no_aux_loss": ["lambda_deg: 1.0 -> 0.0", "lambda_rec: 1.0 -> 0.0"],
    "no_drb": ["model.refine: True -> False"],
    "consistency_decoder": [],
}
"""Ablation -> the keys that it changes."""


@pytest.mark.parametrize(
    ("ablation", "expected"),
    some_now(ABLATIONS.items(), 4),
)
def test_an_ablation_changes_what_it_names(ablation: str, expected: list[str], tmp_path: Path) -> None:
    save(load("train_stage1", Stage1Config), tmp_path / "config.yaml")
    changed = load("train_stage1", Stage1Config, [f"ablation={ablation}"])
    assert differences(changed, tmp_path / "config.yaml", ()) == expected


def test_every_ablation_is_tested_above() -> None:
    assert ABLATIONS.keys() == set(options("ablation"))


def test_bare_scripts_are_the_paper_s_run() -> None:
    stage1, decoder = load("train_stage1", Stage1Config), load("train_decoder", DecoderConfig)
    assert (stage1.model.name, stage1.data.name, stage1.data.size) == ("sd15", "paper", 512)
    assert stage1.data.degradations == list(DEGRADATIONS)
    assert (stage1.train.max_steps, stage1.train.global_batch_size, stage1.train.lr) == (
        500_000,
        16,
        1e-5,
    )
    assert (decoder.train.max_steps, decoder.train.global_batch_size, decoder.train.lr) == (
        500_000,
        4,
        1e-5,
    )
    assert (stage1.model.train_unet, decoder.z0, decoder.model.perceptual) == ("none", "hq", "vgg19")
    assert stage1.model.scheduler["prediction_type"] == "epsilon"
    assert "latent_channels" not in stage1.model.control_encoder


def test_overrides_are_typed() -> None:
    overrides = [
        "model=mini",
        "train.max_steps=7",
        "train.lr=1e-3",
        "train.max_grad_norm=null",
        "output_dir=a/b",
        "model.refine=false",
        "model.unet.block_out_channels=[8,8,16]",
        "data.degradations=[rain,jpeg]",
    ]
    config = load("train_stage1", Stage1Config, overrides)
    assert config.train.max_steps == 7
    assert config.train.lr == 1e-3
    assert config.train.max_grad_norm is None
    assert config.output_dir == "a/b"
    assert config.model.refine is False
    assert config.model.unet["block_out_channels"] == [8, 8, 16]
    assert config.data.degradations == ["rain", "jpeg"]
    assert config.model.name == "mini"
    assert load("evaluate", EvaluateConfig, ["model=some/folder"]).model == "some/folder", (
        "no group there"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    some_now(
        [
            ("train.max_stepz=3", "unknown key 'train.max_stepz', did you mean 'train.max_steps'?"),
            ("modl=mini", "unknown key 'modl', did you mean 'model'?"),
            ("model.unet.block_out_chanels=[1]", "did you mean 'model.unet.block_out_channels'?"),
            ("train={max_stepz: 3}", "Key 'max_stepz' not in 'TrainConfig'"),
            ("model=mni", "model=mni does not exist, did you mean 'mini'?; choose one of mini, sd15"),
            ("ablation=no_semantics", "did you mean 'no_semantic'?"),
            ("data=photo", "did you mean 'photos'?"),
            ("train.mixed_precision=bf61", "did you mean 'bf16'?; choose from no, bf16"),
            ("model.train_unet=some", "choose from none, cross_attention, all"),
            (
                "data.degradations=[rain,rian]",
                "data.degradations=rian is not valid, did you mean 'rain'?",
            ),
            ("data.degradations=[dust]", "(data.classes=[...] gives a model classes of its own)"),
            ("data.degradations=[]", "data.degradations is empty"),
            ("data.classes=[]", "data.classes is empty"),
            (
                "data.classes=[noise,Sandstorm]",
                "data.classes=Sandstorm is not valid: a class is named with",
            ),
            ("data.classes=[blur+noise]", "data.classes=blur+noise is not valid"),
            ("data.classes=[noise,rain,noise]", "data.classes names noise twice"),
            (
                "data.synthesis.noise.sigma=[50,10]",
                "synthesis.noise.sigma=[50.0, 10.0] is reversed: write [10.0,50.0]",
            ),
            (
                "data.synthesis.noise.sigma=[-1,10]",
                "synthesis.noise.sigma=[-1.0, 10.0] is not possible",
            ),
            ("data.synthesis.noise.sigma=10", "data.synthesis.noise.sigma"),
            ("data.synthesis.jpeg.quality=[1.5,3]", "data.synthesis.jpeg.quality"),
            ("data.synthesis.noise.sgma=[1,2]", "did you mean 'data.synthesis.noise.sigma'?"),
            ("data.synthesis.rain.layers=[{densty:[1,2]}]", "Key 'densty' not in 'RainLayer'"),
            ("train.max_steps=abc", "train.max_steps: Value 'abc'"),
            ("train.max_steps=1.5", "train.max_steps: Value '1.5'"),
            ("train.lr=fast", "train.lr: Value 'fast'"),
            ("model.refine=maybe", "model.refine: Value 'maybe' is not a valid bool"),
            ("output_dir=null", "output_dir"),
            ("train=5", "train"),
            ("train.max_steps", "'train.max_steps' is not of the form key=value"),
            (
                "+train.max_steps=3",
                "train.max_steps has a value already: write train.max_steps=VALUE, without the +",
            ),
            ("~train.max_steps", "train.max_steps: TrainConfig (DictConfig) does not support deletion"),
            (
                "seed=1,2",
                "'seed=1,2' gives several values; a list is written seed=[1,2], a sweep needs -m",
            ),
            ("trian.max_steps=1", "unknown key 'trian.max_steps', did you mean 'train.max_steps'?"),
            ("+train.max_stepz=3", "unknown key 'train.max_stepz', did you mean 'train.max_steps'?"),
            (
                "model.unet.dropout=0.1",
                "model.unet.dropout is not set by configs/: write +model.unet.dropout=0.1 to add it",
            ),
            (
                "+model.unet.dropuot=0.1",
                "did you mean 'model.unet.dropout'?; UNet2DConditionModel has no argument",
            ),
            ("+model.vae.latent_chanels=4", "did you mean 'model.vae.latent_channels'?"),
            ("+model.scheduler.beta_strat=0.1", "did you mean 'model.scheduler.beta_start'?"),
            ("+model.scheduler.solver_order=3", "DDPMScheduler has no argument of that name"),
            (
                "+model.image_encoder.vision_cfg.timm_name=x",
                "did you mean 'model.image_encoder.vision_cfg.timm_model_name'?",
            ),
            (
                "model.prompt_processor.semantic_dim=foo",
                "semantic_dim=foo is not possible: PromptProcessor takes int here",
            ),
            ("model.unet.block_out_channels=[a,b]", "UNet2DConditionModel takes tuple[int, ...] here"),
            ("model.control_encoder.modulate=3", "ControlEncoder takes bool here"),
            ("z0=hq", "unknown key 'z0'"),
        ],
        16,
    ),
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        load("train_stage1", Stage1Config, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "key", "part", "item"),
    numeric_fields(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_number_has_a_range_and_what_lies_outside_is_refused(
    root: str, key: str, part: type, item: "dataclasses.Field[Any]"
) -> None:
    limits = limits_of(item)
    assert limits is not None, f"{key} has no range"
    assert {limits.ge, limits.gt} != {None}, f"{key} has no lower bound"
    outside: list[float] = [float("nan"), float("inf"), -float("inf")]
    outside += [bound - 1 for bound in (limits.ge, limits.gt) if bound is not None]
    outside += [bound + 1 for bound in (limits.le, limits.lt) if bound is not None]
    outside += [bound for bound in (limits.gt, limits.lt) if bound is not None]

    kind = get_type_hints(part)[item.name]
    for value in outside:
        held: Any = (
            {0.5: value}
            if dict in kinds_of_origin(kind)
            else [value]
            if list in kinds_of_origin(kind)
            else value
        )
        with pytest.raises(ValueError, match=re.escape(f"{key}={value} is not possible: it has to be")):
            limits.check(key, value)
        with pytest.raises(ValueError, match=re.escape(f"{item.name}={value} is not possible")):
            check_limits(part, {item.name: held})


def kinds_of_origin(hint: Any) -> set[Any]:
    return {getattr(kind, "__origin__", None) for kind in kinds(hint)}


@pytest.mark.parametrize(
    ("root", "override"),
    some_now(
        [
            ("train_stage1", "train.log_every=0"),
            ("train_stage1", "train.checkpoint_every=0"),
            ("train_stage1", "train.sample_every=0"),
            ("train_stage1", "train.keep_checkpoints=-1"),
            ("train_stage1", "train.max_steps=0"),
            ("train_stage1", "seed=-1"),
            ("train_stage1", "data.size=8"),
            ("train_stage1", "data.size=100"),
            ("train_stage1", "train.lr=-1"),
            ("train_stage1", "train.lr_milestones={0.5: -1}"),
            ("train_baseline", "betas=[0.9,1.5]"),
            ("train_student", "tau=1000"),
            ("train_mini", "shares={stage1: -1.0}"),
            ("evaluate", "batch_size=0"),
            ("evaluate", "fid_floor=1"),
            ("prepare_data", "budget=0"),
        ],
        6,
    ),
)
def test_numbers_out_of_range_are_refused_on_the_command_line(root: str, override: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{re.escape(override.split('=')[0])}=.* is not possible: it has to be"
    ):
        load(root, SCHEMAS[root], [override])


def test_defaults_lie_within_their_limits() -> None:
    for schema in SCHEMAS.values():
        check_limits(schema, OmegaConf.to_container(OmegaConf.structured(schema)))  # type: ignore[arg-type]


def test_every_choice_is_accepted_and_others_are_refused_with_the_nearest() -> None:
    for schema in SCHEMAS.values():
        for _, part in dataclasses_in(schema):
            for item in dataclasses.fields(part):
                limits = limits_of(item) or Limits()
                for choice in limits.choices:
                    limits.check(item.name, choice)
                    with pytest.raises(ValueError, match=rf"is not valid, did you mean '{choice}'"):
                        limits.check(item.name, f"{choice}_")


TEXTS = (
    "photos (1)",
    "été",
    "a=b",
    "3.10",
    "1e3",
    "true",
    "it's",
    'say "no"',
    "a,b",
    "a: b",
    "[1]",
    "{x}",
    "a\\b\\",
    " b ",
    "@#%&*",
    "-1",
)


@pytest.mark.parametrize("text", some_now(TEXTS, 8))
def test_text_is_taken_as_typed(text: str) -> None:
    keys = [key for key in keys_of(Stage1Config) if type_of_key(Stage1Config, key) in (str, str | None)]
    free = [
        key
        for key in keys
        if key.rpartition(".")[2] in ("output_dir", "root", "base", "init", "cache_dir", "clip")
    ]
    assert len(free) == 8, free
    config = dataclasses.asdict(load("train_stage1", Stage1Config, [f"{key}={text}" for key in free]))
    assert {key: dict(flatten(config))[key] for key in free} == dict.fromkeys(free, text)


@pytest.mark.parametrize(
    "text",
    some_now((text for text in TEXTS if not set(text) & set(",'\"[{") and text.strip() == text), 4),
)
def test_text_in_lists_and_sweeps_is_taken_as_typed(text: str) -> None:
    for written in (f"method={text},b", f"method=[{text},b]"):
        assert load("evaluate", EvaluateConfig, [written]).method == [text, "b"]
    assert load("evaluate", EvaluateConfig, [f"method={text}"]).method == [text]


def test_a_text_in_a_list_may_hold_a_key_or_a_list() -> None:
    """As the keys of a stage of mini, whose lists stand in a mapping."""
    for written, read in {
        "[]": [],
        "[train.lr=5.0e-4]": ["train.lr=5.0e-4"],
        "[patch=128,data.classes=[rain,snow],seed=1]": [
            "patch=128",
            "data.classes=[rain,snow]",
            "seed=1",
        ],
        "['patch=128',\"seed=1\"]": ["patch=128", "seed=1"],
        "patch=128,seed=1": ["patch=128", "seed=1"],
    }.items():
        assert load("train_mini", MiniConfig, [f"stages.student={written}"]).stages["student"] == read
        assert load("train_mini", MiniConfig, [f"common={written}"]).common == read


def test_groups_of_one_script_hide_no_key_of_another() -> None:
    """`synthesis` is a group of prepare and a key of evaluate."""
    for _ in range(2):
        prepared = load("prepare_data", PrepareConfig, ["synthesis=heldout"])
        assert prepared.synthesis == named_synthesis("heldout")
        assert load("evaluate", EvaluateConfig, ["synthesis=heldout"]).synthesis == "heldout"


def test_null_and_quotes_keep_their_meaning() -> None:
    overrides = ["base=null", "data.root='runs/lr=1 (b)'", 'output_dir="null"', "init=${output_dir}/x"]
    config = load("train_stage1", Stage1Config, overrides)
    assert (config.base, config.data.root, config.output_dir, config.init) == (
        None,
        "runs/lr=1 (b)",
        "null",
        "null/x",
    )


@pytest.mark.parametrize(
    ("arguments", "options", "overrides"),
    [
        (["--suite", "mixed"], [], ["suite='mixed'"]),
        (["--suite=mixed", "seed=1"], [], ["suite='mixed'", "seed=1"]),
        (["--method", "a,b", "--suite", "demo"], [], ["method=['a','b']", "suite='demo'"]),
        (["method=a"], [], ["method=['a']"]),
        (["method=[a,b]"], [], ["method=['a','b']"]),
        (["--method", "a,mine=out/x"], [], ["method=['a','mine=out/x']"]),
        (["-m", "method=a,b"], ["-m"], ["method=['a'],['b']"]),
        (["seed=1,2", "--multirun", "suite=a,b"], ["--multirun"], ["seed=1,2", "suite='a','b'"]),
        (
            ["seed=1", "--cfg", "job", "--config-dir", "x", "steps=2"],
            ["--cfg", "job", "--config-dir", "x"],
            ["seed=1", "steps=2"],
        ),
        (["~seed", "+data.x=1"], [], ["~seed", "+data.x=1"]),
        (["--check"], [], ["check=true"]),
    ],
)
def test_words_become_options_and_overrides(
    arguments: list[str], options: list[str], overrides: list[str]
) -> None:
    line = read_command_line(arguments, EvaluateConfig, ("suite", "method"), "check")
    assert (line.options, line.overrides) == (options, overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suit", "mixed"], "unknown option --suit, did you mean 'suite'?"),
        (["--seed", "1"], "unknown option --seed"),
        (["--mutlirun", "seed=1,2"], "unknown option --mutlirun, did you mean 'multirun'?"),
        (["--suite"], "--suite needs a value"),
        (["--suite=", "seed=1"], "--suite needs a value"),
        (["--suite", "--method", "a"], "--suite needs a value"),
        (["mixed"], "'mixed' is not of the form key=value"),
    ],
)
def test_wrong_words_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_command_line(arguments, EvaluateConfig, ("suite", "method"))


def test_constructor_arguments_are_those_of_the_classes() -> None:
    """They are read from source code; here the classes themselves say them."""
    from diffrestorer.baselines.registry import BASELINES
    from diffrestorer.models.components import COMPONENTS

    for method, cls in BASELINES.items():
        found = constructor_arguments({"method": method})
        assert set(found["network"][1]) == set(cls._get_init_keys(cls)) - {"self"}, method
    for name in ("vae", "image_encoder", "prompt_processor", "unet", "control_encoder"):
        for cls in COMPONENTS[name]:
            found = constructor_arguments({"model": {f"{name}_class": cls.__name__}})
            assert set(found[f"model.{name}"][1]) == set(cls._get_init_keys(cls)) - {"self"}, name


def test_every_constructor_argument_can_be_set() -> None:
    """All of all components at once, each to its class's own default."""
    from diffusers import DDPMScheduler

    from diffrestorer.models.components import COMPONENTS

    classes = {f"{name}_class": known[0].__name__ for name, known in COMPONENTS.items()}
    expected = {}
    for name in ("vae", "image_encoder", "prompt_processor", "unet", "control_encoder", "scheduler"):
        cls = DDPMScheduler if name == "scheduler" else COMPONENTS[name][0]
        defaults = inspect.signature(cls.__init__).parameters
        for argument in constructor_arguments({"model": classes})[f"model.{name}"][1]:
            default = defaults[argument].default
            if default is not inspect.Parameter.empty:
                expected[f"{name}.{argument}"] = (
                    list(default) if isinstance(default, tuple) else default
                )
    assert len(expected) > 80
    overrides = [f"++model.{key}={json.dumps(value)}" for key, value in expected.items()]
    model = load("train_stage1", Stage1Config, overrides).model
    for key, value in expected.items():
        name, argument = key.split(".")
        assert getattr(model, name)[argument] == value, key


def test_a_size_changes_what_its_file_says_and_the_command_line_wins() -> None:
    paper, mini, own = (
        load("train_baseline", BaselineConfig, ["method=promptir", *more])
        for more in ([], ["size=mini"], ["size=mini", "network.dim=24", "train.max_steps=5"])
    )
    assert (paper.size, paper.network["dim"], paper.train.max_steps) == ("paper", 48, 500_000)
    assert (mini.size, mini.network["dim"], mini.network["num_prompts"]) == ("mini", 16, 5)
    assert mini.data.size == 96
    assert (own.network["dim"], own.train.max_steps) == (24, 5)


@pytest.mark.parametrize("root", some_now(SCHEMAS, 4))
def test_help_tells_every_key_and_group(root: str) -> None:
    """Each on a line of its own with its default; each field with its meaning and its limits."""
    text = help_text(root, SCHEMAS[root])
    lines = {
        line.strip().partition("=")[0]: line
        for line in text.splitlines()
        if line.startswith("  ") and "=" in line
    }
    config = load(root, SCHEMAS[root])
    for key, value in flatten(dataclasses.asdict(config)):  # type: ignore[arg-type]
        shown = "null" if value is None else str(value)
        assert f"{key}=auto" in lines[key] or f"{key}={shown[:45]}" in lines[key] or "." in key, key
    for prefix, part in dataclasses_in(SCHEMAS[root]):
        for item in dataclasses.fields(part):
            key, limits = f"{prefix}{item.name}", limits_of(item)
            if key in lines and not dataclasses.is_dataclass(item.type) and key not in groups_of(root):
                assert issubclass(part, Parameters) or field_texts(part)[item.name] in lines[key], key
                assert limits is None or limits.describe() in lines[key], key
    for group, names in groups_of(root).items():
        assert f"{group}={'|'.join(names)}" in text
    header = (CONFIG_DIR / f"{root}.yaml").read_text().splitlines()[0]
    assert text.startswith(header.removeprefix("# "))


def test_every_field_has_a_text() -> None:
    for schema in SCHEMAS.values():
        for _, part in dataclasses_in(schema):
            if not issubclass(part, Parameters):  # these fall back on the text of their class
                missing = {item.name for item in dataclasses.fields(part)} - set(field_texts(part))
                assert not missing, f"{part.__name__}: {missing}"


def test_differences_name_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = load("train_stage1", Stage1Config, ["model=mini", "data=photos"])
    save(config, path)
    assert differences(config, path, ()) == []
    assert (
        differences(load("train_stage1", Stage1Config, ["model=mini", "data=photos"]), path, ()) == []
    )
    other = load(
        "train_stage1",
        Stage1Config,
        ["model=mini", "data=photos", "seed=5", "train.num_workers=9", "model.unet.layers_per_block=2"],
    )
    assert differences(other, path, ("train.num_workers",)) == [
        "model.unet.layers_per_block: 1 -> 2",
        "seed: 0 -> 5",
    ]
    assert "train.num_workers: 4 -> 9" in differences(other, path, ())
    assert to_dataclass(OmegaConf.merge(open_tree(Stage1Config), OmegaConf.load(path))) == config


def test_a_file_from_before_a_key_existed_means_its_default(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    overrides = ["model=mini", "data=photos"]
    save(load("train_stage1", Stage1Config, overrides), path)
    older = OmegaConf.load(path)
    del older["data"]["synthesis"]
    OmegaConf.save(older, path)
    assert differences(load("train_stage1", Stage1Config, overrides), path, ()) == []
    changed = load("train_stage1", Stage1Config, [*overrides, "data.synthesis.noise.sigma=[10,50]"])
    assert differences(changed, path, ()) == [
        "data.synthesis.noise.sigma: [50.0, 50.0] -> [10.0, 50.0]"
    ]


def test_ranges_of_the_synthesis_are_keys() -> None:
    overrides = [
        "data.synthesis.noise.sigma=[10,50]",
        "data.synthesis.jpeg.quality=[5,40]",
        "data.synthesis.snow.layers=[{density:[1,2]},{radius:[3,4]}]",
    ]
    synthesis = load("train_stage1", Stage1Config, overrides).data.synthesis
    layers = (SnowLayer(density=(1.0, 2.0)), SnowLayer(radius=(3.0, 4.0)))
    expected = Synthesis(noise=Noise((10.0, 50.0)), jpeg=Jpeg((5, 40)), snow=Snow(layers=layers))
    assert synthesis == expected
    assert load("train_stage1", Stage1Config).data.synthesis == Synthesis()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a script's front with a command line in an empty folder; returns the configurations it hands over."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)

    def call(root: str, *arguments: str, flags: tuple[str, ...] = ()) -> list[Any]:
        seen: list[Any] = []
        monkeypatch.setattr(sys, "argv", [f"scripts/{root}.py", *arguments])
        run(root, SCHEMAS[root], seen.append, flags)
        return seen

    return call


def test_run_hands_over_the_typed_config(
    command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("--suite", "mixed", "method=a,b", "steps=3", "size=128", "model=x y")
    (config,) = command("evaluate", *arguments, flags=("suite", "method"))
    assert (config.suite, config.method, config.steps) == ("mixed", ["a", "b"], 3)
    assert (config.size, config.model) == (128, "x y"), "names of groups elsewhere"
    assert command("evaluate", "--help", flags=("suite", "method")) == []
    assert "steps=null" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "Hydra leaves nothing behind"


@pytest.mark.parametrize("root", some_now(SCHEMAS, 3))
def test_each_job_of_a_sweep_has_an_output_dir_of_its_own(
    root: str, command: Any, tmp_path: Path
) -> None:
    jobs = command(root, "seed=1,2", "-m")
    assert [job.seed for job in jobs] == [1, 2]
    if root == "prepare_data":  # its sets share an `out`
        return
    default = Path(jobs[0].output_dir).parent
    assert [job.output_dir for job in jobs] == [f"{default}/0", f"{default}/1"]
    assert str(default) == SCHEMAS[root]().output_dir


def test_jobs_of_a_sweep_may_be_named_by_their_overrides(command: Any) -> None:
    jobs = command(
        "train_stage1", "-m", "seed=3,4", "output_dir=a b", "hydra.sweep.subdir='seed ${seed}'"
    )
    assert [job.output_dir for job in jobs] == ["a b/seed 3", "a b/seed 4"]


def test_a_sweep_goes_over_groups_texts_and_lists(command: Any) -> None:
    jobs = command(
        "train_stage1",
        "-m",
        "model=mini,sd15",
        "data.root=a (1),b",
        "data.degradations=[rain],[noise,jpeg]",
    )
    assert [(job.model.name, job.data.root, job.data.degradations) for job in jobs] == [
        (model, root, classes)
        for model, root, classes in product(
            ("mini", "sd15"), ("a (1)", "b"), (["rain"], ["noise", "jpeg"])
        )
    ]


@pytest.mark.parametrize(
    ("script", "jobs", "message"),
    [
        ("train_stage1", "seed=1,-2", "seed=-2 is not possible: it has to be at least 0"),
        ("train_stage1", "data.degradations=[noise],[nois]", "data.degradations=nois is not valid"),
        ("train_baseline", "data.classes=[noise],[noise,noise]", "data.classes names noise twice"),
        ("train_base", "data.classes=[noise,clean],[Noise]", "data.classes=Noise is not valid"),
        ("train_student", "train.scale=paper,8gpu", "train.scale="),
    ],
)
def test_no_job_of_a_sweep_runs_where_one_is_wrong(
    script: str, jobs: str, message: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    with pytest.raises(SystemExit) as end:
        seen = command(script, "-m", jobs)
    assert (end.value.code, seen) == (2, [])
    assert capsys.readouterr().err.startswith(f"{script}.py: {message}")


def test_a_sweep_of_later_stages_leaves_the_classes_to_their_models(command: Any) -> None:
    jobs = command("train_decoder", "-m", "stage1=a", "data.degradations=[sandstorm],[rain]")
    assert [job.data.degradations for job in jobs] == [["sandstorm"], ["rain"]]


def test_cfg_prints_the_configuration_and_runs_nothing(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "+model.unet.dropout=0.1",
        "+model.image_encoder.vision_cfg.timm_model_name=x",
        "--cfg",
        "job",
    )
    assert command("train_stage1", *arguments) == []
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["unet"]["dropout"] == 0.1
    assert printed["model"]["image_encoder"]["vision_cfg"]["timm_model_name"] == "x"


def test_a_key_can_be_deleted_from_a_dictionary(command: Any) -> None:
    (config,) = command("train_stage1", "~model.unet.sample_size", "~ablation")
    assert "sample_size" not in config.model.unet


def test_configurations_of_one_s_own(command: Any, tmp_path: Path) -> None:
    """A root file that extends ours, and a file of a group, in --config-dir."""
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "holiday.yaml").write_text("name: photos\nroot: holiday (1)\n")
    (tmp_path / "own" / "small.yaml").write_text("defaults: [train_stage1, _self_]\nlambda_rec: 0.5\n")
    arguments = (
        "--config-dir",
        str(tmp_path / "own"),
        "--config-name",
        "small",
        "data=holiday",
        "seed=3",
    )
    (config,) = command("train_stage1", *arguments)
    assert (type(config), config.lambda_rec, config.data.root, config.seed) == (
        Stage1Config,
        0.5,
        "holiday (1)",
        3,
    )


def test_a_script_may_load_other_configurations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As train_mini.py does for its stages, within its own run of Hydra."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(sys, "argv", ["train_mini.py", "seed=3"])
    run(
        "train_mini",
        MiniConfig,
        lambda config: seen.append(load("train_decoder", DecoderConfig, [f"seed={config.seed}"])),
    )
    assert [config.seed for config in seen] == [3]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            NotADirectoryError(20, "Not a directory", "out/x"),
            2,
            "evaluate.py: out/x cannot be read or written (Not a dir",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "evaluate.py: a file cannot be read or written (No space left on",
        ),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=["folder", "disk", "Ctrl-C"],
)
def test_what_ends_a_script_is_one_sentence(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(config: EvaluateConfig) -> None:
        raise error

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["scripts/evaluate.py"])
    with pytest.raises(SystemExit) as end:
        run("evaluate", EvaluateConfig, main)
    assert end.value.code == status
    output = capsys.readouterr().err
    assert output.splitlines()[-1].startswith(said)
    assert "Traceback" not in output


@pytest.mark.parametrize("arguments", [["stepz=3"], ["--nothing"], ["steps=many"], ["steps=0"], []])
def test_run_ends_with_one_sentence_and_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: EvaluateConfig) -> None:
        raise ValueError("there is nothing to restore")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["scripts/evaluate.py", *arguments])
    with pytest.raises(SystemExit) as end:
        run("evaluate", EvaluateConfig, main)
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("evaluate.py: ")
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["trian.max_steps=1"], ["model.unet.dropout=x"], ["seed=-1"]]
)
def test_help_and_refusals_need_no_torch(arguments: list[str]) -> None:
    """A typo is refused at once, not after ten seconds of imports; on a machine with a GPU too."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['train_stage1.py', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_path('scripts/train_stage1.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2\n"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_classes_are_the_paper_s_eight_unless_named() -> None:
    """Every data file leaves both keys open; what is trained on is then named in the resolved configuration."""
    for name in options("data"):
        content = yaml.safe_load((CONFIG_DIR / "data" / f"{name}.yaml").read_text())
        assert content["classes"] is content["degradations"] is None
        data = load("train_stage1", Stage1Config, [f"data={name}"]).data
        assert model_classes(data) == DEGRADATIONS
        named = None if name == "pairs" else list(DEGRADATIONS)  # of pairs the folders tell, later
        assert (data.classes, data.degradations) == (None, named)


def test_own_classes_are_all_trained_on_unless_fewer_are_named() -> None:
    own = "data.classes=[noise,sandstorm,clean]"
    data = load("train_stage1", Stage1Config, [own]).data
    assert model_classes(data) == trained_classes(data) == ("noise", "sandstorm", "clean")
    data = load("train_stage1", Stage1Config, [own, "data.degradations=[clean,noise,clean]"]).data
    assert model_classes(data) == ("noise", "sandstorm", "clean")
    assert trained_classes(data) == ("clean", "noise", "clean")


def test_a_run_from_before_classes_existed_resumes(tmp_path: Path) -> None:
    """Its saved configuration has no `data.classes` and names the eight."""
    now = load("train_stage1", Stage1Config)
    save(now, tmp_path / "config.yaml")
    before = OmegaConf.load(tmp_path / "config.yaml")
    del before.data["classes"]
    OmegaConf.save(before, tmp_path / "config.yaml")
    assert differences(now, tmp_path / "config.yaml", ()) == []
    own = load("train_stage1", Stage1Config, ["data.classes=[noise,clean]"])
    changed = differences(own, tmp_path / "config.yaml", ())
    assert [line.split(":")[0] for line in changed] == ["data.classes", "data.degradations"]


def test_a_later_stage_takes_the_classes_of_its_model() -> None:
    known = ("noise", "sandstorm", "clean")
    unset = load("train_decoder", DecoderConfig).data
    assert (unset.classes, unset.degradations) == (None, None)
    assert follow_classes(unset, DEGRADATIONS, "mini") == replace(
        unset, degradations=list(DEGRADATIONS)
    )
    followed = follow_classes(unset, known, "DIR")
    assert model_classes(followed) == trained_classes(followed) == known

    same = load("train_decoder", DecoderConfig, ["data.classes=[noise,sandstorm,clean]"]).data
    assert follow_classes(same, known, "DIR") == followed
    with pytest.raises(
        ValueError, match=r"data\.classes=\[noise,sandstorm,clean\] differ .* of DIR, \[noise,rain\]"
    ):
        follow_classes(same, ("noise", "rain"), "DIR")

    fewer = load("train_decoder", DecoderConfig, ["data.degradations=[sandstorm]"]).data
    assert trained_classes(follow_classes(fewer, known, "DIR")) == ("sandstorm",)
    with pytest.raises(
        ValueError, match=r"sandstorm is not valid, did you mean .* choose from noise, .* jpeg$"
    ):
        follow_classes(fewer, DEGRADATIONS, "DIR")
