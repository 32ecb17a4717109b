"""What users run: the fast twin of ttr_ref."""
