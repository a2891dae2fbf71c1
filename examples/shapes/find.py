"""Find the shapes in one picture: `python examples/shapes/find.py`, once shapes.onnx is exported."""

from yolact_deploy import Detector

detector = Detector("shapes.onnx")
detections = detector("examples/shapes/val/val_public_0000.jpg", score_threshold=0.15)
for name, score, box, mask in zip(
    detections.class_names, detections.scores, detections.boxes_xyxy, detections.masks, strict=True
):
    print(f"{name:8} {score:.2f}  box {box.astype(int)}  {mask.sum()} pixels")
detections.save("drawn.jpg", "examples/shapes/val/val_public_0000.jpg")
