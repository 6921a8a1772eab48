"""The papers' claims, re-run: a campaign of small pieces, each done once by the product's own commands, and the page made from what they found."""
