"""One worker's mind; token ids only. A request's way through the files:

engine     add(Generate): checks it, has its grammar compiled (constrain), opens it (sampler), queues it (scheduler);
           step(): plan -> run -> commit -> StepDone
scheduler  which sequences (sequence) run in the next step, in which blocks (space, on kvcache/): a StepPlan (plan)
runner     the plan as arrays, through the model (kernels.backend.Executable) to logits
features   pictures (pictures) and sounds (sounds) to features, between steps
sampler    logits to tokens: each sequence's options (adjust), its random numbers, log-probabilities
encoder    stands alone: embeddings
"""
