"""How a forward pass is made cheap; nothing above it knows which road was taken."""
