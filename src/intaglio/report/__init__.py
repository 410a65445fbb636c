"""Pages for people, made from what the runtime measured; charts need the extra ``report``."""
