#!/bin/sh
# The study on CIFAR-100, from pre-training to the report. Stopped at any moment, it goes on where it was. It expects
# cifar100_train.npz and cifar100_test.npz in the folder $1 (default: cifar) and takes two and a half hours on two cores
# without bf16 (the sum of its parts' seconds, shared); the report goes to $2 (default: cifar100-report).
set -e
here=$(dirname "$0")
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
common="data.root=${1:-cifar} superclasses=$here/superclasses.json"
zoos="$common backbone.weights=$out/theta0/theta0.safetensors"

# θ⁰, once.
mvp-compare experiment=cifar100 $common folder="$out/theta0" parent=null "methods=[mvp]" "stages=[pretrain]"
# The mild operating point: two zoos, each with targets of its own.
mvp-compare experiment=cifar100 $zoos "stages=[pretrain,zoo,compare]"
mvp-compare experiment=cifar100_second $zoos "stages=[pretrain,zoo,compare]"
# The strong one, where settings were tried on validation images.
mvp-compare experiment=cifar100_strong $zoos "stages=[pretrain,zoo,compare,ablate]"
# The zoo of the paper's abstract, every entry from θ⁰: overlap of masks, and the plain vote.
mvp-compare experiment=cifar100_theta0 $zoos "stages=[pretrain,zoo,overlap,compare]"
# The same overlap by magnitude, with fewer tasks.
mvp-compare experiment=cifar100_theta0 pruning=magnitude split.sources=12 "methods=[dense]" $zoos \
    folder="$out/draw-0-ratio-0.5-magnitude" "stages=[pretrain,zoo,overlap]"

pool="$out/draw-0-ratio-0.5,$out/draw-1-ratio-0.5,$out/draw-0-ratio-0.65,$out/draw-0-ratio-0.5-theta0"
pool="$pool,$out/draw-0-ratio-0.5-magnitude,$out/theta0"
mvp-compare experiment=cifar100 $common "stages=[report]" "pool=[$pool]" folder="${2:-cifar100-report}" \
    "learned=$here/cnn/learned.md" "command='sh benchmarks/cifar100/run.sh cifar'"
