"""One small module per algorithm: rollouts and scores in, per-token terms of the loss out."""
