"""What every console shares: accounts and roles, sessions, pages with a JSON twin, plots."""
