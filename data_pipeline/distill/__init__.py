"""From rules about weaknesses to pairs of programs, by way of a model that writes (DiSCo, arXiv 2506.00419 Sec. 3)."""
