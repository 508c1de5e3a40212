#!/bin/sh
# The study on CIFAR-100, from pre-training to the report in this folder; stopped at any moment, it goes on where it was.
# It expects cifar100_train.npz and cifar100_test.npz in the folder $1 (default: cifar), and takes hours on two cores.
set -e
here=$(dirname "$0")
data=${1:-cifar}
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
study="mvp-compare experiment=cifar100 data.root=$data"
zoos="backbone.weights=$out/theta0/theta0.safetensors superclasses=$here/superclasses.json"

# θ⁰, once.
$study folder="$out/theta0" parent=null "methods=[mvp]" "stages=[pretrain]"

# The mild operating point: two zoos, all methods.
for draw in 0 1; do
    $study $zoos split.draw=$draw folder="$out/draw-$draw-ratio-0.5" "stages=[pretrain,zoo,compare]"
done

# The strong one: the core methods; what was tried.
$study $zoos experiment=cifar100_strong folder="$out/draw-0-ratio-0.65" "stages=[pretrain,zoo,compare,ablate]"

# The zoo as the paper's abstract has it: every entry from θ⁰; the overlap of its masks, by Taylor and by magnitude.
$study $zoos experiment=cifar100_theta0 folder="$out/draw-0-ratio-0.5-theta0" "stages=[pretrain,zoo,overlap,compare]"
