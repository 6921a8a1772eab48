"""How the next token is chosen: by one model, by two of one tokenizer (codecode), or by two of different ones (crosec)."""
