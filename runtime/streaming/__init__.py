"""Many streams over one engine: rows of memory, who steps next, and where those lie that wait."""
