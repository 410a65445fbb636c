"""What several passes stand on: facts about a graph that change nothing in it."""
