"""Several models of one kind made into one: units matched, weights averaged, the path measured."""
