"""What a path holds becomes a source: a trained model, its weights, and inputs to run it on."""
