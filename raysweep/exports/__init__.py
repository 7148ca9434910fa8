"""Finished trials given back: a plain model, the edited tensors, an adapter, a memory, or answers before and after."""
