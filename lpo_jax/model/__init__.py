"""The decoder, its attention, and the way to and from Hugging Face."""
