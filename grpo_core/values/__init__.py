"""Values that mean something: fitted to the policy's own episodes, and checked against others."""
