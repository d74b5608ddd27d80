"""What was found in images and videos, as files: pictures, COCO results, panoptic maps, YOLO labels, a CSV table."""
