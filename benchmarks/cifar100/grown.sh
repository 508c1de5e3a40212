#!/bin/sh
# Zoos that grow by use on CIFAR-100, from pre-training to the report. Stopped at any moment, it goes on where it was. It
# expects cifar100_train.npz and cifar100_test.npz in the folder $1 (default: cifar); the report goes to $2.
set -e
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
here=$(dirname "$0")
study="mvp-compare data.root=${1:-cifar}"

# Development tasks first: they say which Taylor the primary comparison is against.
$study experiment=cifar100_grown "stages=[pretrain,zoo,grow,ablate]"
$study experiment=cifar100_grown "stages=[compare]"
$study experiment=cifar100_grown_heldout "stages=[compare]"
$study experiment=cifar100_grown "stages=[report]" "pool=[$out/grown,$out/grown-heldout]" folder="${2:-cifar100-grown}" \
    learned="$here/grown/learned.md" "command='sh benchmarks/cifar100/grown.sh cifar'"
