"""Judge of the findings: scripted incidents with known truth, findings minute by minute, and what they are worth."""
