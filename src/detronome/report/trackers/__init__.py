"""Following a run elsewhere: TensorBoard, Weights & Biases, MLflow."""
