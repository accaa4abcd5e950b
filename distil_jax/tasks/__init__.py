"""Tasks: data in, fine-tuning on the shared loop, official measures, predictions."""
