"""Which timm models can be pruned, how exactly, and what that saves: the table in docs/coverage.md.

    python benchmarks/coverage.py             # all models, about five minutes on one core; writes the table
    python benchmarks/coverage.py --fast      # those that tests repeat, on screen only
    python benchmarks/coverage.py --models resnet50 dla34 --json coverage.json
    python benchmarks/coverage.py --families  # other models and libraries, each family of timm; writes that table

Any timm model can be named, ``torchvision:NAME``, ``features:NAME`` (timm's, all its feature maps) and the small models
of ``transformers`` (``pip install transformers``). One model at a time is built, with random weights: nothing is
downloaded. It is checked with small images and measured with those of 224 pixels. Only a run over all models is written
into the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lightning_mvp import create_backbone, find_groups
from lightning_mvp.backbones import CostModel, Groups, Masks, check_exact, random_masks, shrink
from lightning_mvp.backbones.copies import tensors_in
from lightning_mvp.errors import SelfCheckError

DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"
BEGIN, END = "<!-- coverage table: benchmarks/coverage.py writes it -->", "<!-- end of coverage table -->"
FAMILIES_BEGIN = "<!-- families: benchmarks/coverage.py --families writes it -->"
FAMILIES_END = "<!-- end of families -->"
RATIOS = (0.5, 0.9)
SEED = 0
TRAINING_BATCH = 32
TURNS = 7
LARGEST = 100_000_000  # parameters of a model in the second table: its self-check needs a few copies in float64
LARGEST_SIDE = 512  # pixels of its images
FULL_SIZE = 224  # side of the images for MACs and latency

# Model → side of the images for the self-check, in pixels. A transformer's size is an argument when it is built.
CONVOLUTIONAL = {
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "seresnet18": 64,
    "legacy_seresnet18": 64,
    "wide_resnet50_2": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64,
    "tf_efficientnet_lite0": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "vgg11_bn": 224,
    "convnext_atto": 64,
}
TRANSFORMERS = {
    "vit_tiny_patch16_224": 64,
    "vit_small_patch16_224": 64,
    "deit_small_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "vit_small_patch14_dinov2": 56,
    "swin_tiny_patch4_window7_224": 112,
    "mixer_s32_224": 64,
    "resmlp_12_224": 64,
}
# Attention that is not timm's plain one: left out of the groups, or the whole model is refused.
HARD = {
    "eva02_tiny_patch14_224": 56,
    "coat_tiny": 64,
    "maxvit_tiny_tf_224": 64,
    "pvt_v2_b0": 64,
    "mobilevit_s": 64,
}
# More of timm's families, of all kinds.
MORE = {
    "botnet26t_256": 256,
    "cait_xxs24_224": 64,
    "coatnet_nano_rw_224": 64,
    "convit_tiny": 64,
    "convnextv2_atto": 64,
    "cs3darknet_s": 64,
    "cspresnet50": 64,
    "davit_tiny": 64,
    "dla34": 64,
    "ecaresnet26t": 64,
    "efficientformer_l1": 224,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 64,
    "gcresnet33ts": 64,
    "ghostnet_100": 64,
    "gmlp_s16_224": 64,
    "halonet26t": 256,
    "hgnet_tiny": 64,
    "hrnet_w18_small": 64,
    "levit_128s": 224,
    "mixnet_s": 64,
    "mobileone_s0": 64,
    "poolformer_s12": 64,
    "repvgg_a0": 64,
    "res2net50_14w_8s": 64,
    "resnetv2_50": 64,
    "tresnet_m": 64,
    "visformer_tiny": 224,
    "vit_small_patch16_dinov3": 64,
    "volo_d1_224": 64,
    "xcit_nano_12_p16_224": 64,
}
# Other libraries' models, and encoders that return several tensors.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_16": 224,
    "wide_resnet50_2": 64,
    "lraspp_mobilenet_v3_large": 64,
    "fcn_resnet50": 64,
}
OUTSIDE = {f"torchvision:{name}": size for name, size in TORCHVISION.items()}
OUTSIDE |= {"features:resnet18": 64, "features:mobilenetv3_small_100": 64}
OUTSIDE |= {f"transformers:{name}": 64 for name in ("ViT", "ConvNext", "ResNet")}
OUTSIDE["transformers:Swin"] = 224  # its windows fit no smaller images
MODELS = {**CONVOLUTIONAL, **TRANSFORMERS, **HARD}
OTHERS = {**MORE, **OUTSIDE}  # in the second table, without latencies
SIZED = {*TRANSFORMERS, "eva02_tiny_patch14_224", "coat_tiny", "maxvit_tiny_tf_224"}
SIZED |= {"cait_xxs24_224", "convit_tiny", "coatnet_nano_rw_224", "gmlp_s16_224", "volo_d1_224", "xcit_nano_12_p16_224"}
SIZED |= {"davit_tiny", "vit_small_patch16_dinov3", "focalnet_tiny_srf"} - {"davit_tiny", "focalnet_tiny_srf"}
FAST = (
    "resnet18",
    "seresnet18",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "eva02_tiny_patch14_224",
)


@dataclass
class Structure:
    """What follows from the architecture alone: the same on every machine."""

    model: str
    groups: dict[str, int] = field(default_factory=dict)  # kind → number of groups
    units: int = 0
    left_out: list[str] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)  # ratio of units removed → share that remains
    macs: dict[str, float] = field(default_factory=dict)
    refusal: str = ""


@dataclass
class Row(Structure):
    """One model's row: the structure, and what was measured."""

    latency: dict[str, float] = field(default_factory=dict)  # ratio of units removed → small over dense
    latency_ms: float = 0.0  # of the dense model
    check_size: int = 0
    difference: float = 0.0
    find_seconds: float = 0.0
    check_seconds: float = 0.0  # of one check
    step_seconds: float = 0.0  # of training the dense model, one batch


# Measuring ------------------------------------------------------------------------------------------------------------


def recipe_of_model(model: str, size: int | None = None) -> dict[str, Any]:
    """The recipe by which a model is built here, for images of a size, by default those of its self-check.

    A model that isn't listed is built as timm builds it; its images have 128 pixels, or its own size if that is fixed.
    """
    if model in {**MODELS, **OTHERS}:
        size = size or {**MODELS, **OTHERS}[model]
        return {"model": model, "arguments": {"img_size": size} if model in SIZED else {}, "input_size": size}
    with torch.device("meta"):
        config: Any = timm.create_model(model).pretrained_cfg
    size = config["input_size"][-1] if config.get("fixed_input_size") else size or 128
    return {"model": model, "arguments": {}, "input_size": size}


def built(model: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """A model with random weights and one image for it."""
    if ":" in model:
        torch.manual_seed(SEED)
        side = size or OTHERS.get(model, 64)
        return outside(*model.split(":"), side), torch.randn(1, 3, side, side)
    recipe = recipe_of_model(model, size)
    torch.manual_seed(SEED)
    return create_backbone(recipe), torch.randn(1, 3, recipe["input_size"], recipe["input_size"])


def outside(library: str, name: str, size: int) -> nn.Module:
    """A model that no recipe names, for images of a size."""
    if library == "features":
        return timm.create_model(name, features_only=True)
    if library == "torchvision":
        options: dict[str, Any] = {"image_size": size} if "vit" in name else {}
        options |= {"weights_backbone": None} if name.startswith(("lraspp", "fcn")) else {}
        return torchvision.models.get_model(name, weights=None, **options)
    import transformers

    options = {"image_size": size}
    if name == "ViT":
        options |= {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


def describe(model: str, backbone: nn.Module, groups: Groups, example: Tensor) -> Structure:
    """Groups by kind, what is left out, and the shares of parameters and MACs that remain."""
    cost, full = CostModel(backbone, groups, example), Masks.full(groups)
    masks = {str(ratio): random_masks(groups, ratio, SEED) for ratio in RATIOS}
    kinds = Counter(group.kind for group in groups)
    return Structure(
        model=model,
        groups={kind: kinds[kind] for kind in ("conv", "residual", "mlp", "heads") if kinds[kind]},
        units=sum(groups.sizes.values()),
        left_out=list(groups.skipped),
        parameters={ratio: cost.parameters(mask) / cost.parameters(full) for ratio, mask in masks.items()},
        macs={ratio: cost.macs(mask) / cost.macs(full) for ratio, mask in masks.items()},
    )


def structure(model: str) -> Structure:
    """What the table says of a model that does not depend on the machine; where it is refused, only why."""
    try:
        exact = find_groups(*built(model))
    except ValueError as refusal:
        return Structure(model, refusal=str(refusal))
    backbone, example = built(model, FULL_SIZE)
    groups = find_groups(backbone, example, check=False).select(include=exact.names)
    return describe(model, backbone, Groups(groups, exact.skipped), example)


def seconds(work: Callable[[], Any], at_least: float = 0.0) -> float:
    """Median time of a call, on one thread, after a warm-up."""
    return float(Timer("work()", globals={"work": work}, num_threads=1).blocked_autorange(min_run_time=at_least).median)


def forward_pass(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    """One image's, in eval mode."""

    def forward() -> None:
        with torch.inference_mode():
            model(example)

    model.eval()
    return forward


def training_step(backbone: nn.Module, example: Tensor) -> Callable[[], Any]:
    """One step of SGD on a batch of random images."""
    images = torch.randn(TRAINING_BATCH, *example.shape[1:])
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-6)
    backbone.train()

    def step() -> None:
        optimizer.zero_grad()
        torch.stack([output.square().mean() for output in tensors_in(backbone(images))]).sum().backward()
        optimizer.step()

    return step


def check(row: Row) -> None:
    """Find the groups, check them at both ratios, and take the times of that and of a training step.

    Raises:
        SelfCheckError: a group is not exact.
    """
    backbone, example = built(row.model)
    row.check_size = example.shape[-1]
    start = time.perf_counter()
    find_groups(backbone, example, check=False)
    row.find_seconds = time.perf_counter() - start
    groups = find_groups(backbone, example)
    start = time.perf_counter()
    row.difference = max(check_exact(backbone, groups, random_masks(groups, ratio, SEED), example) for ratio in RATIOS)
    row.check_seconds = (time.perf_counter() - start) / len(RATIOS)
    row.step_seconds = seconds(training_step(backbone, example))


def time_passes(row: Row, at_least: float) -> None:
    """Latency of the dense and the small models, ``at_least`` seconds spent on each.

    They take turns, and each turn gives a ratio: whatever else the machine does slows both.
    """
    backbone, example = built(row.model, FULL_SIZE)
    groups = find_groups(backbone, example, check=False).select(include=find_groups(*built(row.model)).names)
    models = {"dense": backbone}
    models |= {str(ratio): shrink(backbone, groups, random_masks(groups, ratio, SEED)) for ratio in RATIOS}
    turns = [
        {name: seconds(forward_pass(model, example), at_least / TURNS) for name, model in models.items()}
        for _ in range(TURNS)
    ]
    row.latency_ms = statistics.median(turn["dense"] for turn in turns) * 1e3
    row.latency = {str(r): statistics.median(turn[str(r)] / turn["dense"] for turn in turns) for r in RATIOS}


def measure(model: str, at_least: float) -> Row:
    """A model's row; where it is refused, the row says why and nothing else."""
    row = Row(**asdict(structure(model)))
    if not row.refusal:
        try:
            check(row)
        except SelfCheckError as refusal:
            return Row(model, refusal=str(refusal))
        time_passes(row, at_least)
    return row


# Reporting ------------------------------------------------------------------------------------------------------------


def pair(values: Mapping[str, float]) -> str:
    """Both ratios' values in one cell."""
    return " / ".join(f"{values[str(ratio)]:.3f}" for ratio in RATIOS)


def structure_cells(row: Structure) -> list[str]:
    """The cells that every machine writes alike: model, groups, units, left out, parameters, MACs."""
    if row.refusal:
        return [f"`{row.model}`", "refused", "", "", "", ""]
    groups = ", ".join(f"{count} {kind}" for kind, count in row.groups.items())
    return [f"`{row.model}`", groups, f"{row.units:,}", str(len(row.left_out)), pair(row.parameters), pair(row.macs)]


def measured_cells(row: Row) -> list[str]:
    """The cells that depend on the machine: latency, and the self-check's size, result and cost."""
    if row.refusal:
        return [""] * 6
    difference = f"{row.difference:.0e}" if row.difference else "0"
    times = [f"{row.find_seconds:.2f}", f"{row.check_seconds:.2f}", f"{row.check_seconds / row.step_seconds:.1f}"]
    return [pair(row.latency), str(row.check_size), difference, *times]


STRUCTURE = ["model", "groups", "units", "left out", "parameters", "MACs"]
MEASURED = ["latency", "check at px", "difference", "find, s", "check, s", "check, steps"]


def shortened(note: str) -> str:
    """A note without the names of all layers but the first."""
    names, colon, reason = note.partition(": left out")
    if not colon:
        return note
    first, *more = names.split(", ")
    return first + (f" and {len(more)} more" if more else "") + colon + reason.partition("; they are ")[0]


def together(notes: Sequence[str]) -> list[str]:
    """Notes of one reason as one: the first in full, the others counted."""
    found: dict[str, list[str]] = {}
    for note in map(shortened, notes):
        # Layers of other blocks with the same fate differ by their own names and those they quote.
        found.setdefault(re.sub(r"`[^`]*`", "", note.partition(": ")[2]), []).append(note)
    return [first + (f" (and {len(rest)} like it)" if rest else "") for first, *rest in found.values()]


def reasons(row: Structure) -> list[str]:
    """What is left out and why, or why the whole model is refused."""
    if not row.refusal:
        return together(row.left_out)
    return ["refused: " + "; ".join(together(row.refusal.removesuffix(".").split("; ")))]


def markdown(rows: Sequence[Row]) -> str:
    """The table, how it was made, and what was left out of which model."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torch-pruning"))
    header = [*STRUCTURE, *MEASURED]
    lines = [
        f"Random masks that remove {RATIOS[0]:.0%} / {RATIOS[1]:.0%} of each group's units. Parameters, MACs and "
        f"latency are what remains of the dense model's, for images of {FULL_SIZE} pixels.\n"
        f"Latency: `torch.utils.benchmark`, batch 1, one CPU thread, median of {TURNS} turns. Left out: how many notes "
        "below.\n"
        "Difference: the larger of both ratios' self-checks, each in eval and train mode.\n"
        "Find, check: seconds to find the groups and to check them once, and how many training steps (SGD, batch "
        f"{TRAINING_BATCH}, images of the same size) one check takes.",
        "",
        f"{packages}, Python {platform.python_version()}.",
        "",
        f"| {' | '.join(header)} |",
        f"| --- | --- |{' ---: |' * (len(header) - 2)}",
        *(f"| {' | '.join([*structure_cells(row), *measured_cells(row)])} |" for row in rows),
        "",
        "What is left out, and why:",
        "",
    ]
    for row in rows:
        if notes := reasons(row):
            lines += [f"- `{row.model}`", *(f"  - {note}" for note in notes)]
    return "\n".join(lines)


def smallest_of_each_family() -> Iterator[tuple[str, str, int]]:
    """Module of timm, its model of fewest parameters (of those of the shortest names, its plain ones), and how many."""
    for family in timm.list_modules():
        sizes: dict[str, int] = {}
        for name in sorted(timm.list_models(module=family), key=lambda name: (len(name), name))[:24]:
            try:
                with torch.device("meta"):
                    sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            except Exception:  # some can't be made without values
                continue
        if sizes:
            model = min(sizes, key=lambda name: (sizes[name], name))
            yield family, model, sizes[model]


def light_row(about: str, model: str, backbone: nn.Module, example: Tensor) -> str:
    """A row of the second table: the share of parameters in groups, what is left out, seconds."""
    start = time.perf_counter()
    try:
        groups = find_groups(backbone, example)
    except ValueError as refusal:
        cells = ["refused", "0 %", reasons(Structure(model, refusal=str(refusal)))[0][:160]]
    else:
        kinds = Counter(group.kind for group in groups)
        owned = {member.tensor for group in groups for member in group.members}
        sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
        share = sum(size for name, size in sizes.items() if name in owned) / sum(sizes.values())
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        cells = [told, f"{100 * share:.0f} %", str(len(groups.skipped))]
    return f"| {about} | `{model}` | {' | '.join(cells)} | {time.perf_counter() - start:.1f} |"


def families() -> str:
    """The smallest model of each module of timm, then more of its models, other libraries' and encoders."""
    lines = ["| module | model | groups | parameters in groups | left out | seconds |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: |")

    def add(about: str, model: str, backbone: nn.Module, example: Tensor) -> None:
        lines.append(light_row(about, model, backbone, example))
        print(lines[-1], flush=True)
        gc.collect()  # modules refer to each other

    for model in OTHERS:
        add("listed" if ":" not in model else model.split(":")[0], model.split(":")[-1], *built(model))
    for family, model, parameters in smallest_of_each_family():
        if parameters > LARGEST:
            lines.append(f"| {family} | `{model}` | not run: {parameters / 1e6:.0f} M parameters | | | |")
            continue
        backbone, example = timm.create_model(model, num_classes=0), torch.randn(2, 3, 64, 64)
        try:
            backbone(example)
        except Exception:  # its images have a size of their own
            example = torch.randn(2, *timm.get_pretrained_cfg(model).input_size)
        if example.shape[-1] > LARGEST_SIDE:
            lines.append(f"| {family} | `{model}` | not run: images of {example.shape[-1]} pixels | | | |")
            continue
        add(family, model, backbone, example)
    return "\n".join(lines)


def with_table(document: str, table: str, begin_line: str = BEGIN, end_line: str = END) -> str:
    """The document with the table between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in this order.
    """
    before, begin, rest = document.partition(begin_line)
    _, end, after = rest.partition(end_line)
    if not begin or not end:
        raise ValueError(
            f"Expected {DOCUMENT.name} to hold the lines {begin_line!r} and {end_line!r}, but one is missing."
        )
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help="timm names; shown on screen (default: all of the table)")
    parser.add_argument("--families", action="store_true", help="the second table: other models and all families")
    parser.add_argument("--fast", action="store_true", help="only the models that tests repeat; shown on screen")
    parser.add_argument("--min-run-time", type=float, default=1.0, help="seconds to time a forward pass (default: 1)")
    parser.add_argument("--json", type=Path, help="write every figure and note here")
    options = parser.parse_args(arguments)
    for model in options.models or ():
        if ":" not in model and not timm.is_model(model):
            parser.error(f"Expected --models to be names that timm {timm.__version__} knows, but got {model!r}.")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.families:
        table = families()
        document = with_table(DOCUMENT.read_text(encoding="utf-8"), table, FAMILIES_BEGIN, FAMILIES_END)
        DOCUMENT.write_text(document, encoding="utf-8")
        return
    rows = []
    for model in options.models or (FAST if options.fast else MODELS):
        rows.append(measure(model, options.min_run_time))
        print(" | ".join([*structure_cells(rows[-1]), *measured_cells(rows[-1])]), flush=True)
        for note in reasons(rows[-1]):
            print(f"    {note}", flush=True)
        gc.collect()  # modules refer to each other
    if options.json:
        versions = {name: version(name) for name in ("lightning-mvp", "torch", "timm", "torch-pruning")}
        report = {"versions": versions, "python": platform.python_version(), "models": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not options.models and not options.fast:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), markdown(rows)), encoding="utf-8")
        print(f"Wrote the table in docs/{DOCUMENT.name}.")


if __name__ == "__main__":
    main()
