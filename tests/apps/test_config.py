"""Every configuration that can be named composes, and every command explains itself without loading torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from lightning_mvp.apps import runtime, values
from lightning_mvp.apps.compare import build_settings
from lightning_mvp.apps.runtime import threads_of, trainer_options, training_of
from lightning_mvp.fitting.fit import make_trainer
from lightning_mvp.training.optimizer import require_optim

CONF = Path(str(files("lightning_mvp.conf")))
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "cifar100"
ROOTS = ("pretrain", "prune", "vote", "compare", "export")
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and not folder.name.startswith("_")
}
# A launcher of a package that only `make test-more` installs.
OPTIONAL = {"ray": "ray"}
GROUPS["launcher"] = [name for name in GROUPS["launcher"] if name not in OPTIONAL or find_spec(OPTIONAL[name])]
INTO = {"strategy": "trainer", "augment": "data"}  # groups whose options fill another one
USES = {
    "pretrain": set(GROUPS) - {"vote"},
    "prune": set(GROUPS) - {"vote"},
    "vote": set(GROUPS) - {"pruning"},
    "compare": set(GROUPS),
    "export": {"paths"},
}


def rows_of(root: str) -> list[dict[str, str]]:
    """Choices that together name every option of every group: the n-th takes each group's n-th option, in turn."""
    groups = {group: GROUPS[group] for group in sorted(USES[root] - {"experiment"})}
    longest = max(map(len, groups.values()))
    return [{group: options[row % len(options)] for group, options in groups.items()} for row in range(longest)]


def compose_for(root: str, *overrides: str) -> dict[str, Any]:
    """The configuration as a command gets it, interpolations resolved."""
    with initialize_config_module("lightning_mvp.conf", version_base="1.3", job_name=f"mvp-{root}"):
        config = compose(root, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def own_keys(group: str, option: str) -> set[str]:
    """What an option's file sets."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(content, dict)
    return {str(key) for key in content} - {"defaults"}


def test_the_groups_are_those_of_the_design() -> None:
    expected = {"backbone", "data", "split", "pruning", "vote", "optim", "trainer", "strategy", "logger", "experiment"}
    assert expected | {"paths", "launcher", "augment", "callbacks"} == set(GROUPS)


@pytest.mark.parametrize("root", ROOTS)
def test_each_root_composes_with_each_option_of_each_group(root: str) -> None:
    for choices in rows_of(root):
        composed = compose_for(root, *(f"{group}={option}" for group, option in choices.items()))
        for group, option in choices.items():
            if group != "launcher":  # Hydra's own
                assert own_keys(group, option) <= set(composed[INTO.get(group, group)]), f"{group}={option}"


def with_parents(option: str) -> Any:
    """An experiment with those that it builds on."""
    own = OmegaConf.load(CONF / "experiment" / f"{option}.yaml")
    for parent in (name for name in own.defaults if isinstance(name, str) and name != "_self_"):
        own = OmegaConf.merge(with_parents(parent), own)
    return own


@pytest.mark.parametrize("option", GROUPS["experiment"])
def test_each_experiment_composes(option: str) -> None:
    own = with_parents(option)
    chosen = compose_for("compare", f"experiment={option}", "data.root=nowhere")
    assert (chosen["steps"], chosen["note"]) == (own.steps, own.note)
    assert chosen["pruning"]["pruning_ratio"] == own.get("pruning", {}).get("pruning_ratio", 0.7)
    assert build_settings(OmegaConf.create(chosen)).compared(), "its methods, trials and tuned settings are sound"


@pytest.mark.parametrize("root", ROOTS)
def test_help_shows_groups_and_an_example_without_importing_torch(root: str) -> None:
    script = (
        f"import sys; sys.argv[1:] = ['--help']\nimport lightning_mvp.apps.{root} as app\n"
        "try:\n    app.main()\nfinally:\n    heavy = {'torch', 'timm', 'lightning', 'matplotlib'} & set(sys.modules)\n"
        "    print('heavy imports:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"Example:  mvp-{root} " in done.stdout
    for group in USES[root] - {"experiment", "paths"}:
        assert f"{group}: {GROUPS[group][0]}" in done.stdout, group
        assert root == "export" or re.search(rf"^  {group} {{2,}}\w", done.stdout, re.M), f"{group} in a line"
    assert done.stdout.rstrip().endswith("heavy imports: []")


def test_pre_training_has_a_learning_rate_of_its_optimizer() -> None:
    default, adamw = compose_for("pretrain")["optim"], compose_for("pretrain", "optim=adamw")["optim"]
    assert default == {**compose_for("prune")["optim"], "learning_rate": 0.2}
    assert adamw == compose_for("prune", "optim=adamw")["optim"]
    assert compose_for("compare", "optim=adamw")["pretrain"]["learning_rate"] is None


SGD = {"learning_rate": 0.05, "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "onecycle"}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ((), SGD),
        (("optim=sgd",), SGD),
        (("optim=adamw",), {**SGD, "learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.05}),
    ],
)
def test_what_an_id_says_of_a_training_stays(choices: tuple[str, ...], expected: dict[str, Any]) -> None:
    rest = {"precision": "auto", "gradient_clip_val": 1.0, "batch_size": 32, "augment": "none", "head_init": "ridge"}
    config = OmegaConf.create(compose_for("prune", *choices, "data.augment=none", "data.batch_size=32"))
    assert training_of(config, 1) == {**expected, **rest}


@pytest.mark.parametrize("optim", GROUPS["optim"])
def test_each_ready_optimizer_and_schedule_can_be_made(optim: str) -> None:
    require_optim(**compose_for("prune", f"optim={optim}")["optim"])


def test_callbacks_of_a_group_are_made_and_told_by_the_id() -> None:
    config = OmegaConf.create(
        compose_for("prune", "callbacks=learning_rate", "callbacks.learning_rate.logging_interval=epoch")
    )
    (made,) = trainer_options(config)["callbacks"]
    assert (type(made).__name__, made.logging_interval) == ("LearningRateMonitor", "epoch")
    assert training_of(config, 1)["own_callbacks"][0]["logging_interval"] == "epoch"


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_without_its_package_says_what_to_install(logger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose_for("prune", f"logger={logger}")["logger"]
    assert composed["_target_"].startswith("lightning.pytorch.loggers.")
    monkeypatch.setattr(values, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"pip install 'lightning-mvp\[{logger}\]', or take logger=csv"):
        values.require_logger({"logger": logger})
    values.require_logger({"logger": "csv"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "launcher"), [("basic", "Basic"), ("joblib", "Joblib"), ("submitit", "Local"), ("ray", "Ray")]
)
def test_each_launcher_is_hydras(option: str, launcher: str) -> None:
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        config = compose("prune", [f"launcher={option}"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith(f".{launcher}Launcher")


@pytest.mark.slow
def test_slurm_is_asked_for_one_task_a_device() -> None:
    with initialize_config_module("lightning_mvp.conf", version_base="1.3"):
        overrides = ["launcher=slurm", "strategy=ddp", "trainer.devices=4", "hydra.sweep.dir=sweep"]
        config = compose("prune", overrides, return_hydra_config=True)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=None, callbacks=Callbacks()),  # type: ignore[arg-type]
        task_function=lambda _: None,
        config=config,
    )
    assert type(launcher).__name__ == "SlurmLauncher"
    asked = {name: launcher.params[name] for name in ("tasks_per_node", "gpus_per_node", "nodes")}
    assert asked == {"tasks_per_node": 4, "gpus_per_node": 4, "nodes": 1}


@pytest.mark.parametrize("root", ["pretrain", "prune", "vote", "compare"])
def test_two_data_sets_of_torchvision_share_no_folder(root: str) -> None:
    written = [compose_for(root, f"data={data}", "data.root=x") for data in ("cifar10", "cifar100")]
    for key in {"output", "weights", "zoo", "folder"} & {key for key, value in written[0].items() if value is not None}:
        assert written[0][key] != written[1][key], key


def test_a_weighted_vote_keeps_what_the_default_says() -> None:
    weighted = compose_for("vote", "vote=weighted")["vote"]
    assert weighted == {**compose_for("vote")["vote"], "temperature": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_every_command_of_the_studys_scripts_is_a_study_or_a_report(script: str, tmp_path: Path) -> None:
    """Hours pass before a wrong word in the middle of one would be found."""
    called, stub = tmp_path / "called", tmp_path / "bin" / "mvp-compare"
    stub.parent.mkdir()
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(called)!r}, 'a'))"
    )
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(SCRIPTS / script), "cifar", "weights"], check=True, env=environment, cwd=tmp_path)
    commands = [json.loads(line) for line in called.read_text().splitlines()]
    assert len(commands) >= 3
    studies = set()
    for overrides in commands:
        config = OmegaConf.create(compose_for("compare", *overrides))
        if not config["reports"]:
            build_settings(config)
            of_others = config["pool"] or config["stages"] != ["report"] or config["folder"] in studies
            assert of_others, f"nothing to report in {config['folder']}"
            studies.add(config["folder"])


@pytest.mark.parametrize("several", [False, True])
def test_what_the_trainer_group_describes_is_made(several: bool) -> None:
    described = "{_target_: lightning.pytorch.callbacks.TQDMProgressBar, refresh_rate: 3}"
    override = f"+trainer.callbacks=[{described}]" if several else f"+trainer.callbacks={described}"
    profiler = "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}"
    config = OmegaConf.create(compose_for("prune", override, profiler))
    options = trainer_options(config)
    bar, made = make_trainer(1, **options).progress_bar_callback, options["profiler"]
    assert (type(bar).__name__, bar.refresh_rate) == ("TQDMProgressBar", 3)
    assert type(made).__name__ == "SimpleProfiler"
    assert isinstance(config.trainer.callbacks, ListConfig if several else DictConfig), (
        "still plain, for the entry's id"
    )


@pytest.mark.parametrize(
    ("threads", "single", "trainer", "told", "expected"),
    [
        ("auto", True, {}, None, 6),
        ("auto", False, {}, None, 1),  # a sweep, a rank that this command has started, a study
        ("auto", True, {"accelerator": "gpu"}, None, 1),
        ("auto", True, {"devices": 2}, None, 1),
        ("auto", True, {}, "2,1", 2),
        ("auto", True, {}, "many", 6),
        (3, False, {"devices": 2}, "1", 3),
    ],
)
def test_a_single_job_on_the_cpu_uses_all_cores_unless_told_otherwise(
    threads: Any,
    single: bool,
    trainer: dict[str, Any],
    told: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS") if told is None else monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_of(OmegaConf.create({"threads": threads, "trainer": trainer}), single) == expected


@pytest.mark.parametrize(
    ("accelerator", "said"),
    [("cpu", []), ("auto", ["CUDA initialization: too old"]), ("gpu", ["CUDA initialization: too old"])],
)
def test_a_machine_without_gpu_is_not_told_so(accelerator: str, said: list[str]) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        runtime.quiet_cuda(accelerator)
        for what in ("Found no NVIDIA driver on your system.", "too old"):
            warnings.warn(f"CUDA initialization: {what}", UserWarning)
    assert [str(each.message) for each in heard] == said
