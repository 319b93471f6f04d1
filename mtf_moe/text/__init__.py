"""Local text as data: files, vocabularies, windows of tokens."""
