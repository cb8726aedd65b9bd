"""The hospital's console: for its IT, clinicians and data-protection officer, on this machine only."""
