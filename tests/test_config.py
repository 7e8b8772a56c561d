"""Every config composes into its schema, and whatever is wrong on a command line is refused in one sentence."""

import dataclasses
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from diffrestorer.config.classes import follow_classes, model_classes, trained_classes
from diffrestorer.config.composition import (
    CONFIG_DIR,
    _flags_to_overrides,
    _instantiate,
    _settable,
    differences,
    help_text,
    load,
    run,
    save,
)
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.evaluating import EvaluateConfig, FiguresConfig
from diffrestorer.config.hardware_presets import detect_hardware
from diffrestorer.config.schema import (
    CHOICES,
    BaseConfig,
    BaselineConfig,
    DecoderConfig,
    MiniConfig,
    PrepareConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.config.synthesis_ranges import Jpeg, Noise, Snow, SnowLayer, Synthesis

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


def groups(root: str) -> list[str]:
    """The groups in a root file's defaults list."""
    defaults = yaml.safe_load((CONFIG_DIR / f"{root}.yaml").read_text()).get("defaults", [])
    return [name for entry in defaults if isinstance(entry, dict) for name in entry if not name.startswith("optional ")]


def applies(ablation: str, schema: type) -> bool:
    content = yaml.safe_load((CONFIG_DIR / "ablation" / f"{ablation}.yaml").read_text()) or {}
    return set(content) <= {field.name for field in dataclasses.fields(schema)}


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Every root file with every choice of its groups; `hardware`, which touches nothing the others do, by itself."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for root in SCHEMAS:
        choices = {group: [f"{group}={name}" for name in options(group)] for group in groups(root)}
        found.extend((root, (line,)) for line in choices.pop("hardware", []))
        found.extend((root, chosen) for chosen in product(*choices.values()))
    return found


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {key: value for name, branch in tree.items() for key, value in flat(branch, f"{prefix}{name}.").items()}
    return {prefix[:-1]: tree}


def test_every_root_has_a_schema_and_a_header() -> None:
    roots = {path.stem: path.read_text() for path in CONFIG_DIR.glob("*.yaml")}
    assert set(roots) == set(SCHEMAS)
    for root, text in roots.items():
        assert text.startswith("# "), f"{root}: no header"
        assert re.search(rf"^#   .*scripts/{root}\.py", text, re.MULTILINE), f"{root}: the header gives no command"


@pytest.mark.parametrize(("root", "chosen"), combinations(), ids=lambda value: str(value))
def test_every_combination_of_groups_composes(root: str, chosen: tuple[str, ...]) -> None:
    schema = SCHEMAS[root]
    ablations = [line.split("=")[1] for line in chosen if line.startswith("ablation=")]
    if all(applies(ablation, schema) for ablation in ablations):
        config = load(root, schema, chosen)
        assert type(config) is schema
        for line in chosen:
            group, name = line.split("=")
            if group == "hardware":
                assert config.train.hardware.name == (detect_hardware().preset if name == "auto" else name)
            elif group != "ablation":
                value = getattr(config, group)
                assert getattr(value, "name", value) == ("photos" if name == "broad" else name)  # read as photos
    else:
        with pytest.raises(ValueError, match=f"not in '{schema.__name__}'"):
            load(root, schema, chosen)


def test_groups_are_found() -> None:
    """What the test above stands on."""
    assert groups("train_stage1") == ["model", "data", "ablation", "hardware"]
    assert options("model") == ["mini", "sd15"]
    assert [name for name in options("ablation") if not applies(name, DecoderConfig)] == [
        "no_aux_loss",
        "no_cd",
        "no_deg_loss",
        "no_dmb_cd",
    ]


@pytest.mark.parametrize(
    ("ablation", "expected"),
    {
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
    }.items(),
)
def test_an_ablation_changes_what_it_names(ablation: str, expected: list[str], tmp_path: Path) -> None:
    save(load("train_stage1", Stage1Config), tmp_path / "config.yaml")
    changed = load("train_stage1", Stage1Config, [f"ablation={ablation}"])
    assert differences(changed, tmp_path / "config.yaml", ()) == expected


def test_every_ablation_is_tested_above() -> None:
    names = next(m for m in test_an_ablation_changes_what_it_names.pytestmark if m.name == "parametrize").args[1]
    assert {name for name, _ in names} == set(options("ablation"))


def test_bare_scripts_are_the_paper_s_run() -> None:
    stage1, decoder = load("train_stage1", Stage1Config), load("train_decoder", DecoderConfig)
    assert (stage1.model.name, stage1.data.name, stage1.data.size) == ("sd15", "paper", 512)
    assert stage1.data.degradations == list(DEGRADATIONS)
    assert (stage1.train.max_steps, stage1.train.global_batch_size, stage1.train.lr) == (500_000, 16, 1e-5)
    assert (decoder.train.max_steps, decoder.train.global_batch_size, decoder.train.lr) == (500_000, 4, 1e-5)
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
    assert load("evaluate", EvaluateConfig, ["model=some/folder"]).model == "some/folder", "no group there"


@pytest.mark.parametrize(
    ("override", "message"),
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
        ("data.degradations=[rain,rian]", "data.degradations=rian is not valid, did you mean 'rain'?"),
        ("data.degradations=[dust]", "(data.classes=[...] gives a model classes of its own)"),
        ("data.degradations=[]", "data.degradations is empty"),
        ("data.classes=[]", "data.classes is empty"),
        ("data.classes=[noise,Sandstorm]", "data.classes=Sandstorm is not valid: a class is named with"),
        ("data.classes=[blur+noise]", "data.classes=blur+noise is not valid"),
        ("data.classes=[noise,rain,noise]", "data.classes names noise twice"),
        ("data.classes=noise", "data.classes"),
        ("data.synthesis.noise.sigma=[50,10]", "synthesis.noise.sigma=[50.0, 10.0] is reversed: write [10.0,50.0]"),
        ("data.synthesis.noise.sigma=[-1,10]", "synthesis.noise.sigma=[-1.0, 10.0] is not possible"),
        ("data.synthesis.noise.sigma=10", "data.synthesis.noise.sigma"),
        ("data.synthesis.jpeg.quality=[1.5,3]", "data.synthesis.jpeg.quality"),
        ("data.synthesis.noise.sgma=[1,2]", "did you mean 'data.synthesis.noise.sigma'?"),
        ("data.synthesis.rain.layers=[{densty:[1,2]}]", "Key 'densty' not in 'RainLayer'"),
        ("train.max_steps=abc", "train.max_steps: Value 'abc'"),
        ("train.max_steps=1.5", "train.max_steps: Value '1.5'"),
        ("train.lr=fast", "train.lr: Value 'fast'"),
        ("model.refine=maybe", "model.refine: Value 'maybe' is not a valid bool"),
        ("data.degradations=rain", "data.degradations"),
        ("output_dir=null", "output_dir"),
        ("train=5", "train"),
        ("train.max_steps", "'train.max_steps' is not of the form key=value"),
        ("+train.max_steps=3", "is not of the form key=value"),
        ("~train", "is not of the form key=value"),
        ("output_dir=runs/lr=1", "output_dir='runs/lr=1'"),
        ("seed=1,2", "'seed=1,2' gives several values; a list is written seed=[1,2]"),
        ("z0=hq", "unknown key 'z0'"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        load("train_stage1", Stage1Config, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_are_keys_and_their_defaults_are_among_them() -> None:
    known: dict[str, Any] = {}
    for root, schema in SCHEMAS.items():
        known |= flat(dataclasses.asdict(load(root, schema)))
    assert set(CHOICES) <= set(known)
    for schema in SCHEMAS.values():
        defaults = flat(OmegaConf.to_container(OmegaConf.structured(schema)))
        for key in set(CHOICES) & set(defaults):
            assert defaults[key] in (None, *CHOICES[key]), f"{schema.__name__}.{key}"


def test_a_quoted_value_may_hold_anything() -> None:
    config = load("train_stage1", Stage1Config, ["output_dir='runs/lr=1 (b)'"])
    assert config.output_dir == "runs/lr=1 (b)"


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--suite", "mixed"], ["suite=mixed"]),
        (["--suite=mixed", "seed=1"], ["suite=mixed", "seed=1"]),
        (["--method", "a,b", "--suite", "demo"], ["method=[a,b]", "suite=demo"]),
        (["method=a"], ["method=[a]"]),
        (["method=[a,b]"], ["method=[a,b]"]),
        (["--method", "a,mine=out/x"], ["method=[a,'mine=out/x']"]),
        (["metrics=psnr,ssim"], ["metrics=[psnr,ssim]"]),
        (["data.degradations=rain,jpeg"], ["data.degradations=[rain,jpeg]"]),
        (["seed=1"], ["seed=1"]),
    ],
)
def test_flags_become_overrides(arguments: list[str], overrides: list[str]) -> None:
    assert _flags_to_overrides(arguments, ("suite", "method")) == overrides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suit", "mixed"], "unknown option --suit, did you mean 'suite'?"),
        (["--seed", "1"], "unknown option --seed"),
        (["--suite"], "--suite needs a value"),
        (["--suite=", "seed=1"], "--suite needs a value"),
        (["--suite", "--method", "a"], "--suite needs a value"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        _flags_to_overrides(arguments, ("suite", "method"))


def test_a_method_that_names_a_group_is_no_list() -> None:
    assert _flags_to_overrides(["method=nafnet"], (), ("method",)) == ["method=nafnet"]


def test_a_size_changes_what_its_file_says_and_the_command_line_wins() -> None:
    paper, mini, own = (
        load("train_baseline", BaselineConfig, ["method=promptir", *more])
        for more in ([], ["size=mini"], ["size=mini", "network.dim=24", "train.max_steps=5"])
    )
    assert (paper.size, paper.network["dim"], paper.train.max_steps) == ("paper", 48, 500_000)
    assert (mini.size, mini.network["dim"], mini.network["num_prompts"]) == ("mini", 16, 5)
    assert mini.data.size == 96
    assert (own.network["dim"], own.train.max_steps) == (24, 5)


def test_flagged_lists_arrive() -> None:
    overrides = _flags_to_overrides(["--method", "degraded,mine=out/my x"], ("suite", "method"))
    assert load("evaluate", EvaluateConfig, overrides).method == ["degraded", "mine=out/my x"]


@pytest.mark.parametrize("root", SCHEMAS)
def test_help_lists_every_key_and_group(root: str) -> None:
    text = help_text(root, SCHEMAS[root])
    shown = dict(line.strip().split("=", 1) for line in text.splitlines() if line.startswith("  ") and "=" in line)
    config = load(root, SCHEMAS[root])
    for key, value in flat(OmegaConf.to_container(OmegaConf.structured(config))).items():
        assert shown.get(key) == ("null" if value is None else str(value)), key
    for group in groups(root):
        assert f"{group}={'|'.join(options(group))}" in text
    header = (CONFIG_DIR / f"{root}.yaml").read_text().splitlines()[0]
    assert text.startswith(header.removeprefix("# "))
    for field in dataclasses.fields(SCHEMAS[root]):
        assert re.search(rf"^  {field.name}[.=]", text, re.MULTILINE), field.name


def test_differences_name_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = load("train_stage1", Stage1Config, ["model=mini", "data=photos"])
    save(config, path)
    assert differences(config, path, ()) == []
    assert differences(load("train_stage1", Stage1Config, ["model=mini", "data=photos"]), path, ()) == []
    other = load(
        "train_stage1",
        Stage1Config,
        ["model=mini", "data=photos", "seed=5", "train.num_workers=9", "model.unet.layers_per_block=2"],
    )
    assert differences(other, path, ("train.num_workers",)) == ["model.unet.layers_per_block: 1 -> 2", "seed: 0 -> 5"]
    assert "train.num_workers: 4 -> 9" in differences(other, path, ())
    assert _instantiate(OmegaConf.merge(_settable(Stage1Config), OmegaConf.load(path))) == config


def test_a_file_from_before_a_key_existed_means_its_default(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    overrides = ["model=mini", "data=photos"]
    save(load("train_stage1", Stage1Config, overrides), path)
    older = OmegaConf.load(path)
    del older["data"]["synthesis"]
    OmegaConf.save(older, path)
    assert differences(load("train_stage1", Stage1Config, overrides), path, ()) == []
    changed = load("train_stage1", Stage1Config, [*overrides, "data.synthesis.noise.sigma=[10,50]"])
    assert differences(changed, path, ()) == ["data.synthesis.noise.sigma: [50.0, 50.0] -> [10.0, 50.0]"]


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


def test_run_hands_over_the_typed_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[EvaluateConfig] = []
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--suite", "mixed", "method=a,b", "steps=3"])
    run("evaluate", EvaluateConfig, seen.append, flags=("suite", "method"))
    assert (seen[0].suite, seen[0].method, seen[0].steps) == ("mixed", ["a", "b"], 3)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--help"])
    run("evaluate", EvaluateConfig, seen.append, flags=("suite", "method"))
    assert len(seen) == 1, "--help runs nothing"
    assert "steps=null" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["stepz=3"], ["--nothing"], ["steps=many"], []])
def test_run_ends_with_one_sentence_and_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: EvaluateConfig) -> None:
        raise ValueError("there is nothing to restore")

    monkeypatch.setattr(sys, "argv", ["scripts/evaluate.py", *arguments])
    with pytest.raises(SystemExit) as end:
        run("evaluate", EvaluateConfig, main)
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("evaluate.py: ")
    assert output.err.count("\n") == 1
    assert not output.out


def test_loading_needs_no_torch() -> None:
    """A typo is refused at once, not after ten seconds of imports."""
    import subprocess

    program = (
        "import sys, diffrestorer.config.composition; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_classes_are_the_paper_s_eight_unless_named() -> None:
    """Every data file leaves both keys open; what is trained on is then named in the resolved configuration."""
    for name in options("data"):
        content = yaml.safe_load((CONFIG_DIR / "data" / f"{name}.yaml").read_text())
        assert content["classes"] is content["degradations"] is None
        data = load("train_stage1", Stage1Config, [f"data={name}"]).data
        assert model_classes(data) == DEGRADATIONS
        assert (data.classes, data.degradations) == (None, list(DEGRADATIONS))


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
    assert follow_classes(unset, DEGRADATIONS, "mini") == replace(unset, degradations=list(DEGRADATIONS))
    followed = follow_classes(unset, known, "DIR")
    assert model_classes(followed) == trained_classes(followed) == known

    same = load("train_decoder", DecoderConfig, ["data.classes=[noise,sandstorm,clean]"]).data
    assert follow_classes(same, known, "DIR") == followed
    with pytest.raises(ValueError, match=r"data\.classes=\[noise,sandstorm,clean\] differ .* of DIR, \[noise,rain\]"):
        follow_classes(same, ("noise", "rain"), "DIR")

    fewer = load("train_decoder", DecoderConfig, ["data.degradations=[sandstorm]"]).data
    assert trained_classes(follow_classes(fewer, known, "DIR")) == ("sandstorm",)
    with pytest.raises(ValueError, match=r"sandstorm is not valid, did you mean .* choose from noise, .* jpeg$"):
        follow_classes(fewer, DEGRADATIONS, "DIR")
