#!/usr/bin/env bash
# A trained YOLACT from checkpoint to masks, as the commands that a user would type.
set -euo pipefail
cd "$(dirname "$0")/../.."
shapes=examples/shapes
out=demo-output
mkdir -p "$out"

step() {
    printf '\n\033[1m# %s\033[0m\n$ %s\n' "$1" "${*:2}"
    "${@:2}"
}

step "What can be done on this machine" \
    yolact-deploy doctor
step "Checkpoint to ONNX, compared with PyTorch before it is kept" \
    yolact-deploy export $shapes/yolact_resnet14_shapes_4_4909.pth --spec $shapes/spec.json -o $out/shapes.onnx \
    --parity-images $shapes/val/val_public_0000.jpg
step "ONNX to a TensorRT plan: for this machine's GPU, or ahead of time for others" \
    yolact-deploy build-engine $out/shapes.onnx -o $out/shapes.engine --batch 1,1,8
step "What the plan is" \
    yolact-deploy inspect $out/shapes.engine
step "Images to masks" \
    yolact-deploy detect $out/shapes.onnx $shapes/val/val_public_000{0,1,2,3,4}.jpg -o $out/overlays --coco $out/detections.json
step "How good it is: COCO box and mask AP" \
    yolact-deploy eval $out/shapes.onnx --images $shapes/val --annotations $shapes/val/instances.json
step "How fast it is, and where the time goes" \
    yolact-deploy bench $out/shapes.onnx --images $shapes/val

printf '\nThe overlays are in %s/overlays. Next: your own checkpoint, see README.md.\n' "$out"
