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

$general data.root="$data" label=5-classes split.classes_per_task=5 split.targets=6
$general data.root="$data" label=20-classes split.classes_per_task=20
$few label=50-images images_per_class=50
$few label=10-images images_per_class=10
$general data.root="$data" label=cifar10 data.options.train=cifar10_train.npz data.options.test=cifar10_test.npz $every \
    split.classes_per_task=5
$general data.root=null label=glyphs data=glyphs "~data.options.train" "~data.options.test" $every split.targets=6

pool=""
for kind in 5-classes 20-classes 50-images 10-images cifar10 glyphs; do pool="$pool,$out/grown-$kind"; done
mvp-compare experiment=cifar100_grown_general label=report data.root="$data" "stages=[report]" "pool=[${pool#,}]" \
    folder="${2:-cifar100-general}" learned="$here/general_grown/learned.md" \
    "command='sh benchmarks/cifar100/general.sh cifar'"
