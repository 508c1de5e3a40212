"""Names of files are typed as they are; whoever writes Hydra's grammar gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mvp.apps.arguments import quoted

from .conftest import Run


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("checkpoint=epoch=1-step=20.ckpt", "checkpoint='epoch=1-step=20.ckpt'"),
        ("zoo=runs/lr=0.1/zoo", "zoo='runs/lr=0.1/zoo'"),
        ("+a.b=x==y", "+a.b='x==y'"),
        ("weights=a=1.pt,b.pt,c=2.pt", "weights='a=1.pt',b.pt,'c=2.pt'"),
        ("folder=model (1)[2]", "folder='model (1)[2]'"),  # which is there
        # As they are.
        ("folder=model (2)", None),
        ("checkpoint='a=b'", None),
        (r"checkpoint=a\=b", None),
        ("split.task=range(0,24)", None),
        ("vote.neighbours=1,3,6", None),
        ("reports=[a=1/run]", None),
        ("trainer={devices: 2}", None),
        ("output=${paths.root}/a=b", None),
        ("~logger", None),
        ("--config-dir=a=b", None),
        ("-m", None),
    ],
)
def test_only_what_hydra_can_not_read_is_quoted(
    typed: str, read: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model (1)[2]").touch()
    assert quoted([typed]) == [typed if read is None else read]


@pytest.mark.parametrize("argument", ["checkpoint={}", "checkpoint='{}'"])
def test_a_command_takes_the_name_that_lightning_gives_a_checkpoint(
    argument: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch=1-step=20.ckpt").write_bytes(b"x")
    done = run("export", argument.format("epoch=1-step=20.ckpt"), home=tmp_path / "home")
    assert done.code == 1
    assert "plain containers at epoch=1-step=20.ckpt, but it is damaged, or something else." in done.line
