"""Many runs beside each other, and one by itself."""
