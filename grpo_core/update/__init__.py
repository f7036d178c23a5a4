"""The update of the policy and the value network on one rollout."""
