"""gradlab: what each objective's gradient does to the others, for small alignment experiments."""

__version__ = "0.1.0"
