#!/bin/sh
# Trains the reference on COCO: dense training, gradual pruning, the COCO figures.
#
#   recipes/coco/run.sh COCO_FOLDER RESNET101.pth OUTPUT_FOLDER [SPARSITY...]
#
# COCO_FOLDER holds annotations/instances_{train,val}2017.json, train2017/ and val2017/;
# RESNET101.pth is torchvision's ResNet-101 (weights IMAGENET1K_V1 or V2). SPARSITY is 60, 70, 80
# or 90; default: 60. Run the script again to continue a stopped stage.
#
#   GPUS=8        processes, one for each GPU: 1, 2, 4 or 8; the batch stays 16
#   DENSE=3x      length of dense training, 3x or 1x
#   FLAGS=...     flags for every stage, such as '--amp fp16' for GPUs without bf16
set -eu
coco=$1 backbone=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 60
here=$(dirname "$0")
dense=dense_${DENSE:-3x}

stage() {  # NAME INIT COMMAND [FLAG...]
  [ -f "$out/$1/model.safetensors" ] && return
  resume=
  ls "$out/$1"/checkpoint-*.safetensors >/dev/null 2>&1 && resume=--resume
  name=$1 init=$2 command=$3
  shift 3
  # shellcheck disable=SC2086
  torchrun --standalone --nproc-per-node "${GPUS:-8}" -m sparsedet "$command" "$@" \
    --annotations "$coco/annotations/instances_train2017.json" --images "$coco/train2017" \
    --init "$init" --recipe "$here/$name.json" --output "$out/$name" $resume ${FLAGS:-}
}

evaluate() {  # NAME
  [ -f "$out/$1/scores.json" ] && return
  sparsedet eval --model "$out/$1/model.safetensors" --json "$out/$1/scores.json" \
    --annotations "$coco/annotations/instances_val2017.json" --images "$coco/val2017"
}

stage "$dense" "$backbone" train --model r101-c4
evaluate "$dense"
for sparsity in "$@"; do
  stage "prune_$sparsity" "$out/$dense" prune
  evaluate "prune_$sparsity"
done
