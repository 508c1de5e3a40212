#!/bin/sh
# Targets of other kinds, served by the zoos of grown.sh. Stopped at any moment, it goes on where it was. It expects
# cifar100_{train,test}.npz and cifar10_{train,test}.npz in the folder $1 (default: cifar); the report goes to $2.
set -e
out=${LIGHTNING_MVP_HOME:-mvp-outputs}/cifar100
here=$(dirname "$0")
data=${1:-cifar}
general="mvp-compare experiment=cifar100_grown_general stages=[compare]"
few="mvp-compare experiment=cifar100_grown_few stages=[ablate,compare] data.root=$data"
every="split.sources=0 split.held_out_fraction=0"

$general data.root="$data" folder="$out/grown-5-classes" "label='CNN, 5 classes'" split.classes_per_task=5 split.targets=6
$general data.root="$data" folder="$out/grown-20-classes" "label='CNN, 20 classes'" split.classes_per_task=20
$few folder="$out/grown-50-images" "label='CNN, 50 images a class'" images_per_class=50
$few folder="$out/grown-10-images" "label='CNN, 10 images a class'" images_per_class=10
$general data.root="$data" folder="$out/grown-cifar10" "label='CNN, CIFAR-10'" data.options.train=cifar10_train.npz \
    data.options.test=cifar10_test.npz $every split.classes_per_task=5
$general data.root=null folder="$out/grown-glyphs" "label='CNN, characters'" data=glyphs "~data.options.train" \
    "~data.options.test" $every split.targets=6

pool=""
for kind in 10-images 50-images 5-classes 20-classes cifar10 glyphs; do pool="$pool,$out/grown-$kind"; done
mvp-compare experiment=cifar100_grown_general label=report data.root="$data" "stages=[report]" "pool=[${pool#,}]" \
    folder="${2:-cifar100-general}" learned="$here/general_grown/learned.md" \
    "command='sh benchmarks/cifar100/general.sh cifar'"
