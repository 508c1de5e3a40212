#!/bin/sh
# Growth by use on EfficientNet-Lite0 with the weights of ImageNet, from the parent to the report. Stopped at any moment, it
# goes on where it was. It expects cifar100_train.npz and cifar100_test.npz in the folder $1 (default: cifar), the weights as
# safetensors in $2, and takes several hours on two cores; the report goes to $3.
set -e
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
here=$(dirname "$0")
study="mvp-compare data.root=${1:-cifar} backbone.weights=${2:?the weights of tf_efficientnet_lite0 as safetensors}"

$study experiment=cifar100_efficientnet_grown "stages=[pretrain,zoo,grow,ablate]"
$study experiment=cifar100_efficientnet_grown "stages=[compare]"
$study experiment=cifar100_efficientnet_heldout "stages=[compare]"
$study experiment=cifar100_efficientnet_grown "stages=[report]" "pool=[$out/efficientnet-grown,$out/efficientnet-heldout]" \
    folder="${3:-cifar100-efficientnet}" learned="$here/efficientnet_grown/learned.md" \
    "command='sh benchmarks/cifar100/efficientnet.sh cifar WEIGHTS'"
