"""What a trained model is asked for: continuations, beams, scores."""
