"""Find the case (patient) in a file name, and suggest a case_regex if one fails."""
