"""What a loss is made of: log-probabilities of tokens and divergences between models, without ever holding [tokens, V] logits."""
