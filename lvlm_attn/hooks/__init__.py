"""The methods, one file or folder each; `catalogue` lists them, `parsing` reads them from text."""
