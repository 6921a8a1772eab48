"""`lpo serve`: OpenAI's HTTP API over the continuous batcher."""
