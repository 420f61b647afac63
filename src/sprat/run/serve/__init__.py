"""An OpenAI-compatible server (docs/serve.md); needs the extra `serve`.

schema    what a request may say, and the errors
prompts   a request becomes choices: tokens, limits, sampling
writing   tokens of a choice become text: stop strings, log-probabilities
scheduler one thread owns the engine and writes all choices side by side
sessions  the caches of texts, kept a while for what follows
replies   what is sent back
stream    news of a choice become an answer, whole or in parts
body      a request's JSON, with limits
app       the routes
guard     who may call
server    the socket and the life of the process
"""
