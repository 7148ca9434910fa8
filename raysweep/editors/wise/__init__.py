"""WISE: side memories trained on random masks, merged, and chosen by activation."""
