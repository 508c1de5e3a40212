#!/bin/sh
# The study's second part: a vision transformer, a backbone from ImageNet, targets of other kinds, one choice at a time.
# It needs θ⁰ and the zoo that run.sh makes (its first two commands), cifar100_{train,test}.npz and cifar10_{train,test}.npz
# in the folder $1 (default: cifar), and EfficientNet-Lite0's weights as safetensors in $2. Stopped at any moment, it goes on
# where it was. Reports go to $3 (default: cifar100-reports).
set -e
here=$(dirname "$0")
data=${1:-cifar}
weights=${2:?the weights of tf_efficientnet_lite0 as safetensors}
reports=${3:-cifar100-reports}
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
common="data.root=$data superclasses=$here/superclasses.json"

# Targets of other kinds, all on one CIFAR-100 zoo of ten-class tasks.
general="mvp-compare experiment=cifar100_general stages=[compare]"
cifar="$general data.root=$data"
few="target_kind=heldout split.held_out_targets=10"
every="split.sources=0 split.held_out_fraction=0"
rendered="~data.options.train ~data.options.test data.root=null"
$cifar label=seen "fewer={taylor@1000: 10}"
$cifar label=held-out $few
$cifar label=50-images $few images_per_class=50
$cifar label=10-images $few images_per_class=10
$cifar label=5-classes split.classes_per_task=5
$cifar label=20-classes split.classes_per_task=20
$cifar label=cifar10 data.options.train=cifar10_train.npz data.options.test=cifar10_test.npz $every split.classes_per_task=5
$general label=glyphs data=glyphs $rendered $every
$general label=digits data=digits $rendered $every split.classes_per_task=5

# One choice at a time: those that the zoo of 60 can answer, then those that need a zoo of their own, of 20.
mvp-compare experiment=cifar100_ablations $common "stages=[ablate]"
own="mvp-compare experiment=cifar100_ablations $common zoo_of=null split.sources=20 stages=[pretrain,zoo,ablate] ~trials"
parent="begins_with=$out/draw-0-ratio-0.5"
$own $parent folder="$out/ablations-ratio" pruning.pruning_ratio=0.65 "+trials={ratio.above-own-zoo: {method: mvp}}"
$own $parent folder="$out/ablations-global" pruning.scope=global \
    "+trials={scope.global: {method: mvp}, width.by-ratio: {method: mvp, vote.pruning_ratio: 0.285714}}"
$own $parent folder="$out/ablations-magnitude" pruning.criterion=magnitude "+trials={criterion.magnitude: {method: mvp}}"
$own $parent folder="$out/ablations-residual" pruning.pruning_ratio=0.643 +pruning.exclude=residual \
    "+trials={groups.residual-whole: {method: mvp}}"

# A vision transformer.
vit="mvp-compare experiment=cifar100_vit $common"
$vit folder="$out/vit-theta0" parent=null "methods=[mvp]" "stages=[pretrain]"
vit="$vit backbone.weights=$out/vit-theta0/theta0.safetensors"
$vit folder="$out/vit-pilot" label=pilot parent=null "methods=[dense]" split.sources=1 split.development=3 \
    "stages=[pretrain,zoo,ablate]" ~trials "+trials={dense: {method: dense@1000}, taylor-0.5: {method: taylor@1000}, \
taylor-0.75: {method: taylor@1000, pruning.pruning_ratio: 0.75}}"
$vit "stages=[pretrain,zoo,compare,ablate,overlap]"

# EfficientNet-Lite0, pre-trained on ImageNet.
mvp-compare experiment=cifar100_efficientnet $common backbone.weights="$weights" "stages=[pretrain,zoo,compare]"

report="mvp-compare experiment=cifar100 $common stages=[report]"
again="command='sh benchmarks/cifar100/second.sh cifar WEIGHTS'"
pool=""
for kind in seen held-out 50-images 10-images 5-classes 20-classes cifar10 glyphs digits; do pool="$pool,$out/general-$kind"; done
$report "pool=[${pool#,},$out/theta0]" folder="$reports/general" "$again" \
    "note='Targets of other kinds, all on the CIFAR-100 zoo draw-0-ratio-0.5 of the first part, made again on another machine.'"
pool="$out/ablations"
for kind in ratio global magnitude residual; do pool="$pool,$out/ablations-$kind"; done
$report "pool=[$pool,$out/theta0]" folder="$reports/ablations" "$again" \
    "note='One choice at a time, on development tasks and validation images.'"
$report "pool=[$out/vit-ratio-0.5,$out/vit-pilot,$out/vit-theta0]" folder="$reports/vit" "$again" \
    "note='A vision transformer with a convolutional stem; every run is in results.jsonl.'"
$report "pool=[$out/efficientnet-ratio-0.3]" folder="$reports/efficientnet" "$again" \
    "note='EfficientNet-Lite0 with the weights of ImageNet, at 64 x 64 pixels.'"
mvp-compare "stages=[report]" "reports=[$here/cnn,$reports/vit,$reports/efficientnet,$reports/general,$reports/ablations]" \
    folder="$reports/plain" learned="$here/plain/learned.md" "$again" "note='Part one: votes of entries that were pruned \
independently, without mimicking. Test accuracy of small models for new tasks, each made in 100 steps from a zoo, against \
what else could have been done.'"
