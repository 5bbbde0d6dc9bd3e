"""One optimiser step: its texts, its passes through towers and heads, and the guard of what it changes."""
