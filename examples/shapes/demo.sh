#!/usr/bin/env bash
# A trained YOLACT from checkpoint to masks, as the commands that a user would type.
set -euo pipefail
cd "$(dirname "$0")/../.."
shapes=examples/shapes
out=demo-output
rm -rf "$out"
mkdir -p "$out/calib" "$out/photos"
ln -s "$PWD/$shapes"/calib/calib_00[0-2]?.jpg "$out/calib/"
ln -s "$PWD/$shapes"/val/val_public_000[0-4].jpg "$out/photos/"

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
step "INT8, calibrated on 30 images, and a plan of it" \
    yolact-deploy quantize $out/shapes.onnx -o $out/shapes.int8.onnx --calib $out/calib
step "... checked for what TensorRT wants, and built" \
    yolact-deploy build-engine $out/shapes.int8.onnx -o $out/shapes.int8.engine --precision int8 --batch 1,1,8
step "What the plan is" \
    yolact-deploy inspect $out/shapes.int8.engine
step "Images to masks" \
    yolact-deploy detect $out/shapes.onnx $out/photos -o $out/overlays --coco $out/detections.json --overwrite
step "How good it is: COCO box and mask AP" \
    yolact-deploy eval $out/shapes.onnx --images $shapes/val --annotations $shapes/val/instances.json
step "What INT8 changed, on five images" \
    yolact-deploy compare $out/shapes.onnx $out/shapes.int8.onnx --images $out/photos --html $out/compare.html
step "How fast it is, and where the time goes" \
    yolact-deploy bench $out/shapes.onnx --images $shapes/val

printf '\nLook at %s/overlays and %s/compare.html. Next, your own checkpoint: docs/custom-models.md\n' "$out" "$out"
