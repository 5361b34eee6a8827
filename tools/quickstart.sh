#!/usr/bin/env bash
# From a fresh clone to a trained detector, its AP and drawn predictions, on generated pictures.
#
#   bash tools/quickstart.sh            the preset `easy`: 128 pixels, 4 shapes
#   bash tools/quickstart.sh hard       the same model and schedule on the preset `hard`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

preset="${1:-easy}"
case "$preset" in
    easy) data=data/sample run=runs/quickstart ;;
    hard) data=data/sample_hard run=runs/quickstart_hard ;;
    *)
        echo "usage: bash tools/quickstart.sh [easy|hard]" >&2
        exit 2
        ;;
esac

prepare_environment

echo "== Sample pictures: $data"
if [[ -f $data/annotations/val.json ]]; then
    echo "already there"
else
    detr-kit sample "$data" --preset "$preset"
fi

if [[ -d $run/last ]]; then
    echo "== Training: $run is there, going on with it (delete it to start anew)"
    detr-kit resume "$run"
else
    echo "== Training: configs/quickstart.yaml, run folder $run"
    detr-kit train configs/quickstart.yaml \
        data.train.annotations="$data/annotations/train.json" data.train.images="$data/train" \
        data.val.annotations="$data/annotations/val.json" data.val.images="$data/val" \
        output="$run"
fi

echo "== Evaluation of $run/best on the held-out pictures"
detr-kit eval "$run/best" --annotations "$data/annotations/val.json" --images "$data/val"

echo "== Predictions"
detr-kit predict "$run/best" "$data"/val/00000[1-8].jpg --out "$run/pictures"

cat <<TEXT

Done. Look at
  $run/pictures        predictions, drawn
  $run/best            the detector, for detr_kit.Detector.from_checkpoint("$run/best")
  $run/report.html     what it finds, what costs AP, its worst pictures: open it in a browser
  $run/curves.png      losses and AP over time; the figures are in $run/metrics.jsonl
TEXT
