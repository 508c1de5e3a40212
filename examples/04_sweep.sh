#!/bin/sh
# Fill a zoo of 12 tasks with two workers, in under a minute on two cores. Stop it at any moment, also with kill -9, and
# run it again: it goes on where it was.
#
#     pip install 'lightning-mvp[joblib]'
#     sh examples/04_sweep.sh [FOLDER]
set -eu
export LIGHTNING_MVP_HOME="${1:-mvp-outputs/sweep}"
export OMP_NUM_THREADS=1

# θ⁰, once: one backbone for all tasks. Yours may come from timm: weights=null backbone.pretrained=true.
if [ ! -f "$LIGHTNING_MVP_HOME/backbones/glyphs-resnet_mini.safetensors" ]; then
    mvp-pretrain steps=40 data.batch_size=64 trainer.enable_progress_bar=false
fi

# One job a task. launcher=slurm or launcher=ray would run them on a cluster; dry_run=true would only plan them.
mvp-prune -m launcher=joblib 'split.task=range(0,12)' split.sources=12 split.classes_per_task=5 \
    steps=20 pruning.rounds=4 data.batch_size=16 trainer.enable_progress_bar=false

mvp-zoo list "$LIGHTNING_MVP_HOME/zoos/glyphs-resnet_mini"
