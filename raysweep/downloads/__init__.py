"""Files from the web into the workspace: one by their address, or those of a repository of the Hugging Face hub."""
