#!/bin/sh
# Growth by use on a small vision transformer, from pre-training to the report. Stopped at any moment, it goes on where it
# was. It expects cifar100_train.npz and cifar100_test.npz in the folder $1 (default: cifar); the report goes to $2.
set -e
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
here=$(dirname "$0")
study="mvp-compare experiment=cifar100_vit_grown data.root=${1:-cifar}"

$study "stages=[pretrain,zoo,grow]"
$study "stages=[compare]"
$study "stages=[report]" "pool=[$out/vit-grown]" folder="${2:-cifar100-vit}" learned="$here/vit_grown/learned.md" \
    "command='sh benchmarks/cifar100/vit.sh cifar'"
