"""The small language model of the testbed: its tokenizer, its training, its answers."""
