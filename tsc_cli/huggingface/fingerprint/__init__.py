"""What identifies a model: its config, weights, RoPE buffers, tokenizer and adapters."""
