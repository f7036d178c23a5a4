"""A training under way, in a file from which it goes on as if it had never been interrupted.

- ``training_file``: keeps a training in a file, and goes on from it.
- ``checkpoint``: what is in such a file.
- ``objects``: what simulators hold, without a pickle.
"""

from grpo_core.saving import model_file

FORMAT = "grpo-checkpoint/1"
# Members of the file, which the service reads without torch.
FACTS_MEMBER, MODEL_MEMBER, ATTACHED = model_file.CHECKPOINT_MEMBER, "model.zip", "attachments/"
# More than the model, its reference, its best one and the largest state that is described: of a script's training, and
# of a server's job.
MAX_FILE_BYTES = 4 * model_file.LIBRARY_LIMITS.file_bytes
MAX_JOB_BYTES = 4 * model_file.SERVICE_LIMITS.file_bytes
