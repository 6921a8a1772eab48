"""`lpo-data pivots`: finds the tokens of a pair on which it hangs whether a model's program ends well."""
