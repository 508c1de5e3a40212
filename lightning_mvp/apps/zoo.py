"""``mvp-zoo``: list a zoo, show an entry, verify all of it, add or remove entries, copy it, draw it, make its page.

It takes plain arguments, without a configuration, and imports neither Hydra nor torch.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from lightning_mvp.words import counted
from lightning_mvp.zoo.entry_file import read_entry, shown
from lightning_mvp.zoo.families import families, family_of
from lightning_mvp.zoo.generations import generations
from lightning_mvp.zoo.kinship import nearest_relatives, readable_entries
from lightning_mvp.zoo.lineage import descendants, lineage
from lightning_mvp.zoo.seen_by import preprocessing_of
from lightning_mvp.zoo.summary import SortBy, entry_size, summarise, validation_accuracy
from lightning_mvp.zoo.tables import entries_tables, entry_page, generations_table, lineage_table
from lightning_mvp.zoo.verify import check_zoo
from lightning_mvp.zoo.zoo import ModelZoo

NEAREST = 8
EXAMPLES = """\
Examples:  mvp-zoo list mvp-outputs/zoos/glyphs-resnet_mini
           mvp-zoo show mvp-outputs/zoos/glyphs-resnet_mini source-003
           mvp-zoo verify mvp-outputs/zoos/glyphs-resnet_mini --json
"""

# Prints to the screen, or does nothing if a script asked for JSON.
Say = Callable[..., None]


def list_entries(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """A line for each entry."""
    summaries = summarise(zoo, arguments.sort)
    damaged = [each for each in summaries if each.problem is not None]
    for table in entries_tables(summaries):
        say(table)
    say(f"{counted(len(summaries), 'entry', 'entries')}, {decimal(sum(each.size for each in summaries))}, ", end="")
    say(f"format {zoo.version}; accuracy: on validation data; units, params, MACs: kept of the dense backbone's")
    for each in damaged:
        say(f"damaged: {each.problem}")
    entries = [
        {name: value for name, value in asdict(each).items() if name not in ("settings", "family")}
        for each in summaries
    ]
    configs = {each.config: each.settings for each in summaries if each.problem is None}
    about = {"format": zoo.version, "preprocessing": zoo.preprocessing}
    return {**about, "entries": entries, "configs": configs}, 0


def show_entry(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """All about one entry."""
    entry = zoo[entry_named(zoo, arguments.entry)]
    family = families(zoo).get(family_of(entry.name, entry.config), ())
    others, damaged = readable_entries(zoo, [name for name in family if name != entry.name])
    relatives = nearest_relatives(entry, others, NEAREST)
    size = entry_size(zoo, entry.name)
    say(entry_page(entry, size, relatives))
    _say_damaged(damaged, say)
    return {
        "name": entry.name,
        "facts": entry.facts,
        "config": entry.config,
        "info": entry.info,
        "accuracy": validation_accuracy(entry.info),
        "widths": {group: {"kept": int(mask.sum()), "units": len(mask)} for group, mask in entry.masks.items()},
        "importance": bool(entry.importance),
        "head": bool(entry.head),
        "prototypes": entry.prototypes is not None,
        "prototypes_seen_by": None if entry.prototypes is None else preprocessing_of(entry.seen_by),
        "size": size,
        "nearest": [asdict(each) for each in relatives],
        "left_out": damaged,
    }, 0


def verify_zoo(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """Read everything; 1 if anything is damaged."""
    found = check_zoo(zoo)
    if found.theta0 is not None:
        say(f"damaged: {found.theta0}")
        say("Entries could not be compared with θ⁰, so that each was only checked by itself.")
    for problem in (*found.damaged.values(), *found.waves.values()):
        say(f"damaged: {shown(problem)}")
    intact = len(found.entries) - len(found.damaged)
    say(f"{intact} of {counted(len(found.entries), 'entry is', 'entries are')} sound", end="")
    say(", and so is θ⁰" if found.theta0 is None else ", but θ⁰ is not")
    if found.leftovers:
        say(f"temporary files, of writers that were killed or are still at work: {_names(found.leftovers)}")
    return {
        "sound": intact,
        "entries": len(found.entries),
        "damaged": found.damaged,
        "theta0": found.theta0,
        "waves": found.waves,
        "leftovers": list(found.leftovers),
    }, 0 if found.intact else 1


def show_lineage(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """From which entries each entry was grown, and how similar the masks of each generation are."""
    found, tables, drawn = {}, families(zoo), ""
    if arguments.picture is not None:
        drawn = draw_lineage_of(zoo, arguments)
    for family, names in tables.items():
        members = lineage(zoo, names)
        grown = generations(zoo, members)
        say(lineage_table(members, f"family {shown(family)}" if len(tables) > 1 else "", set(zoo.names)))
        say(generations_table(grown))
        found[family] = {"members": [asdict(each) for each in members], "generations": [asdict(each) for each in grown]}
    say(f"{counted(len(zoo), 'entry', 'entries')}; † is no longer there; accuracy: on validation data")
    if drawn:
        say(f"wrote {arguments.picture}: who was grown from whom, config {drawn}")
    return {"families": found, **({"picture": str(arguments.picture)} if drawn else {})}, 0


def draw_lineage_of(zoo: ModelZoo, arguments: argparse.Namespace) -> str:
    """Draw who was grown from whom in one family, the one with most entries unless another is named; its hash."""
    from lightning_mvp.apps.pictures import save_picture
    from lightning_mvp.zoo.lineage_picture import draw_lineage

    config, others = chosen_config(zoo, arguments.config)
    members = lineage(zoo, families(zoo)[config])
    title = f"Zoo {zoo.path.resolve().name}" + (f", config {config}" if others else "")
    save_picture(arguments.picture, lambda: draw_lineage(members, title))
    return config


def remove_entries(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """Remove all entries that are named, or none.

    Raises:
        ValueError: A name is unknown, or entries that are not named descend from these, and neither ``--yes`` keeps
            them nor ``--descendants`` removes them, too. Then nothing is removed.
    """
    names = list(dict.fromkeys(arguments.entries))
    require_known(zoo, names, "Nothing was removed. ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged entries, which are often those to remove
        left = list(descendants(lineage(zoo), names))
    if left and arguments.descendants:
        names, left = [*names, *left], []
    if left and not arguments.yes:
        raise ValueError(
            f"Nothing was removed. {counted(len(left), 'entry descends', 'entries descend')} from what you named: "
            f"{_names(left[:20])}{', …' if len(left) > 20 else ''}. Remove these, too, with --descendants, to grow "
            "them anew (docs/zoo.md), or keep them as they are with --yes."
        )
    for name in names:
        zoo.remove(name)
        say(f"removed {shown(name)}")
    say(f"{counted(len(zoo), 'entry is', 'entries are')} left in {zoo.path}")
    if left:
        say(f"{counted(len(left), 'entry descends', 'entries descend')} from them, and stays: {_names(left)}")
    return {"removed": names, "left": len(zoo), **({"descend": left} if left else {})}, 0


def add_entries(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """Add entry files from elsewhere: entries that a run could not add, or of another copy of this zoo."""
    entries = [read_entry(file) for file in arguments.files]
    foreign = [entry.name for entry in entries if entry.info.get("zoo") != zoo.fingerprint]
    if foreign:
        raise ValueError(
            f"Expected entries that were made for the zoo at {zoo.path}, but {_names(foreign)} belongs to a zoo of "
            "another backbone or θ⁰. Nothing was added."
        )
    there = [entry.name for entry in entries if entry.name in zoo]
    if there:
        raise FileExistsError(f"The zoo at {zoo.path} has {_names(there)} already. Nothing was added.")
    for entry in entries:
        zoo.add(entry)
        say(f"added {entry.name}")
    say(f"{counted(len(zoo), 'entry is', 'entries are')} in {zoo.path}")
    return {"added": [entry.name for entry in entries], "entries": len(zoo)}, 0


def migrate_zoo(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """A copy of a zoo of format 1 in format 2."""
    from lightning_mvp.zoo.migrate import migrate

    made, counts = migrate(zoo, arguments.new)
    say(f"wrote {made.path}, of format 2: {counted(len(made), 'entry', 'entries')}. {zoo.path} is as it was.")
    if counts:
        say(f"prototypes are made by {next(iter(counts))}, as {counted(next(iter(counts.values())), 'is', 'are')} here")
    if len(counts) > 1:
        others = sum(counts.values()) - next(iter(counts.values()))
        say(
            f"{counted(others, 'entry has', 'entries have')} them by {counted(len(counts) - 1, 'other')}, each "
            "of which costs a search a pass of its own until its entries are made anew"
        )
    return {
        "output": str(made.path),
        "entries": len(made),
        "preprocessing": made.preprocessing,
        "seen_by": [{"preprocessing": json.loads(text), "entries": number} for text, number in counts.items()],
    }, 0


def draw_picture(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """Overlap and similarity of the tasks of one config, as one page."""
    from lightning_mvp.apps.pictures import save_picture
    from lightning_mvp.apps.runtime import refuse_existing
    from lightning_mvp.zoo.picture import draw_relations, relations

    output = Path(arguments.output or zoo.path / "picture.png")
    refuse_existing(output)  # before hundreds of entries are read
    config, others = chosen_config(zoo, arguments.config)
    entries, damaged = readable_entries(zoo, families(zoo).get(config, ()))
    found = relations(entries)
    title = f"Zoo {zoo.path.resolve().name}" + (f", config {config}" if others else "")
    save_picture(output, lambda: draw_relations(found, title))
    if others:
        say(f"config {config}; --config draws another: {', '.join(others)}")
    _say_damaged(damaged, say)
    say(f"wrote {output}: overlap and similarity of {counted(len(entries), 'task')}")
    return {"output": str(output), "config": config, **found.to_dict(), "left_out": damaged}, 0


def write_page(zoo: ModelZoo, arguments: argparse.Namespace, say: Say) -> tuple[dict[str, Any], int]:
    """All of the zoo as one page for a browser."""
    from lightning_mvp.files import write_whole
    from lightning_mvp.zoo.page import charting_library, page_data, render

    output = Path(arguments.output or zoo.path / "page.html")
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output} exists already. Name another output, or replace it with --overwrite.")
    library = charting_library()
    data = page_data(zoo)
    write_whole(output, render(data, library).encode(), overwrite=arguments.overwrite)
    damaged = {entry["name"]: entry["problem"] for entry in data["entries"] if entry["problem"]}
    for problem in damaged.values():
        say(f"damaged, and shown as such: {problem}")
    say(
        f"wrote {output}: {counted(len(data['entries']), 'entry', 'entries')}. Open it in a browser, without a network."
    )
    return {"output": str(output), "entries": len(data["entries"]), "damaged": damaged}, 0


def chosen_config(zoo: ModelZoo, config: str | None) -> tuple[str, list[str]]:
    """The hash of the config to draw, by default the one with most entries (grown ones included), and all others.

    Raises:
        ValueError: No entry has that config, or the zoo is empty.
    """
    sizes = Counter({key: len(names) for key, names in families(zoo).items()})
    if not sizes:
        raise ValueError(f"The zoo at {zoo.path} is empty. Fill it with `mvp-prune`.")
    if config is None:
        config = sizes.most_common(1)[0][0]
    if config not in sizes:
        raise ValueError(f"Expected `--config` to be one of {', '.join(sizes)}, but got {config!r}.")
    return config, [key for key in sizes if key != config]


def entry_named(zoo: ModelZoo, start: str) -> str:
    """The entry of this name, or the only one whose name begins so.

    Raises:
        ValueError: no entry's name begins so, or several do; the message names some.
    """
    names = [name for name in zoo.names if name.startswith(start)] if start else []
    if start in names or len(names) == 1:
        return start if start in names else names[0]
    if not names:
        require_known(zoo, [start])
    raise ValueError(
        f"Expected the beginning of one entry's name, but {start!r} begins {len(names)}: {_names(names[:5])}"
        f"{', …' if len(names) > 5 else ''}. Write more of it."
    )


def require_known(zoo: ModelZoo, names: Sequence[str], before: str = "") -> None:
    """Refuse names that are no entries of the zoo; a path that leads out of its folder is none either.

    Raises:
        ValueError: A name is no entry's; the message names all such names, each with similar ones.
    """
    known = zoo.names
    unknown = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            unknown.append(f"{name!r}" + (f" (similar: {_names(close)})" if close else ""))
    if unknown:
        raise ValueError(
            f"{before}Expected names of entries in the zoo at {zoo.path}, which has {len(known)}, but it has no "
            f"{', no '.join(unknown)}. `mvp-zoo list {zoo.path}` shows them all."
        )


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("zoo", metavar="ZOO", help="the zoo's folder")
    common.add_argument("--json", action="store_true", help="print one JSON document instead, for scripts")
    top = argparse.ArgumentParser(
        prog="mvp-zoo",
        description="Look after a zoo of pruned models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., tuple[dict[str, Any], int]], what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", parents=[common])
        command.set_defaults(run=run)
        return command

    command = add("list", list_entries, "a line for each entry: classes, accuracy, what was kept, size on disk")
    command.add_argument("--sort", choices=get_args(SortBy), default="name", help="within each config (default: name)")
    command = add("show", show_entry, "one entry: its task, config, widths, metrics, and the tasks nearest to it")
    command.add_argument("entry", metavar="ENTRY", help="its name, as `mvp-zoo list` shows it, or its beginning")
    add("verify", verify_zoo, "read everything and name what is damaged (exit code 1 then)")
    command = add("add", add_entries, "add entries that a run has kept elsewhere, because it could not write the zoo")
    command.add_argument("files", metavar="FILE", nargs="+", type=Path, help="entry files, named as their entries are")
    what = "which entries each entry was grown from, and how similar each generation's masks are"
    command = add("lineage", show_lineage, what)
    command.add_argument("--picture", metavar="FILE.png", type=Path, help="draw it, too; also .pdf or .svg")
    command.add_argument("--config", metavar="HASH", help="whose entries to draw (default: that of most entries)")
    command = add("remove", remove_entries, "remove these entries without asking, or none if one is unknown")
    command.add_argument("entries", metavar="ENTRY", nargs="+", help="names, as `mvp-zoo list` shows them")
    command.add_argument("--yes", action="store_true", help="also if others were grown from them, which stay")
    command.add_argument("--descendants", action="store_true", help="and all that was grown from them")
    command = add("migrate", migrate_zoo, "copy a zoo of format 1 into one of format 2; the old one stays as it is")
    command.add_argument("new", metavar="NEW", type=Path, help="the folder of the copy; there must be nothing yet")
    command = add("picture", draw_picture, "pairs of tasks on one page: the units they share, and how similar they are")
    command.add_argument("--output", metavar="FILE.png", help="also .pdf or .svg (default: ZOO/picture.png)")
    command.add_argument("--config", metavar="HASH", help="whose entries to compare (default: that of most entries)")
    command = add(
        "page", write_page, "all of the zoo as one page for a browser: entries to sort and search, and charts"
    )
    command.add_argument("output", metavar="OUTPUT.html", nargs="?", help="default: ZOO/page.html")
    command.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    return top


def main() -> None:
    """Run a command: exit code 0, or 1 with a sentence about what is wrong."""
    arguments = parser().parse_args()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal can't show must not end a listing
            stream.reconfigure(errors="backslashreplace")
    # Names are shown as they are; rich would take parts of them for markup.
    literally: dict[str, Any] = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False}
    screen = Console(quiet=arguments.json, **literally)
    try:
        answer, code = arguments.run(ModelZoo(arguments.zoo), arguments, screen.print)
        if arguments.json:
            print(json.dumps({"zoo": arguments.zoo, **answer}, indent=1), flush=True)
    except BrokenPipeError:  # the reader has ended, as in `mvp-zoo list ZOO | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LIGHTNING_MVP_TRACEBACK"):
            raise
        # On stderr, because scripts read JSON from stdout.
        sentence = Text.assemble((f"{type(error).__name__}:", "bold red"), f" {error}")
        Console(stderr=True, **literally).print(sentence)
        code = 1
    raise SystemExit(code)


def _say_damaged(damaged: dict[str, str], say: Say) -> None:
    for problem in damaged.values():
        say(f"left out, damaged: {problem}")


def _names(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names)


if __name__ == "__main__":
    main()
