"""A/B and ABX with labels hidden: what is asked, what was answered, and what the answers show."""
