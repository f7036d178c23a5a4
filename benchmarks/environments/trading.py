"""Register a trading environment on drawn prices, as users of gym-trading-env register theirs."""

import importlib
from typing import Any

import gymnasium as gym
import numpy as np

N_HOURS = 20_000


def make_trading(**kwargs: Any) -> gym.Env[Any, Any]:
    """Make the environment; it tells the logarithm of the last hour's return and the traded volume."""
    pandas: Any = importlib.import_module("pandas")
    trading: Any = importlib.import_module("gym_trading_env.environments")
    rng = np.random.default_rng(0)
    returns = rng.normal(0, 1e-3, N_HOURS)
    close, volume = 100 * np.exp(np.cumsum(returns)), rng.random(N_HOURS)
    index = pandas.date_range("2020-01-01", periods=N_HOURS, freq="h")
    columns = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close, "volume": volume}
    frame = pandas.DataFrame({**columns, "feature_return": returns, "feature_volume": volume}, index=index)
    env: gym.Env[Any, Any] = trading.TradingEnv(df=frame, positions=[-1, 0, 1], verbose=0, **kwargs)
    return env


gym.register("OwnTrading-v0", entry_point=make_trading)
