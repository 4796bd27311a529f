"""Loading a model and its tokenizer; errors name the damaged file and field."""
