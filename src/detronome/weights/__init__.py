"""Trained weights of other origin: official files and Hugging Face models, read safely and loaded whole."""
