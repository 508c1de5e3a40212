"""Which entries vote in a wave: listed in a file of the zoo before the wave's first vote. Needs no torch.

```
<zoo>/waves/<wave>--<hash of the rule>.json   the entries that may vote for the entries named <task>--<hash of the rule>
<zoo>/waves/<entry>.refused.json              a task whose model got worse than its start: it is done, and no entry
```

The first job of a wave writes the list, all others read it. So jobs that run at once, in any order, or again after a
kill choose among the same entries.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mvp.files import read_listed, write_json
from lightning_mvp.zoo.entry import config_hash
from lightning_mvp.zoo.families import START, families
from lightning_mvp.zoo.leftovers import remove_leftovers
from lightning_mvp.zoo.lineage import Member, lineage, seeds_fingerprint
from lightning_mvp.zoo.strict_json import read_json
from lightning_mvp.zoo.zoo import ModelZoo

WAVES = "waves"
REFUSED = ".refused.json"


def family_members(zoo: ModelZoo, family: str | None = None) -> tuple[str, list[Member]]:
    """A family's name and its members by (wave, name).

    Args:
        zoo: A zoo with at least one seed in that family.
        family: The hash of the seeds' config; None takes the family with most entries.

    Raises:
        ValueError: There is no such family, or it has no seed.
    """
    found = families(zoo)
    if family is None and found:
        family = max(found, key=lambda key: len(found[key]))
    members = lineage(zoo, found.get(family or "", ()))
    if family is None or not any(member.wave == 0 for member in members):
        known = f"the families {', '.join(found)}" if found else "no entries"
        raise ValueError(
            f"Expected seeds in the zoo at {zoo.path}, entries that were pruned from its backbone and can vote first, "
            f"but {'it' if family is None else f'family {family!r}'} has none; the zoo has {known}. Make a few with "
            "`mvp-prune`."
        )
    return family, members


def growth_config(family: str, members: Sequence[Member], rule: Mapping[str, Any]) -> dict[str, Any]:
    """What the id of a grown entry is made of: the rule by which it grew, never what the zoo happened to hold.

    Args:
        family: The hash of the seeds' config.
        members: The members of that family.
        rule: The rule by which the entry grew: how many vote and which, the wave, the steps, the seed, the
            training; plain JSON.
    """
    return {"start": START, **rule, "family": family, "seeds": seeds_fingerprint(members)}


def next_wave(members: Sequence[Member]) -> int:
    """The wave of an entry that all members may vote for."""
    return 1 + max((member.wave for member in members), default=0)


def wave_voters(zoo: ModelZoo, config: Mapping[str, Any]) -> list[Member]:
    """The entries that may vote in the wave of this config, by (wave, name); listed now if nobody has.

    Args:
        zoo: The zoo in which the wave grows.
        config: The config of the wave's entries, as :func:`growth_config` makes it; it says the ``"wave"``.

    Raises:
        ValueError: The list is damaged, or names an entry that is no longer there while entries of this wave are.
        OSError: The list can't be written.
    """
    wave, rule = config["wave"], config_hash(config)
    path = zoo.path / WAVES / f"{wave}--{rule}.json"
    _, members = family_members(zoo, config["family"])
    before = [member for member in members if member.wave < wave]
    listed = _listed(path)
    gone = set(listed or ()) - {member.name for member in before}
    _require_unused(zoo, path, gone)
    if listed is None or gone:
        with contextlib.suppress(FileExistsError):  # Another job was first, and its list counts.
            about = {"wave": wave, "rule": rule, "voters": [member.name for member in before]}
            write_json(path, about, overwrite=bool(gone))
        with contextlib.suppress(OSError):
            remove_leftovers(path.parent, path.stat().st_mtime)
        listed = _listed(path, expected=True)
    return [member for member in before if member.name in (listed or ())]


def check_waves(zoo: ModelZoo) -> dict[str, str]:
    """What is wrong with the lists of voters and the refusals of a zoo.

    A list is wrong if it is damaged, or names an entry that is gone while an entry of its wave is there.

    Returns:
        The reason for each file that is wrong, by its path in the zoo's folder.
    """
    problems, names = {}, set(zoo.names)
    for path in sorted((zoo.path / WAVES).glob("[!.]*.json")):
        try:
            if path.name.endswith(REFUSED):
                _read(path)
            else:
                _require_unused(zoo, path, set(_listed(path) or ()) - names)
        except (ValueError, OSError) as error:
            problems[f"{WAVES}/{path.name}"] = str(error)
    return problems


def refuse(zoo: ModelZoo, name: str, why: Mapping[str, Any]) -> None:
    """Remember that a task was grown and not added, so that later waves don't wait for it, and nobody tries again."""
    with contextlib.suppress(FileExistsError):
        write_json(_refusal(zoo, name), dict(why))


def refusal(zoo: ModelZoo, name: str) -> dict[str, Any] | None:
    """Why an entry was refused, as :func:`refuse` was given it; None where it was not refused."""
    return _read(_refusal(zoo, name))


def _refusal(zoo: ModelZoo, name: str) -> Path:
    return zoo.path / WAVES / f"{name}{REFUSED}"


def _require_unused(zoo: ModelZoo, path: Path, gone: Collection[str]) -> None:
    """Refuse a list of voters some of which are gone, if an entry was grown by its rule already."""
    wave, _, rule = path.stem.partition("--")
    made = zoo.configs.get(rule) if gone else None
    if made:
        raise ValueError(
            f"Expected all entries that {path} lists to be there, as others of wave {wave} were voted from them, but "
            f"{', '.join(sorted(gone)[:5])} is gone. Put it back with `mvp-zoo add`, or remove {', '.join(made[:5])}, "
            "too: then the wave is listed anew."
        )


def _listed(path: Path, expected: bool = False) -> list[str] | None:
    found = _read(path, expected)
    if found is None:
        return None
    voters = found.get("voters")
    if not isinstance(voters, list) or not voters or not all(isinstance(name, str) for name in voters):
        raise ValueError(f"Expected {path} to list the voters of its wave, but got {str(voters)[:80]!r}. Remove it.")
    return voters


def _read(path: Path, expected: bool = False) -> dict[str, Any] | None:
    try:
        found = read_listed(path, read_json, expected=expected)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}. Remove it: it is written anew.") from error
    if not isinstance(found, dict):
        raise ValueError(f"Expected {path} to be a JSON object, but got {json.dumps(found)[:80]}. Remove it.")
    return found
