"""Label layouts other than COCO: YOLO and Pascal VOC folders read as COCO documents and written from them."""
