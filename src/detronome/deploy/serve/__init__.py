"""A trained model behind HTTP: batches made of single requests, and an answer in time or a refusal at once."""
