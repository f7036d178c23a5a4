"""The pages of all models, of one, and of two side by side.

- ``models_page``: all models, and ``side_by_side_page``: two of them.
- ``model_page``: one model. ``evaluation_panel`` compares it with random actions, ``version_list`` shows its versions,
  and ``use_panel`` its use elsewhere.
- ``observation_sliders``: the policy's answer to an observation of one's own. ``slider_ranges`` gives the sliders their
  ends, ``environment_labels`` their names, and ``action_bars`` draws the answer.
- ``episode_player``: the film of an episode, for one model and for two.
"""
