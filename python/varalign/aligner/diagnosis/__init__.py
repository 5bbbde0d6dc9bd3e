"""`varalign diagnose`: which pairs are wrong. gather: the pairs; judge: their scores; write: the files."""
