"""The environments: listing, describing and inspecting them."""
