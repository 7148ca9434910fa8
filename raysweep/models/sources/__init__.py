"""Where models come from: hubs, folders, GGUF files, wheels, and the one that is trained here."""
