"""Text and chats to token ids, by a model's tokenizer and chat template."""
