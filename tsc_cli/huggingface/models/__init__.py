"""Loading a model and its tokenizer; a damaged or odd folder is refused by the file and the field."""
