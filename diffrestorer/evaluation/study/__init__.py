"""The study kit: blind pairs for people, and the ranking that their answers give."""
