"""Generated phrases: a corpus that needs no download."""
